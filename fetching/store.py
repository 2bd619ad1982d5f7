"""Bring released files to where the other scripts look, each of them whole or not at all.

In: an asset of the catalogue. Out: its files in place. They arrive in ROOT/.downloads, and leave
it with the known checksum or the one recorded at first use, in CHECKPOINT_DIR/SHA256SUMS.json.
What the user has put in place is used after the same checks, and never replaced or deleted.
"""

import errno
import filecmp
import hashlib
import os
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock

from fetching.catalogue import Asset
from fetching.transport import BLOCK, DownloadError, fetch
from utils.files import UserError, check_room, output_folder, read_json, write_json
from utils.logging import get_logger, progress

MAX_ENTRIES, MAX_TOTAL = 200_000, 32 << 30  # of an archive; the total in bytes, unpacked
UNSAFE = re.compile(r"/|.:|(.*/)?\.\.(/|$)|.*[\\\x00-\x1f]|(.*/){16}", re.DOTALL)  # names
JUNK = re.compile(r"(.*/)?(__MACOSX|Thumbs\.db|desktop\.ini|\.[^/]+)(/|$)")  # of file managers
ZIP_KINDS = (0, 4, 8)  # unknown, folder, file


def unpack(archive: Path, folder: Path, is_tar: bool, holds: str) -> Path:
    """Unpack a .tar or .zip to an empty `folder`; returns the folder in it that has `holds`.

    A DownloadError is raised if it is damaged, too large, or has other than files and folders.
    """
    opener: Any = tarfile.TarFile if is_tar else zipfile.ZipFile
    try:
        with opener(archive) as opened:
            # Python judges a .tar again from 3.10.12 on, and a .zip never: hence all of it here.
            opened.extraction_filter = getattr(tarfile, "data_filter", None)
            total, wanted = 0, list[Any]()
            for number, m in enumerate(opened if is_tar else opened.infolist(), start=1):
                name, size, is_plain = (m.name, m.size, m.isfile() or m.isdir()) if is_tar else (
                    m.filename, m.file_size, m.external_attr >> 28 in ZIP_KINDS)
                if not is_plain or UNSAFE.match(name):
                    raise DownloadError(f"{name[:200]!r} is a link, a device or an unsafe name")
                total += size
                if number > MAX_ENTRIES or total > MAX_TOTAL:
                    raise DownloadError("it has too many entries or bytes")
                if not JUNK.match(name):
                    wanted.append(m)
            check_room(folder, total)
            opened.extractall(folder, progress(wanted, "unpacking", unit="file"))
    except Exception as error:  # the libraries raise a dozen kinds on broken input
        if isinstance(error, UserError) or getattr(error, "errno", 0) == errno.ENOSPC:
            raise
        raise DownloadError(f"it is damaged or cut short ({error})") from error
    if (found := next(folder.rglob(holds), None)) is None:
        raise DownloadError(f"it does not hold {holds}")
    return found.parent


def merge(source: Path, target: Path) -> None:
    """Move a file or folder to `target`; a folder that is there already takes in the content."""
    if source.is_dir() and target.is_dir():
        for path in source.iterdir():
            merge(path, target / path.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)  # a renaming, or, where a link leads to another disk, a copy


