"""Bring released files to where the other scripts look, each of them whole or not at all.

In: a data root, a checkpoint folder, and an asset of the catalogue. Out: its files in place.
A file is accepted only if its form is right and its checksum is the known one (MD5, VOC) or the
one recorded at first use, in CHECKPOINT_DIR/SHA256SUMS.json. An archive counts as unpacked once
DATA_ROOT/.downloads/NAME.json says so, which is written last; what an interrupted run has left
before that is done again. A file that the user has put in place is used like a fetched one,
after the same checks.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from utils import archives
from utils.download import ContentError, DownloadError, UnreachableError, discard_partial, fetch
from utils.files import UserError, output_folder, write_json
from utils.logging import get_logger
from utils.released import Asset, check_form, digests


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; waits for another process that holds it."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            get_logger().info("another process works on %s: waiting for it", path.stem)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            get_logger().warning("%s: no file locks here (%s): start no second download at the "
                                 "same time", path.parent, error.strerror)
        yield


def _read_marker(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent, or edited: as if nothing had been done
        return {}


@dataclass
class Store:
    """The two folders that files are brought to, and how they are fetched."""

    data_root: Path
    checkpoint_dir: Path
    mirror: str | None = None
    retries: int = 5
    timeout: float = 60.0
    keep_archives: bool = False

    def __post_init__(self) -> None:
        self._unreachable: set[str] = set()

    @property
    def sums_path(self) -> Path:
        """Where the checksums of first use are recorded, for all data roots."""
        return self.checkpoint_dir / "SHA256SUMS.json"

    def url(self, asset: Asset) -> str:
        """Where `asset` is fetched from."""
        return f"{self.mirror.rstrip('/')}/{quote(asset.name)}" if self.mirror else asset.url

    def path(self, asset: Asset) -> Path:
        """Where the file itself lies, or an archive waits to be unpacked."""
        root = self.checkpoint_dir if asset.folder is None else self.data_root / asset.folder
        return root / asset.name

    def destination(self, asset: Asset) -> Path:
        """Where the other scripts look for it."""
        return (self.path(asset) if asset.unpack_to is None
                else self.data_root / asset.unpack_to)

    def _state(self, asset: Asset, suffix: str) -> Path:
        root = self.checkpoint_dir if asset.folder is None else self.data_root
        return root / ".downloads" / f"{asset.name}{suffix}"

    def _recorded(self) -> dict[str, dict[str, str]]:
        try:
            return dict(json.loads(self.sums_path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.sums_path} is no valid JSON ({error}): mend or delete it"
                            ) from error

    def _check(self, asset: Asset, path: Path) -> str:
        """The SHA-256 of `path`. Raises ContentError unless it is what it should be."""
        found = digests(path)
        known = self._recorded().get(asset.name, {}).get("sha256")
        if found["sha256"] == known:
            return known
        check_form(path, asset)
        if asset.md5 not in (None, found["md5"]):
            raise ContentError(f"its MD5 is {found['md5']}, not {asset.md5}")
        if known is not None:
            raise ContentError(
                f"its SHA-256 is {found['sha256']}, not {known} as recorded in {self.sums_path} "
                "at first use (if the new one is right, remove that entry and run again)")
        return found["sha256"]

    def _record(self, asset: Asset, sha256: str, source: str) -> None:
        with lock(self.checkpoint_dir / ".downloads" / "SHA256SUMS.lock"):
            known = self._recorded()
            entry = known.setdefault(asset.name, {"sha256": sha256, "source": source})
            if entry.get("sha256") != sha256:
                raise ContentError("another process has just recorded another SHA-256 for it")
            write_json(self.sums_path, known)

    def is_done(self, asset: Asset) -> bool:
        """Whether nothing is left to do for `asset`.

        Raises:
            UserError: the file is there but is not the one whose checksum was recorded.
        """
        path, marker = self.path(asset), self._state(asset, ".json")
        if asset.unpack_to is None:
            return (path.is_file() and asset.name in self._recorded()
                    and bool(self._check_found(asset)))
        if marker.is_file():
            counts = _read_marker(marker).get("folders")
        elif path.exists() or self._state(asset, ".unpack").exists():
            counts = None  # begun, or put there by hand
        else:
            counts = asset.counts
        return bool(counts) and all(
            archives.count_files(self.destination(asset) / name) >= count
            for name, count in counts.items())

    def state(self, asset: Asset) -> str:
        """What is there of `asset`, in words."""
        try:
            if self.is_done(asset):
                return "there"
        except UserError:
            return "wrong file"  # its checksum is not the recorded one
        place = self.destination(asset)
        return "not checked" if place != self.data_root and archives.count_files(place) else "-"

    def _check_found(self, asset: Asset) -> str:
        path = self.path(asset)
        try:
            return self._check(asset, path)
        except ContentError as error:
            raise ContentError(f"{path} cannot be used: {error}. Delete it and run the same "
                               "command again to fetch it anew") from error

    def install(self, asset: Asset) -> str:
        """Bring `asset` to its destination; returns what had to be done for it, in words.

        Raises:
            UserError: it could not be; the message says what to do.
        """
        if self.is_done(asset):
            return "already there"
        path, marker = self.path(asset), self._state(asset, ".json")
        option = "--checkpoint-dir" if asset.folder is None else "--data-root"
        for folder in (path.parent, marker.parent):
            output_folder(folder, option)
        output_folder(self.checkpoint_dir / ".downloads", "--checkpoint-dir")  # for checksums
        with lock(self._state(asset, ".lock")):
            if self.is_done(asset):  # another process did it while this one waited
                return "already there"
            if path.exists():
                sha256, source, how = self._check_found(asset), "put there by hand", "found"
                discard_partial(path)
            else:
                sha256, source, how = self._fetch(asset, path), self.url(asset), "downloaded"
                if asset.unpack_to is not None:
                    write_json(marker, {"fetched": source})
            if asset.unpack_to is None:
                self._record(asset, sha256, source)
                return how
            # an archive that was put there by hand is the user's, and stays
            fetched = "fetched" in _read_marker(marker)
            folders = self._unpack(asset, path, marker if fetched else None)
            self._record(asset, sha256, source)
            write_json(marker, {"unpacked": asset.name, "sha256": sha256, "folders": folders})
            if fetched and not self.keep_archives:
                path.unlink()
            return f"{how}, unpacked"

    def _fetch(self, asset: Asset, path: Path) -> str:
        url = self.url(asset)
        host = urlsplit(url).netloc
        get_logger().info("%s: fetching %s", asset.name, url)
        try:
            return fetch(url, path, lambda part: self._check(asset, part), timeout=self.timeout,
                         retries=0 if host in self._unreachable else self.retries)
        except DownloadError as error:
            if isinstance(error, UnreachableError):
                self._unreachable.add(host)  # its next file need not wait for it as long
            raise UserError(
                f"could not fetch {url}: {error}. By hand: open {asset.url} in a browser, save "
                f"it as {path.absolute()} and run the same command again; or take it from "
                "elsewhere with --mirror URL") from error

    def _unpack(self, asset: Asset, archive: Path, marker: Path | None) -> dict[str, int]:
        """Unpack beside the destination and move into place; returns the files per folder."""
        staging, goal = self._state(asset, ".unpack"), self.destination(asset)
        shutil.rmtree(staging, ignore_errors=True)
        try:
            archives.unpack(archive, staging)
            content = archives.find_content(staging, asset.pattern)
            if asset.made_here and (clash := archives.differing(content, goal)):
                raise UserError(f"{goal} holds {len(clash):,} other files of the same names, as "
                                f"{clash[0].name}: move that folder away and run again")
            folders = archives.inventory(content)
            os.sync()  # so that what is renamed next is whole even after a power failure
            archives.merge(content, goal)
            return folders
        except archives.ArchiveError as error:
            if marker is None:
                advice = "put a sound one there, or delete it to have it fetched"
            else:
                advice = "it has been removed, run again to fetch it anew"
                archive.unlink()
                marker.unlink()
            raise UserError(f"{archive} cannot be used: {error}; {advice}") from error
        except OSError as error:
            raise UserError(f"cannot write {error.filename2 or error.filename or goal}: "
                            f"{error.strerror}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
