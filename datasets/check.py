"""Prints what `datasets.survey` found out about a data root."""

import argparse
import sys
from collections.abc import Mapping, Sequence

from datasets.layout import DataRoot
from datasets.survey import Survey
from utils.files import UserError, write_json


def check(root: DataRoot, args: argparse.Namespace) -> None:
    """Print the report; ends the process with status 1 if files are faulty.

    Raises:
        UserError: with --strict, a stage is not ready.
    """
    survey = Survey(root, args.list, args.quick, args.num_workers)
    columns, stages = survey.histogram(), survey.stages()
    print(root.describe(), "good: " + ", ".join(f"{number:,} {what}" for what, number in
                                                survey.counts().items()), sep="\n")
    width = max(map(len, root.classes))
    print("\n" + "images per class".ljust(width + 2), *columns)
    for index, name in enumerate(root.classes):
        print(f"  {name:{width}}", *(f"{counts[index]:{len(head)},}"
                                     for head, counts in columns.items()))
    print_messages("faults", survey.faults, args.show)
    print_messages("notes", survey.notes, args.show)
    print("\nwhat the stages can do")
    for stage in stages:
        print(f"  {'ready  ' if stage.ready else 'not yet'}  {stage.name}: {stage.text}")
    if args.quick:
        print("images, masks and saliency maps were not opened (--quick)")
    if args.json is not None:
        write_json(args.json, {
            "root": args.root, "classes": root.classes, "quick": args.quick,
            "counts": survey.counts(), "histogram": columns, "faults": survey.faults,
            "lists": {name: len(entries) for name, entries in survey.lists.items()},
            "notes": survey.notes, "stages": [stage._asdict() for stage in stages]})
    lacking = [f"{stage.name}: {stage.text}" for stage in stages if not stage.ready]
    if not root.saliency_dir.is_dir():
        lacking.append(f"no saliency maps in {root.saliency_dir}")
    if args.strict and lacking:
        raise UserError(f"{args.root} is incomplete; {'; '.join(lacking)}")
    if survey.faults:
        sys.exit(1)


def print_messages(title: str, kinds: Mapping[str, Sequence[str]], show: int) -> None:
    """The number of messages of each kind and the first of them."""
    print(f"\n{title}{'' if kinds else ': none'}")
    for kind, messages in kinds.items():
        print(f"  {len(messages):,} {kind}")
        for message in [*messages[:show], "..."][:len(messages)]:
            print(f"      {message}")
