"""Step 3: pseudo labels at the images' own sizes.

In: images, their labels, a background cue and a checkpoint (the refinement network's, or the
classifier's alone). Out: OUTPUT_DIR/ID.png in the VOC palette: 0 background, class index + 1,
255 ignore. Masks are never opened. Finished images are skipped when it is started again.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from datasets import transforms
from datasets.layout import DataRoot
from datasets.voc import VOCDataset, collate
from labelling.crf import crf_labels, require_crf, score_probabilities
from labelling.labels import IGNORE, background_scores, fuse, save_label
from labelling.maps import save_maps
from models import build
from utils import checkpoint, options
from utils.engine import predict
from utils.files import output_folder
from utils.logging import get_logger
from utils.runtime import inference_loader
from utils.stage import begin, labelling_todo, launch, report_failures

log = get_logger()
# One image on its way: label file, labels (H, W), scores (K, H, W), their classes, image or None.
Labelled = tuple[Path, np.ndarray, torch.Tensor, list[int], np.ndarray | None]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = options.stage_parser(__doc__, images="train_aug", output="pseudo_labels",
                                  batch_size=8)
    options.add_checkpoint(parser, "refine/best.pth")
    group = options.add_labelling(parser)
    group.add_argument("--no-ignore", dest="ignore", action="store_false",
                       help="give every pixel a label (the rule used in validation)")
    group.add_argument("--save-maps", type=Path, metavar="DIR",
                       help="also write the scores, as localization maps of the images' own size")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    options.resolve_folders(args)
    root = DataRoot(args.data_root)
    entries = root.entries(args.list)
    saliency_dir = options.resolve_background(args, root.saliency_dir)
    if args.background == "crf":
        require_crf()
    if args.background != "saliency" and args.background_score < args.alpha:
        log.warning("--background-score %g has no effect: scores below --alpha %g count as 0; "
                    "lower --alpha too", args.background_score, args.alpha)
    source = checkpoint.read_network(args, len(root.classes))
    scales = options.input_sides(args)
    runtime = begin(args, {"images": root.image_dir, "list": args.list,
                           "checkpoint": args.checkpoint, "saliency": saliency_dir})
    if args.save_maps is not None:
        output_folder(args.save_maps, "--save-maps")
    model = runtime.place(source.into(build(source.network)))
    todo = labelling_todo(args, [entry.id for entry in entries], runtime)
    dataset = VOCDataset(root, entries, transforms.image_only(args.image_size),
                         saliency_dir=saliency_dir, pixels=args.background == "crf",
                         tolerant=True)
    loader = inference_loader(dataset, todo, args.batch_size, runtime, args.num_workers, collate)

    def forward(network: torch.nn.Module, batch: dict) -> list[torch.Tensor]:
        return network.localization_maps(batch["image"], batch["labels"], batch["size"], scales)

    errors: list[str] = []

    def labelled() -> Iterator[Labelled]:
        for batch, maps in predict(model, loader, runtime, forward, "pseudo labels"):
            errors.extend(batch["errors"])
            for i, scores in enumerate(maps):
                classes = batch["labels"][i].nonzero()[:, 0].tolist()
                saliency = batch["saliency"][i] if saliency_dir is not None else None
                background = background_scores(batch["size"][i], saliency, args.background_score)
                label = fuse(scores, classes, background.to(scores.device), alpha=args.alpha,
                             ignore=args.ignore)
                name = f"{batch['id'][i]}.png"
                if args.save_maps is not None:
                    save_maps(args.save_maps / name,
                              (scores.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy(), classes)
                pixels = batch["pixels"][i] if dataset.pixels else None
                yield args.output_dir / name, label.cpu().numpy(), scores, classes, pixels

    results = labelled()
    if args.background == "crf":
        results = sharpened(results, max(args.alpha, args.background_score), args.num_workers)
    for path, label, *_ in results:
        save_label(path, label)
    report_failures(errors, len(entries), runtime)


def sharpened(images: Iterable[Labelled], background: float, processes: int
              ) -> Iterator[tuple[Path, np.ndarray]]:
    """Labels drawn to the borders in the image by the CRF; what is to be ignored stays so.

    Args:
        images: as labelled by a threshold on the scores.
        background: that threshold.
        processes: the CRF takes longer than the network on a GPU, so that it has several; 0 or 1
            is this one.

    Yields:
        label file, labels (H, W) uint8.
    """
    jobs = (((path, label, classes), pixels, score_probabilities(scores.cpu().numpy(), background))
            for path, label, scores, classes, pixels in images)
    for (path, label, classes), strongest in crf_labels(jobs, processes):
        numbers = np.array([0, *(index + 1 for index in classes)], np.uint8)
        yield path, np.where(label == IGNORE, label, numbers[strongest])


if __name__ == "__main__":
    launch(main, parse())