class Installation:
    """An asset, its `url`, its `place` for other scripts, and where the user puts his `own`."""

    def __init__(self, asset: Asset, data_root: Path | None, checkpoint_dir: Path,
                 mirror: str | None) -> None:
        root = checkpoint_dir if asset.to is None else data_root or Path(asset.data_root)
        self.asset, self.name = asset, asset.url.rpartition("/")[2]
        self.url = f"{mirror.rstrip('/')}/{self.name}" if mirror else asset.url
        self.place = root / (asset.to or "") / ("" if asset.holds else self.name)
        self.own = root / self.name if asset.holds else self.place
        self.work, self.sums = root / ".downloads", checkpoint_dir / "SHA256SUMS.json"
        self.part, self.facts, self.marker = (
            self.work / f"{self.name}{end}" for end in (".part", ".part.json", ".content.json"))

    def is_done(self) -> bool:
        """Whether nothing is left to do; a DownloadError if another file is there."""
        if not self.asset.holds:
            return self.own.is_file() and self._check(self.own)[1]
        counts = read_json(self.marker) or ({} if self.own.exists() else self.asset.counts)
        return bool(counts) and all(sum(1 for _ in self.place.glob(name)) >= count
                                    for name, count in counts.items())

    def install(self, retries: int, timeout: float, keep_archive: bool) -> str:
        """Bring it to its place, with `fetch`'s options; says what was done, or raises why not."""
        try:
            if self.is_done() and not self.facts.exists():
                return "already there"
            output_folder(self.sums.parent, "--checkpoint-dir")
            with FileLock(output_folder(self.work, "--data-root") / "lock"):
                for left in [*self.work.glob("*.unpack"), *self.work.glob(".*.tmp*")]:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()  # of the dead
                done = "already there" if self.is_done() else self._install(retries, timeout)
                if keep_archive and self.asset.holds and self.part.exists():
                    os.replace(self.part, self.own)
                self.part.unlink(missing_ok=True)
                self.facts.unlink(missing_ok=True)
            return done
        except DownloadError as error:
            what = f"{self.own} (delete it to fetch it)" if self.own.is_file() else self.url
            raise UserError(
                f"{what}: {error}. By hand: open {self.asset.url} in a browser, save it as "
                f"{self.own.absolute()} and run again; or use --mirror URL") from error

    def _install(self, retries: int, timeout: float) -> str:
        done, file = ("found", self.own) if self.own.is_file() else ("downloaded", self.part)
        if file == self.part:
            get_logger().info("%s: fetching %s", self.name, self.url)
            fetch(self.url, file, retries, timeout)
        with TemporaryDirectory(suffix=".unpack", dir=self.work) as staging:
            try:
                digest, is_known = self._check(file)
                content = file if not self.asset.holds else unpack(
                    file, Path(staging), self.name.endswith(".tar"), self.asset.holds)
            except DownloadError:
                self.part.unlink(missing_ok=True)
                self.facts.unlink(missing_ok=True)
                raise
            if not is_known:
                with FileLock(self.sums.with_name(".SHA256SUMS.lock")):
                    for left in self.sums.parent.glob(".SHA256SUMS.*.tmp*"):
                        left.unlink()
                    write_json(self.sums, read_json(self.sums) | {self.name: {"sha256": digest}})
            if self.asset.holds:
                self._move(content)
            elif file == self.part:
                merge(file, self.place)
        return done

    def _move(self, content: Path) -> None:
        names = [path.relative_to(content) for path in content.rglob("*") if path.is_file()]
        for name in names:
            there = self.place / name
            if there.is_file() and not filecmp.cmp(content / name, there, shallow=False):
                raise UserError(f"{there} is another file than in {self.name}: move it away")
        write_json(self.marker, {"begun": 1})  # as if a file of that name were missing
        merge(content, self.place)
        write_json(self.marker, Counter(f"{name.parent}/*" for name in names))

    def _check(self, path: Path) -> tuple[str, bool]:
        """The checksum of `path`, and whether it is known; a DownloadError if it is wrong."""
        digest = hashlib.new("md5" if self.asset.md5 else "sha256", usedforsecurity=False)
        entry = read_json(self.sums).get(self.name)
        known = self.asset.md5 or (entry.get("sha256") if isinstance(entry, dict) else entry)
        with open(path, "rb") as file:
            head = file.peek()[:512].lstrip()
            blocks, total = iter(lambda: file.read(BLOCK), b""), path.stat().st_size // BLOCK
            for block in progress(blocks, f"checking {self.name}", total, "block"):
                digest.update(block)
        if (found := digest.hexdigest()) == known:
            return found, True
        if not head or head.startswith(b"<"):
            raise DownloadError("it is empty, or a web page (of a log-in or an error?)")
        if known:
            where = "" if self.asset.md5 else f" (as in {self.sums}; remove it there if wrong)"
            raise DownloadError(f"its {digest.name} is {found}, not {known}{where}")
        if self.name.endswith(".pth") and head[0] != 0x80 and not zipfile.is_zipfile(path):
            raise DownloadError("it is no PyTorch file, or cut short")
        return found, False
