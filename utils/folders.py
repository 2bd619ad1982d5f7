"""Folders that are either whole or absent: filled under a temporary name, then renamed.

In: the folder that is to appear, and what is written into it. Out: that folder, whole, with a
`.made_by_export.json` that tells a later run that it may replace it; on any error the folder is as
it was before.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.files import UserError, write_json

MARKER = ".made_by_export.json"


@contextmanager
def whole_folder(path: Path, made_from: Mapping[str, Any], *, overwrite: bool = False,
                 inputs: Mapping[str, Path] | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it takes the place of `path`.

    What an earlier run of ours has put at `path` is replaced. It is there until the very end.

    Args:
        made_from: recorded in the folder.
        overwrite: replace a folder of others as well.
        inputs: option -> what is read meanwhile; it must not lie in `path`.

    Raises:
        UserError: `path` holds files of others, or an input, or cannot be written.
    """
    path = path.absolute()
    target = path.resolve()  # a link to a folder stays a link
    _check_replaceable(path, target, overwrite, inputs or {})
    tmp, old = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        yield tmp
        write_json(tmp / MARKER, dict(made_from))
        if target.exists():
            os.rename(target, old)
        os.rename(tmp, target)
    except OSError as error:
        raise UserError(f"--output-dir: cannot write {path}: {error.strerror or error}") from error
    finally:
        if old.exists() and not target.exists():
            os.rename(old, target)
        for leftover in (tmp, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_replaceable(path: Path, target: Path, overwrite: bool, inputs: Mapping[str, Path]
                       ) -> None:
    for option, read in {**inputs, "the current folder": Path.cwd()}.items():
        if target == (read := read.resolve()) or target in read.parents:
            raise UserError(f"--output-dir {path} is or holds {option} ({read}), and would be "
                            "replaced: name another folder")
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"--output-dir {path}: there is a file of that name")
    if any(target.iterdir()) and not (target / MARKER).is_file() and not overwrite:
        raise UserError(f"--output-dir {path} holds files that this command has not made: name "
                        "another folder, or --overwrite to replace everything in it")
