"""Fetch VOC 2012 and the files released with the paper to where the other scripts look.

In: names of items (`--list` shows them), from their official addresses or from `--mirror`.
Out: data under --data-root, checkpoints in --checkpoint-dir, and a table of what was done.
Run it again after whatever interruption: it goes on where it stopped, and fetches nothing twice.

    python download.py --list
    python download.py voc2012 saliency lists --data-root VOC2012
    python download.py all
"""

import argparse
import sys
from pathlib import Path
from urllib.parse import urlsplit

from utils.files import UserError
from utils.installer import Store
from utils.logging import get_logger, setup_logging
from utils.released import ITEMS

FAILED = "FAILED"
INTERRUPTED = 130  # the exit status of a command that was ended with Ctrl-C


def item_name(text: str) -> str:
    """An item's name, or `all`."""
    if text not in (*ITEMS, "all"):
        raise argparse.ArgumentTypeError(f"no item {text!r}; there are {', '.join(ITEMS)}, all")
    return text


def mirror_url(text: str) -> str:
    """A base URL that file names can be added to."""
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
        raise argparse.ArgumentTypeError(f"{text!r} is no http(s) address of a folder")
    return text


def retry_count(text: str) -> int:
    """A whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def seconds(text: str) -> float:
    """A positive time, up to a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 0 to 86400")
    return value


def build_parser() -> argparse.ArgumentParser:
    """All options of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="*", type=item_name, metavar="ITEM",
                        help=f"what to fetch: {', '.join(ITEMS)}, or all")
    parser.add_argument("--list", action="store_true",
                        help="show the items, their addresses and places, and what is there")
    parser.add_argument("--data-root", type=Path, default=Path("VOC2012"), metavar="DIR",
                        help="the VOC2012 folder (default: %(default)s)")
    parser.add_argument("--checkpoint-dir", type=Path, default=Path("checkpoints"),
                        metavar="DIR", help="for .pth files and SHA256SUMS.json, the recorded "
                        "checksums (default: %(default)s)")
    parser.add_argument("--mirror", type=mirror_url, metavar="URL",
                        help="a folder on a web server that has the same files under the same "
                        "names; all of them are taken from there")
    parser.add_argument("--keep-archives", action="store_true",
                        help="do not delete fetched archives once they are unpacked")
    parser.add_argument("--retries", type=retry_count, default=5, metavar="N",
                        help="attempts in a row without progress, after the first "
                        "(default: %(default)s)")
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="S",
                        help="seconds without a byte after which a connection counts as dead "
                        "(default: %(default)s)")
    return parser


def list_items(store: Store) -> None:
    """Print what there is, where from, where to, and whether it is there already."""
    for item, (about, assets) in ITEMS.items():
        print(f"{item}: {about}")
        for asset in assets:
            print(f"  {store.state(asset):<13}  {store.destination(asset)}  <-  "
                  f"{store.url(asset)}")


def install_all(store: Store, items: list[str]) -> bool:
    """Install the items one by one, then print a summary; returns whether all are there."""
    work = [(item, asset) for item in items for asset in ITEMS[item][1]]
    rows = [("ITEM", "FILE", "RESULT", "PLACE")]
    try:
        for item, asset in work:
            try:
                result = store.install(asset)
            except (UserError, OSError) as error:
                get_logger().error("error: %s: %s", item, error)
                result = FAILED
            rows.append((item, asset.name, result, str(store.destination(asset))))
    finally:  # also after Ctrl-C
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print(*(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), sep="  ")
    return all(row[2] != FAILED for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.items and not args.list:
        parser.error("name the items to fetch, or use --list")
    setup_logging()
    store = Store(args.data_root, args.checkpoint_dir, args.mirror, args.retries, args.timeout,
                  args.keep_archives)
    try:
        if args.list:
            list_items(store)
            return 0
        items = list(ITEMS) if "all" in args.items else list(dict.fromkeys(args.items))
        return 0 if install_all(store, items) else 1
    except KeyboardInterrupt:
        get_logger().error("interrupted: run the same command again to go on")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
