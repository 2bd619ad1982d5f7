"""Score pseudo labels, predictions or localization maps against masks.

In: a folder of label PNGs, or of localization maps, which the label rule (without its ignore
steps) turns into labels; where no saliency maps are used, alpha is the background's score as well.
Out: a table, and OUTPUT_DIR/NAME.json with the scores, the mIoU of each image and, for maps, the
scores over a sweep of alphas. The only stage that must have masks.
"""

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import UserError, write_json
from utils.logging import get_logger, progress
from utils.options import StageParser, file_name, resolve_background, unit
from utils.stage import begin, launch

if TYPE_CHECKING:
    from labelling.metrics import Scores

log = get_logger()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = StageParser(__doc__, images="train", output="scores", batch_size=None)
    group = parser.add_argument_group("what to score")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--labels-dir", type=Path, metavar="DIR", help="label PNGs")
    source.add_argument("--maps-dir", type=Path, metavar="DIR", help="localization maps")
    group.add_argument("--mask-dir", type=Path, metavar="DIR",
                       help="ground truth (default: DATA_ROOT/SegmentationClassAug)")
    group.add_argument("--unlabelled", choices=("miss", "skip"), default="miss",
                       help="a predicted 255 counts as wrong, or the pixel is left out")
    group.add_argument("--name", type=file_name,
                       help="name of the result (default: that of the folder); it is written to "
                            "OUTPUT_DIR/NAME.json")
    parser.add_labelling(sweep=True)
    parser.add_argument("--alphas", type=unit, nargs="+", metavar="A",
                        help="with --maps-dir: the sweep (default: 0 to 0.6 in steps of 0.05); "
                             "the result itself is always that at --alpha")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Count pixels image by image, then print and write the scores."""
    import numpy as np
    import torch  # here, so that --help does not wait for it

    from datasets.layout import DataRoot
    from datasets.scoring import LabelCounter, MapCounter
    from datasets.voc import require_files
    from labelling.metrics import Scores, mean_iou
    from labelling.sweep import ALPHAS
    from utils.threads import ordered_map

    root = DataRoot(args.data_root)
    entries = root.entries(args.list, labels=False)
    folder, mask_dir = args.labels_dir or args.maps_dir, args.mask_dir or root.mask_dir
    if not mask_dir.is_dir():
        raise UserError(f"{mask_dir}: no such folder; evaluation needs masks (--mask-dir)")
    for needed in (folder, mask_dir):
        require_files(needed, entries)
    saliency_dir = None
    if args.maps_dir is not None:
        saliency_dir = resolve_background(args, root.saliency_dir)
        if args.background == "crf":
            raise UserError("--background crf: score the labels that make_pseudo_labels.py writes "
                            "with it (--labels-dir)")
    runtime = begin(args, f"scores_{args.name or folder.name}")
    torch.set_num_threads(1)  # the images share the cores, not the pixels of one image
    if args.maps_dir is None:
        alphas, sweep = [args.alpha], []
        count: LabelCounter | MapCounter = LabelCounter(root, folder, mask_dir, args.unlabelled)
    else:
        sweep = sorted(set(args.alphas or ALPHAS))
        alphas = sorted({*sweep, args.alpha})
        count = MapCounter(root, folder, mask_dir, saliency_dir, alphas)
    if args.dry_run:
        return log.info("dry run: would score %d images of %s", len(entries), folder)
    chosen, images = alphas.index(args.alpha), dict[str, float]()
    mine = entries[runtime.rank::runtime.world]
    total = np.zeros((len(alphas), len(root.classes) + 1, len(root.classes) + 2), np.int64)
    counted = ordered_map(count, (entry.id for entry in mine), runtime.cores)
    for entry, counts in zip(mine, progress(counted, "scoring", len(mine), "image", runtime.main),
                             strict=True):
        total += counts
        images[entry.id] = mean_iou(counts[chosen])
    total = runtime.sum(torch.from_numpy(total)).numpy()
    for part in runtime.gather(images):
        images |= part
    if runtime.main:
        scores = {alpha: Scores.of(counts) for alpha, counts in zip(alphas, total, strict=True)}
        report(args, ["background", *root.classes], {e.id: images[e.id] for e in entries},
               scores[args.alpha], {alpha: scores[alpha] for alpha in sweep})


def report(args: argparse.Namespace, names: list[str], images: dict[str, float],
           scores: "Scores", sweep: dict[float, "Scores"]) -> None:
    """Print the tables and write all as JSON.

    Args:
        images: id -> mIoU of that image, NaN where its mask has no label.
        scores: the result.
        sweep: for maps, the scores at other alphas.
    """
    folder = args.labels_dir or args.maps_dir
    if sweep:
        best = max(sweep, key=lambda alpha: sweep[alpha].miou)
        print("alpha   mIoU  precision  recall")
        for alpha, at in sweep.items():
            print(f"{alpha:5.2f}  {100 * at.miou:5.2f}      {100 * at.precision:5.2f}   "
                  f"{100 * at.recall:5.2f}{'   best' if alpha == best else ''}")
    print(f"{folder}: {len(images)} images" + (f", alpha {args.alpha:g}" if sweep else ""))
    print(scores.table(names))
    name = args.name or folder.name
    write_json(args.output_dir / f"{name}.json", {
        "name": name, "folder": folder, "list": args.list, "images": len(images), "labels": names,
        "alpha": args.alpha if sweep else None, "background": args.background if sweep else None,
        "unlabelled": args.unlabelled, **asdict(scores),
        "sweep": [{"alpha": alpha, "miou": at.miou, "precision": at.precision,
                   "recall": at.recall} for alpha, at in sweep.items()],
        "per_image": {image_id: round(miou, 4) for image_id, miou in images.items()
                      if not math.isnan(miou)}})
    log.info("wrote %s", args.output_dir / f"{name}.json")


if __name__ == "__main__":
    launch(main, parse())
