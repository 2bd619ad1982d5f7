"""What an output folder holds already, and whether it was made from what is there now.

In: the record of what a labelling stage is about to make, and its output folders. Out: the images
that are left to do; or an error that names what has changed since the others were made.
"""

import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.files import UserError
from utils.provenance import Record, read
from utils.runtime import now
from utils.stage import expect_work, note

log = logging.getLogger("drs")


def made_from(args: Any, root: Any, entries: Iterable[Any], precision: str) -> Record:
    """The record of a stage with these options, data set and entries of a list.

    Args:
        args: of a `StageParser`.
        root, entries: a `datasets.layout.DataRoot` and its entries.
        precision: in which the network computes.
    """
    options = {name: getattr(args, name) for name in args.shaping} | {"precision": precision}
    return Record(Path(sys.argv[0]).stem, options, list(root.classes), made=now(),
                  images=image_facts(root, entries), places={"images": str(root.image_dir)})


def image_facts(root: Any, entries: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Image id -> its labels, where known, and the size of its file in bytes."""
    return {entry.id: {"labels": None if entry.labels is None else list(entry.labels),
                       "image": root.image(entry.id).stat().st_size} for entry in entries}


def unfinished(outputs: Mapping[Path, Record], args: Any, runtime: Any) -> list[int]:
    """The indices of the images whose ID.png is not in every output folder yet.

    Each folder's record is compared with what its files would be made from now, and renewed; the
    images are those of the first record.

    Raises:
        UserError: files that would stay in a folder were made from something else.
    """
    todo: set[int] = set()
    if runtime.main:
        next(iter(outputs.values())).announce()
        ids = list(next(iter(outputs.values())).images)
        for folder, record in outputs.items():
            left = _settle(folder, record, args.overwrite, args.dry_run) if folder.is_dir() \
                else set(ids)
            todo |= {i for i, name in enumerate(ids) if name in left}
        note(images=len(ids))
        expect_work(bool(todo))
        if len(todo) < len(ids):
            log.info("%d of %d are there already", len(ids) - len(todo), len(ids))
    return runtime.gather(sorted(todo))[0]


def renew(folder: Path, record: Record, overwrite: bool) -> None:
    """Prepare a folder whose PNGs are all written anew, without skipping finished ones.

    Raises:
        UserError: it holds PNGs that none of our stages made, or files that would stay there were
            made from something else.
    """
    if read(folder) is None and not overwrite and any(folder.glob("[!.]*.png")):
        raise UserError(f"{folder} holds PNGs of unknown origin; use another folder, or "
                        "--overwrite")
    _settle(folder, record, overwrite=True, dry_run=False)


def _settle(folder: Path, record: Record, overwrite: bool, dry_run: bool) -> set[str]:
    """The images of `record` that `folder` lacks, after its record is compared and renewed."""
    sizes = {path.stem: path.stat().st_size for path in folder.glob("[!.]*.png")}
    replaced = sizes.keys() & record.images.keys() if overwrite else set()
    staying = sizes.keys() - replaced
    if staying:
        elsewhere = "use another --output-dir" + ("" if overwrite else ", or --overwrite")
        before = read(folder)
        if before is None:
            raise UserError(f"{folder} holds {len(staying)} PNGs of unknown origin; {elsewhere}")
        before.images = {name: value for name, value in before.images.items() if name in staying}
        if changed := before.differences(record):
            raise UserError(f"{folder} holds {len(staying)} files made from something else: "
                            f"{'; '.join(changed)}; {elsewhere}")
        record = replace(record, images=before.images | record.images)
    if not dry_run:
        for name in replaced:
            (folder / f"{name}.png").unlink()
        record.write(folder)
    return {name for name in record.images if name not in staying or not sizes[name]}
