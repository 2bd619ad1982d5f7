"""Inspect a data root, or write an image list from its masks or annotations.

    python -m datasets.voc check VOC2012
    python -m datasets.voc make-list VOC2012 --from-masks --list train_aug --output train_aug.txt

`check` prints what is there, what is faulty, and what each stage can do with it; its exit status
is 1 if files are faulty. `make-list` writes one line per image, `ID INDEX INDEX ...`.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from datasets.inspection import map_in_processes, mask_classes, names
from datasets.layout import NO_CLASS, DataRoot, annotated_classes
from datasets.survey import Survey
from labelling.labels import read_label
from utils.files import UserError, atomic_write, write_json
from utils.logging import get_logger, progress, setup_logging
from utils.options import count

log = get_logger()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The two commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.voc", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("root", type=Path, help="data set in VOC layout, or a folder of images")
    shared.add_argument("--num-workers", type=count, default=os.cpu_count() or 1, metavar="N",
                        help="processes that open files (default: %(default)s)")
    command = commands.add_parser("check", parents=[shared], help="inspect a data root")
    command.add_argument("--list", type=Path, nargs="+", default=[], metavar="FILE",
                         help="lists to check besides the data set's own")
    command.add_argument("--quick", action="store_true",
                         help="do not open images, masks and saliency maps")
    command.add_argument("--strict", action="store_true",
                         help="fail, too, unless every stage is ready and there are saliency maps")
    command.add_argument("--show", type=count, default=5, metavar="N",
                         help="how many of each kind of fault to print (default: %(default)s)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    command = commands.add_parser("make-list", parents=[shared], help="write an image list")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--from-masks", action="store_true",
                        help="labels are the classes in the masks, as in the official lists")
    source.add_argument("--from-xml", action="store_true",
                        help="labels are the objects in the annotations")
    command.add_argument("--list", metavar="LIST",
                         help="images: a list file, or the name of one of the data set's own "
                              "(default: all that have a mask or annotation)")
    command.add_argument("--output", type=Path, required=True, metavar="FILE")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """The command line; ends the process with its exit status."""
    args = parse(argv)
    setup_logging()
    try:
        sys.exit(check(args) if args.command == "check" else make_list(args))
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def check(args: argparse.Namespace) -> int:
    """Print the report; returns 1 if files are faulty."""
    try:
        root = DataRoot(args.root, tolerant=True)
    except UserError as error:
        raise UserError(f"{error}; for VOC 2012: python download.py voc2012 --data-root "
                        f"{args.root}") from error
    survey = Survey(root, args.list, args.quick, args.num_workers)
    print(f"{args.root}: {len(root.classes)} classes"
          f"{' of VOC' if survey.voc else ' of classes.txt'}")
    print_folders(survey)
    print_lists(survey)
    print_histogram(root.classes, survey.histogram())
    print_messages("faults", survey.faults, args.show)
    print_messages("notes", survey.notes, args.show)
    print("\nwhat the stages can do")
    for stage in survey.stages():
        print(f"  {'ready  ' if stage.ready else 'not yet'}  {stage.name}: {stage.text}")
    if args.quick:
        print("images, masks and saliency maps were not opened (--quick)")
    if args.json is not None:
        write_json(args.json, {
            "root": args.root, "classes": root.classes, "quick": args.quick,
            "counts": survey.counts(),
            "lists": {name: len(entries) for name, entries in survey.lists.items()},
            "histogram": survey.histogram(), "faults": survey.faults, "notes": survey.notes,
            "stages": [vars(stage) for stage in survey.stages()]})
    if args.strict:
        lacking = [f"{stage.name}: {stage.text}" for stage in survey.stages() if not stage.ready]
        if not root.saliency_dir.is_dir():
            lacking.append(f"no saliency maps in {root.saliency_dir} (python download.py saliency "
                           f"--data-root {args.root})")
        if lacking:
            raise UserError(f"{args.root} is incomplete; {'; '.join(lacking)}")
    return 1 if survey.faults else 0


def print_folders(survey: Survey) -> None:
    """How many files there are, and how many of them are good."""
    root, good = survey.root, survey.counts()
    print("\nfiles" + " " * 16 + "there     good  for so many images none")
    for name, folder, there in (
            ("images", root.image_dir, len(root.images)),
            ("annotations", root.annotation_dir, len(names(root.annotation_dir, ".xml"))),
            ("masks", root.mask_dir, len(names(root.mask_dir, ".png"))),
            ("saliency maps", root.saliency_dir, len(names(root.saliency_dir, ".png")))):
        print(f"  {name:13} {there:11,} {good[name]:8,}  {len(root.images) - good[name]:8,}   "
              f"{folder}")


def print_lists(survey: Survey) -> None:
    """Each list with its number of images and of labelled ones."""
    print("\nlists" + " " * 20 + "images  with labels")
    for name, entries in survey.lists.items():
        labelled = sum(survey.labels(entry) is not None for entry in entries)
        print(f"  {name:20} {len(entries):8,}  {labelled:11,}")
    if not survey.lists:
        print("  none")


def print_histogram(classes: Sequence[str], columns: Mapping[str, Sequence[int]]) -> None:
    """Images per class."""
    width = max(map(len, classes))
    print("\n" + "images per class".ljust(width + 2), *columns)
    for index, name in enumerate(classes):
        print(f"  {name:{width}}", *(f"{counts[index]:{len(head)},}"
                                     for head, counts in columns.items()))


def print_messages(title: str, kinds: Mapping[str, Sequence[str]], show: int) -> None:
    """The number of messages of each kind and the first of them."""
    print(f"\n{title}{'' if kinds else ': none'}")
    for kind, messages in kinds.items():
        print(f"  {len(messages):,} {kind}")
        for message in messages[:show]:
            print(f"      {message}")
        if len(messages) > show:
            print("      ...")


def classes_in(path: Path, classes: tuple[str, ...]) -> tuple[int, ...] | UserError:
    """The classes in a mask or annotation, or what is wrong with it."""
    try:
        if path.suffix == ".xml":
            return annotated_classes(path, classes)
        return mask_classes(read_label(path), path, len(classes))
    except UserError as error:
        return error


def make_list(args: argparse.Namespace) -> int:
    """Write a list in the official format. Nothing is written if a file is missing or faulty."""
    root = DataRoot(args.root)
    folder, suffix = (root.mask_dir, ".png") if args.from_masks else (root.annotation_dir, ".xml")
    if args.list is not None:
        ids = [entry.id for entry in root.entries(args.list, labels=False)]
    else:
        ids = sorted(name for name in names(folder, suffix) if name in root.images)
    if not ids:
        raise UserError(f"{folder}: no {suffix[1:].upper()} files that belong to an image")
    there = names(folder, suffix)
    missing = [image_id for image_id in ids if image_id not in there]
    if missing:
        raise UserError(f"{folder / missing[0]}{suffix}: missing"
                        + (f" (and {len(missing) - 1} more)" if missing[1:] else ""))
    work = partial(classes_in, classes=tuple(root.classes))
    paths = [there[image_id] for image_id in ids]
    results = list(progress(map_in_processes(work, paths, args.num_workers), "reading labels",
                            total=len(paths), unit="image"))
    errors = [str(result) for result in results if isinstance(result, UserError)]
    if errors:
        raise UserError(f"{len(errors)} faulty files: {'; '.join(errors[:5])}"
                        + (" ..." if errors[5:] else ""))
    lines = []
    for image_id, labels in zip(ids, results, strict=True):
        # A tab ends a name that holds spaces; the official format has none of these.
        separator = "\t" if " " in image_id else " "
        lines.append(image_id + separator + (" ".join(map(str, labels)) or NO_CLASS))
    with atomic_write(args.output) as tmp:
        tmp.write_text("\n".join(lines) + "\n", encoding="utf-8")
    empty = sum(not labels for labels in results)
    log.info("wrote %s: %d images%s", args.output, len(ids),
             f", {empty} of them with no class ({NO_CLASS})" if empty else "")
    return 0
