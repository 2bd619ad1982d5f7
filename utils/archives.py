"""Unpack archives from strangers: nothing leaves the target folder, nothing grows without bound.

In: a .zip or .tar file. Out: its regular files and folders below a new, empty folder, which
`merge` then moves to where they belong, each file by an atomic rename. An archive that holds
anything else (links, devices, encrypted entries, names that lead elsewhere, the same name
twice) or more than `Limits` allows is refused as a whole.
"""

import errno
import filecmp
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import IO

from utils.download import check_room
from utils.files import UserError, atomic_write
from utils.logging import progress

CHUNK = 1 << 20
DEPTH = 16  # folders a name may go down
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, struct.error,
          RuntimeError, ValueError)  # what the libraries raise on broken or unusual input


class ArchiveError(UserError):
    """The archive is damaged, or holds what it must not hold."""


@dataclass(frozen=True)
class Limits:
    """What an archive may cost at most; the real ones need under half of each."""

    entries: int = 100_000
    total: int = 8 << 30  # bytes unpacked
    ratio: int = 100  # bytes unpacked for one byte of archive ...
    ratio_from: int = 16 << 20  # ... asked for only from this many bytes on


@dataclass(frozen=True)
class Member:
    """One regular file or folder of an archive; `size` is what its header claims."""

    name: str
    is_folder: bool
    size: int
    open: Callable[[], IO[bytes] | None]


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveError(f"it holds a link or a device: {info.filename!r}")
        if info.flag_bits & 0x1:
            raise ArchiveError(f"it is encrypted: {info.filename!r}")
        # orig_filename: zipfile cuts the other one at a NUL, which would hide the rest
        yield Member(info.orig_filename, info.is_dir(), info.file_size,
                     lambda info=info: archive.open(info))


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if not (info.isdir() or info.isreg()) or info.issparse():
            raise ArchiveError(f"it holds a link, a device or a sparse file: {info.name!r}")
        yield Member(info.name, info.isdir(), info.size,
                     lambda info=info: archive.extractfile(info))


def _safe_parts(name: str) -> list[str]:
    """The components of an archive's name, all of them harmless.

    Raises:
        ArchiveError: the name is absolute, climbs, is too deep or has odd characters.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if (name.startswith("/") or ".." in parts or "\\" in name or name[1:2] == ":"
            or len(parts) > DEPTH or any(ord(char) < 32 for char in name)):
        raise ArchiveError(f"it holds an unsafe name: {name[:200]!r}")
    return parts


def _is_junk(parts: list[str]) -> bool:
    """Whether an entry is what a file manager leaves behind, or the folder itself."""
    return (not parts or parts[0] == "__MACOSX" or parts[-1] in ("Thumbs.db", "desktop.ini")
            or any(part.startswith(".") for part in parts))


class _Budget:
    """Counts what has been unpacked, against the limits."""

    def __init__(self, limits: Limits, archive_bytes: int) -> None:
        self.limits, self.archive_bytes = limits, archive_bytes
        self.entries = self.total = 0

    def check_total(self, total: int) -> None:
        limits = self.limits
        if total > limits.total:
            raise ArchiveError(f"it unpacks to more than {limits.total / 1e9:.1f} GB")
        if total > limits.ratio_from and total > limits.ratio * self.archive_bytes:
            raise ArchiveError(f"it unpacks to more than {limits.ratio} times its own size")

    def add_entry(self) -> None:
        self.entries += 1
        if self.entries > self.limits.entries:
            raise ArchiveError(f"it has more than {self.limits.entries:,} entries")

    def add_bytes(self, count: int) -> None:
        self.total += count
        self.check_total(self.total)


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> None:
    """Unpack a .zip or an uncompressed .tar into `folder`, which must not exist yet.

    What was written before an error stays in `folder`: the caller removes it.

    Raises:
        ArchiveError: damaged, hostile or beyond `limits`.
        UserError: no room, or `folder` cannot be written.
    """
    limits = limits or Limits()
    budget = _Budget(limits, archive.stat().st_size)
    try:
        folder.mkdir(parents=True)
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as opened:
                claimed = sum(info.file_size for info in opened.infolist())
                budget.check_total(claimed)
                check_room(folder, claimed)
                _write_all(_zip_members(opened), folder, budget, len(opened.infolist()))
        else:
            check_room(folder, budget.archive_bytes)
            with tarfile.open(archive, "r:") as opened:
                _write_all(_tar_members(opened), folder, budget, None)
    except DAMAGE as error:
        raise ArchiveError(f"it is damaged ({error})") from error
    except OSError as error:
        raise UserError(f"cannot unpack to {folder}: {error.strerror or error}") from error


def _write_all(members: Iterable[Member], folder: Path, budget: _Budget,
               total: int | None) -> None:
    for member in progress(members, desc="unpacking", total=total, unit="file"):
        budget.add_entry()
        parts = _safe_parts(member.name)
        if _is_junk(parts):
            continue
        target = folder.joinpath(*parts)
        try:
            if member.is_folder:
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_one(member, target, budget)
        except (FileExistsError, NotADirectoryError) as error:
            raise ArchiveError(f"it holds {member.name[:200]!r} twice") from error


def _write_one(member: Member, target: Path, budget: _Budget) -> None:
    written = 0
    # mode x: a name that is already there is an error, also where file names ignore case
    with member.open() as source, open(target, "xb") as file:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            budget.add_bytes(len(chunk))
            file.write(chunk)
    if written != member.size:
        raise ArchiveError(f"it is damaged ({member.name!r} has {written} of {member.size} bytes)")


def find_content(folder: Path, pattern: str) -> Path:
    """The folder at or below `folder` where `pattern` matches, past any wrapping folders.

    Raises:
        ArchiveError: there is none.
    """
    while not any(folder.glob(pattern)):
        inner = [path for path in folder.iterdir() if path.is_dir()]
        if len(inner) != 1:
            raise ArchiveError(f"it does not hold {pattern}")
        folder = inner[0]
    return folder


def count_files(path: Path) -> int:
    """The number of files directly in the folder `path`; 1 if it is a file, 0 if nothing."""
    if path.is_dir():
        with os.scandir(path) as entries:
            return sum(entry.is_file() for entry in entries)
    return int(path.is_file())


def inventory(folder: Path) -> dict[str, int]:
    """The number of files in each folder at or below `folder`, by relative path."""
    return {Path(at).relative_to(folder).as_posix(): len(files)
            for at, _, files in os.walk(folder) if files}


def differing(source: Path, target: Path) -> list[Path]:
    """The files below `target` that `merge(source, target)` would replace by other contents."""
    files = (target / path.relative_to(source) for path in source.rglob("*") if path.is_file())
    return [path for path in files if path.exists()
            and not filecmp.cmp(source / path.relative_to(target), path, shallow=False)]


def merge(source: Path, target: Path) -> None:
    """Move everything below `source` to `target`, replacing files; each arrives whole.

    Raises:
        OSError: `target` cannot be written, or has a folder where a file should go.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(source, target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:  # the parent is a link to another disk
                raise
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        goal = target / path.name
        if path.is_dir():
            merge(path, goal)
            continue
        try:
            os.replace(path, goal)
        except OSError as error:
            if error.errno != errno.EXDEV:  # a folder that is a link to another disk
                raise
            with atomic_write(goal) as tmp:
                shutil.copyfile(path, tmp)
