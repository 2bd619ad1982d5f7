"""Writes an image list in the official format: the classes of each image from masks or XML."""

from functools import partial
from pathlib import Path

from datasets.inspection import Job, companions, inspect
from datasets.layout import DataRoot
from datasets.lists import NO_CLASS
from utils.files import UserError, write_text
from utils.logging import get_logger, progress
from utils.processes import map_in_processes


def make_list(root: DataRoot, name: str | None, kind: str, output: Path, processes: int) -> None:
    """Write one line per image, `ID INDEX INDEX ...`; nothing if a file is missing or faulty.

    Args:
        name: a list of the images; None: all that have a file of this kind.
        kind: "mask" or "annotation": what tells the classes.
        processes: that open files.

    Raises:
        UserError: files are missing or faulty.
    """
    there = companions(root)[kind]
    folder, suffix = (root.mask_dir, ".png") if kind == "mask" else (root.annotation_dir, ".xml")
    ids = [name for name in there if name in root.images] if name is None else [
        entry.id for entry in root.entries(name, labels=False)]
    if not ids:
        raise UserError(f"{folder}: no {suffix[1:].upper()} files that belong to an image")
    missing = [image_id for image_id in ids if image_id not in there]
    if missing:
        raise UserError(f"{folder / missing[0]}{suffix}: missing"
                        + (f" (and {len(missing) - 1} more)" if missing[1:] else ""))
    jobs: list[Job] = [(image_id, root.image(image_id), {kind: there[image_id]})
                       for image_id in ids]
    look = partial(inspect, classes={name: i for i, name in enumerate(root.classes)},
                   quick=kind == "annotation")
    found = list(progress(map_in_processes(look, jobs, processes), "reading labels",
                          total=len(jobs), unit="image"))
    faults = [message for finding in found for _, message in finding.faults]
    if faults:
        raise UserError(f"{len(faults)} faulty files: {'; '.join(faults[:5])}"
                        + (" ..." if faults[5:] else ""))
    lines = []
    for finding in found:
        # A tab ends a name that holds spaces; the official format has none of these.
        separator = "\t" if " " in finding.id else " "
        lines.append(finding.id + separator
                     + (" ".join(map(str, finding.labels[kind])) or NO_CLASS))
    write_text(output, "\n".join(lines) + "\n")
    empty = sum(not finding.labels[kind] for finding in found)
    get_logger().info("wrote %s: %d images%s", output, len(ids),
                      f", {empty} of them with no class ({NO_CLASS})" if empty else "")
