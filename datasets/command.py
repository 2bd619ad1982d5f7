"""The commands of `python -m datasets.voc`.

    check VOC2012                                     what is there, what is faulty, what each stage
                                                      says to it; exit status 1 if files are faulty
    make-list VOC2012 --from-masks --output FILE      an image list: ID INDEX INDEX ...
    masks COCO --list val --output DIR                COCO's instances as label PNGs
"""

import argparse
import io
import os
import sys
from pathlib import Path

from datasets.check import check
from datasets.coco import write_masks
from datasets.layout import DataRoot
from datasets.make_list import make_list
from utils.files import UserError
from utils.options import count, processes
from utils.stage import launch


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m datasets.voc", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("root", type=Path, help="the data set")
    shared.add_argument("--num-workers", type=processes, default=os.cpu_count() or 1, metavar="N",
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
    source.add_argument("--from-masks", action="store_true", help="labels are those of the masks")
    source.add_argument("--from-xml", action="store_true", help="... of the annotations")
    command.add_argument("--list", metavar="LIST", help="images: a list (default: all that have a "
                         "mask or annotation)")
    command.add_argument("--output", type=Path, required=True, metavar="FILE")
    command = commands.add_parser("masks", parents=[shared], help="render COCO's instances")
    command.add_argument("--list", metavar="LIST", default="val", help="(default: %(default)s)")
    command.add_argument("--output", type=Path, required=True, metavar="DIR",
                         help="a folder outside the data set")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """The command line; ends the process with its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    launch(run, parse(argv))
    sys.exit(0)


def run(args: argparse.Namespace) -> None:
    """One command.

    Raises:
        UserError: it cannot be done, or files are faulty.
    """
    if not args.root.is_dir():
        raise UserError(f"{args.root}: no such folder; for VOC 2012: python download.py voc2012 "
                        f"--data-root {args.root}")
    if args.command == "masks":
        write_masks(DataRoot(args.root), args.list, args.output, args.num_workers)
    elif args.command == "make-list":
        make_list(DataRoot(args.root), args.list, "mask" if args.from_masks else "annotation",
                  args.output, args.num_workers)
    else:
        check(DataRoot(args.root, tolerant=True), args)
