"""Fetch VOC 2012 and the files released with the paper to where the other scripts look.

In: names of items, which `--list` explains, from their official addresses or from `--mirror`.
Out: data under --data-root, networks in --checkpoint-dir, and a line for each about what was done.
Run it again after whatever interruption: it goes on where it stopped, and fetches nothing twice.
"""

import argparse
import sys
from pathlib import Path

from fetching.catalogue import ITEMS, PAPER
from utils.files import UserError
from utils.options import count, number


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("items", nargs="*", metavar="ITEM",
        help=f"{', '.join(ITEMS)}, or all: those of the paper, from the first to {[*PAPER][-1]}")
    add("--list", action="store_true", help="show items, places, addresses and what is there")
    add("--data-root", type=Path, metavar="DIR", help="default: VOC2012, for coco2014 COCO2014")
    add("--checkpoint-dir", type=Path, default=Path("checkpoints"), metavar="DIR",
        help="for networks and SHA256SUMS.json, the recorded checksums (default: %(default)s)")
    add("--mirror", metavar="URL", help="a folder on a web server that has the same files under "
        "the same names; all of them are taken from there")
    add("--keep-archives", action="store_true", help="leave fetched archives in the data root")
    add("--retries", type=count, default=5, metavar="N", help="attempts in a row without progress, "
        "after the first (default: %(default)s)")
    add("--timeout", type=number(float, 0, 86_400, open_low=True), default=60.0, metavar="S",
        help="seconds without a byte after which a connection is dead (default: %(default)s)")
    args = parser.parse_args(argv)
    if unknown := set(args.items) - {*ITEMS, "all"}:
        parser.error(f"no item {min(unknown)!r}; there are {', '.join(ITEMS)}, all")
    if args.mirror and not args.mirror.startswith(("http://", "https://")):
        parser.error(f"--mirror: {args.mirror!r} is no http(s) address of a folder")
    args.list |= not args.items
    return args


def main(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    from fetching.store import Installation  # with requests, which --help need not wait for
    from utils.logging import setup_logging

    logger, status = setup_logging(), 0
    names = [name for item in args.items for name in (PAPER if item == "all" else [item])]
    for name in dict.fromkeys(names or ITEMS):
        for asset in ITEMS[name][1]:
            job = Installation(asset, args.data_root, args.checkpoint_dir, args.mirror)
            try:
                done = ("there" if job.is_done() else "-") if args.list else job.install(
                    args.retries, args.timeout, args.keep_archives)
            except KeyboardInterrupt:
                logger.error("interrupted: run the same command again to go on")
                return 130  # as a shell reports Ctrl-C
            except (UserError, OSError, NotImplementedError) as error:  # no locks there
                logger.error("error: %s: %s", name, " ".join(str(error).split()))
                done, status = "FAILED", 1
            print(f"{name:<13}  {done:<13}  {job.place}{f'  <-  {job.url}' * args.list}")
    return status


if __name__ == "__main__":
    sys.exit(main(parse()))
