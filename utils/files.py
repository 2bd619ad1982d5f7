"""Files that are either whole or absent: temporary name in the same folder, then rename.

Also `open_regular`, which reads from outside without ever waiting for a pipe or a device.
"""

import errno
import glob
import json
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

DISK_MARGIN = 64 << 20  # bytes to leave free


class UserError(Exception):
    """Something the user can mend: the message names the file or option and says what to do.

    Scripts show it as one line, without a traceback, and exit with status 1.
    """


def output_folder(path: Path, option: str = "--output-dir") -> Path:
    """Create `path` and prove that files can be made in it.

    Raises:
        UserError: it cannot be created or written; the message names `option`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{option}: cannot write to {path}: {error.strerror}") from error
    return path


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file to read its bytes; anything but a regular file is refused instead of waited for.

    Raises:
        OSError: missing, not readable, or a folder, pipe, socket or device.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file", os.fspath(path))
    return file


def read_text(path: str | os.PathLike, limit: int) -> str:
    """The UTF-8 text of a file of at most `limit` bytes, without a byte order mark.

    Raises:
        UserError: it cannot be read, is larger, or is no UTF-8 text.
    """
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > limit:
        raise UserError(f"{path}: too large (more than {limit:,} bytes)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 text ({error.reason} at byte {error.start:,})"
                        ) from error


def _without_waiting(path: str, flags: int) -> int:
    # A pipe that nobody writes to would keep `open` waiting; Windows has neither flag nor pipes.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, else removed.

    The temporary name keeps the suffix (libraries choose the format by it) and starts with a
    dot, so that a folder listing never takes it for a finished file. Each process and thread has
    its own.
    """
    path = Path(path)
    writer = f"{os.getpid()}-{threading.get_native_id()}"
    tmp = path.with_name(f".{path.stem}.{writer}.tmp{path.suffix}")
    try:
        yield tmp
        with open(tmp, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except BaseException as error:
        with suppress(OSError):
            tmp.unlink()
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def sweep(folder: Path) -> None:
    """Remove the half-written files that killed processes left in `folder`; the caller holds the
    lock of the folder, so that nobody writes there now."""
    for path in folder.glob(".*.tmp*"):
        with suppress(OSError):
            path.unlink()


def sweep_for(path: Path) -> None:
    """Remove what processes that are gone left of `path`; its folder need not be locked."""
    before, after = f".{path.stem}.", f".tmp{path.suffix}"
    for tmp in path.parent.glob(f"{glob.escape(before)}*{glob.escape(after)}"):
        writer = tmp.name.removeprefix(before).partition("-")[0]
        if writer.isdecimal() and not _lives(int(writer)):
            with suppress(OSError):
                tmp.unlink()


def _lives(process: int) -> bool:
    """Whether a process of this number runs here, or cannot be told not to."""
    if os.name != "posix":  # there, asking would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write text as UTF-8, atomically, into a folder that need not be locked; file names in it may
    be no text."""
    sweep_for(Path(path))
    with atomic_write(path) as tmp:
        tmp.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def read_json(path: Path) -> dict:
    """The JSON object in a file of ours; empty if there is no file.

    Raises:
        UserError: it holds something else.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no JSON object ({error}): mend or delete it") from error


def check_room(folder: Path, needed: int) -> None:
    """Raise an OSError unless the disk of `folder` has room for `needed` bytes, and a rest."""
    if needed + DISK_MARGIN > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, f"no room for {needed / 1e9:.2f} GB, make some", str(folder))
