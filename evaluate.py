"""Score pseudo labels, predictions or localization maps against masks.

In: a folder of label PNGs, or of localization maps that are turned into labels at a threshold
alpha (one, or a sweep). Out: a table, and the same as JSON. The only stage that must have masks.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datasets.images import read_companion, read_image
from datasets.layout import DataRoot
from datasets.voc import require_files
from labelling.labels import SALIENCY_THRESHOLD, background_scores, fuse
from labelling.maps import load_maps
from labelling.metrics import ConfusionMatrix, Scores
from utils import options
from utils.files import UserError, write_json
from utils.logging import get_logger, progress
from utils.stage import begin, launch

log = get_logger()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = options.stage_parser(__doc__, images="train", output="scores", batch_size=None)
    group = parser.add_argument_group("what to score")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--labels-dir", type=Path, metavar="DIR", help="label PNGs")
    source.add_argument("--maps-dir", type=Path, metavar="DIR", help="localization maps")
    group.add_argument("--mask-dir", type=Path, metavar="DIR",
                       help="ground truth (default: DATA_ROOT/SegmentationClassAug)")
    group.add_argument("--unlabelled", choices=("miss", "skip"), default="miss",
                       help="a predicted 255 counts as wrong, or the pixel is left out")
    group.add_argument("--name", help="name of the result (default: that of the folder); it is "
                       "written to OUTPUT_DIR/NAME.json")
    options.add_labelling(parser)
    parser.add_argument("--alphas", type=options.share, nargs="+", metavar="A",
                        help="with --maps-dir: score at each of these alphas, report the best too")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    root = DataRoot(args.data_root)
    entries = root.entries(args.list, labels=False)
    folder, mask_dir = args.labels_dir or args.maps_dir, args.mask_dir or root.mask_dir
    if not mask_dir.is_dir():
        raise UserError(f"{mask_dir}: no such folder; evaluation needs masks (--mask-dir)")
    for needed in (folder, mask_dir):
        require_files(needed, entries)
    saliency_dir = None
    if args.maps_dir is not None:
        saliency_dir = options.resolve_background(args, root.saliency_dir)
        if args.background == "crf":
            raise UserError("--background crf: score the labels that make_pseudo_labels.py writes "
                            "with it (--labels-dir)")
    begin(args, {"predictions": folder, "masks": mask_dir, "list": args.list})
    torch.set_num_threads(1)  # each image is little work: more threads only wait for each other
    names = ["background", *root.classes]
    alphas = args.alphas or [args.alpha]
    matrices = {alpha: ConfusionMatrix(len(names), args.unlabelled) for alpha in alphas}
    for entry in progress(entries, "scoring", unit="image"):
        image, orientation = read_image(root.image(entry.id))
        size, file = (image.height, image.width), f"{entry.id}.png"
        mask = read_companion(mask_dir / file, size, orientation)
        if args.labels_dir is not None:
            labels = dict.fromkeys(alphas, read_companion(folder / file, size, orientation))
        else:
            saliency = None if saliency_dir is None else \
                read_companion(saliency_dir / file, size, orientation) > SALIENCY_THRESHOLD
            labels = labels_from_maps(folder / file, len(root.classes), size, saliency, alphas)
        for alpha, label in labels.items():
            try:
                matrices[alpha].update(label, mask)
            except ValueError as error:
                raise UserError(f"{folder / file} against {mask_dir / file}: {error}") from error
    results = {alpha: matrix.scores() for alpha, matrix in matrices.items()}
    report(args, names, results, len(entries), folder)


def labels_from_maps(path: Path, num_classes: int, size: tuple[int, int],
                     saliency: np.ndarray | None, alphas: list[float]
                     ) -> dict[float, torch.Tensor]:
    """Labels (H, W) of one image at each alpha, by the rule without its ignore steps.

    Without saliency, alpha itself is the background's score: a pixel belongs to its strongest
    class where that reaches alpha.
    """
    maps, classes = load_maps(path, num_classes)
    scores = torch.from_numpy(maps).float()[None] / 255
    if scores.shape[2:] != size and classes:
        scores = F.interpolate(scores, size, mode="bilinear", align_corners=True)
    scores = scores[0] if classes else torch.zeros(0, *size)
    known = None if saliency is None else torch.from_numpy(saliency)
    return {alpha: fuse(scores, classes, background_scores(size, known, alpha), alpha=alpha,
                        ignore=False) for alpha in alphas}


def report(args: argparse.Namespace, names: list[str], results: dict[float, Scores],
           images: int, folder: Path) -> None:
    """Print the table of the best alpha (or the only result) and write all as JSON."""
    best = max(results, key=lambda alpha: results[alpha].miou)
    if len(results) > 1:
        print("alpha   mIoU  precision  recall")
        for alpha, scores in results.items():
            print(f"{alpha:5.2f}  {100 * scores.miou:5.2f}      {100 * scores.precision:5.2f}   "
                  f"{100 * scores.recall:5.2f}{'   best' if alpha == best else ''}")
    print(f"{folder}: {images} images" + (f", alpha {best:g}" if args.maps_dir else ""))
    print(results[best].table(names))
    name = args.name or folder.name
    write_json(args.output_dir / f"{name}.json", {
        "name": name, "folder": folder, "list": args.list, "images": images, "labels": names,
        "alpha": best if args.maps_dir else None, **asdict(results[best]),
        "sweep": {f"{alpha:g}": scores.miou for alpha, scores in results.items()}})
    log.info("wrote %s", args.output_dir / f"{name}.json")


if __name__ == "__main__":
    launch(main, parse())
