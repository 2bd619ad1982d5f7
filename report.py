"""See a run, finished or not: a page to explore, one table of all scores, and pictures.

In: RUN_DIR with whatever the stages have left there. Out: OUTPUT_DIR/report.html, one file that
needs nothing else; the table on the terminal and in table.md; pseudo_labels.png and, if DeepLab has
run, deeplab.png. Scores and masks are shown where they are.
"""

import argparse

from utils.files import UserError, write_text
from utils.logging import get_logger
from utils.options import StageParser, positive_int
from utils.stage import begin, launch

log = get_logger()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = StageParser(__doc__, images="train", output="", batch_size=None)
    parser.add_argument("--val-list", default="val", help="images that DeepLab is shown on")
    parser.add_argument("--images", type=positive_int, default=60, metavar="N",
                        help="images of each list on the page, evenly spaced; the 10 worst and "
                             "best come on top where there are masks")
    parser.add_argument("--rows", type=positive_int, default=6, help="images a picture")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the page, the table and the pictures of what there is."""
    import torch  # here, so that --help does not wait for it

    from datasets.layout import DataRoot
    from reporting.grids import write_grids
    from reporting.overview import write_report
    from reporting.run import read_scores, score_table

    root, run, output = DataRoot(args.data_root), args.run_dir, args.output_dir
    if not run.is_dir():
        raise UserError(f"--run-dir {run}: no such folder")
    begin(args, "report")
    if args.dry_run:
        return log.info("dry run: would write %s", output / "report.html")
    torch.set_num_threads(1)  # the images share the cores, not the pixels of one image
    write_grids(run, output, root, args.list, args.val_list, args.rows)
    lists = [args.list]
    if (run / "deeplab_labels").is_dir():
        lists.append(args.val_list)
    page = write_report(run, output, root, lists, args.images)
    table = score_table(read_scores(run))
    if table is None:
        log.info("no scores in %s: evaluate.py writes them, where there are masks", run / "scores")
    else:
        write_text(output / "table.md", table + "\n")
        print(f"\n{table}\n")
    print(page)


if __name__ == "__main__":
    launch(main, parse())
