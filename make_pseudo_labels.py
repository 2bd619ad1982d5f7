"""Step 3: pseudo labels at the images' own sizes.

In: images, their labels, a background cue and a checkpoint (the refinement network's, or the
classifier's alone). Out: OUTPUT_DIR/ID.png in the VOC palette: 0 background, class index + 1,
255 ignore. Masks are never opened. Finished images are skipped when it is started again.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.logging import get_logger
from utils.options import StageParser, input_sides, neutral, resolve_background
from utils.stage import begin, hold, launch, note, report_failures

if TYPE_CHECKING:
    from utils.provenance import Record

log = get_logger()
# Options that shape the labels, but not the maps that --save-maps writes.
RULE = ("alpha", "background", "background_score", "ignore")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; the defaults are the paper's."""
    parser = StageParser(__doc__, images="train_aug", output="pseudo_labels", batch_size=8)
    parser.add_checkpoint("refine/best.pth")
    parser.add_shard()
    group = parser.add_labelling()
    group.add_argument("--no-ignore", dest="ignore", action="store_false",
                       help="give every pixel a label (the rule used in validation)")
    neutral(group.add_argument(
        "--save-maps", type=Path, metavar="DIR",
        help="also write the scores, as localization maps of the images' own size"))
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Network, images and background cue in, a label PNG for each image out."""
    import torch  # here, so that --help does not wait for it

    from datasets.layout import DataRoot
    from datasets.transforms import ImageOnly
    from datasets.voc import VOCDataset, collate
    from labelling.crf import require_crf
    from labelling.labels import save_label
    from labelling.maps import save_maps, to_bytes
    from labelling.rule import background_scores, fuse
    from labelling.summary import LabelSummary
    from models import build
    from utils import checkpoint, outputs, provenance
    from utils.engine import predict
    from utils.files import output_folder
    from utils.loading import inference_batches, of_shard
    from utils.writing import Writers

    root = DataRoot(args.data_root)
    runtime = begin(args)
    entries = root.entries(args.list)
    saliency_dir = resolve_background(args, root.saliency_dir)
    if args.background == "crf":
        require_crf()
    if args.background != "saliency" and args.background_score < args.alpha:
        log.warning("--background-score %g has no effect: scores below --alpha %g count as 0; "
                    "lower --alpha too", args.background_score, args.alpha)
    source = checkpoint.read_network(args, root.classes)
    scales = input_sides(args, source.network)
    model: Any = runtime.move(source.instantiate(build))
    if args.compile:
        model.class_maps = runtime.compile(model.class_maps)

    with_crf = args.background == "crf"
    dataset = VOCDataset(root, entries, ImageOnly(args.image_size, keep_pixels=with_crf),
                         saliency_dir=saliency_dir, tolerant=True)
    record = outputs.made_from(args, root, entries, runtime.precision)
    record.add_file("checkpoint", args.checkpoint)
    folders = {args.output_dir: record}
    if args.save_maps is not None:
        folders[args.save_maps] = of_the_maps(record)
        if runtime.main and not args.dry_run:
            hold(output_folder(args.save_maps, "--save-maps"), args.shard)
    if saliency_dir is not None:
        provenance.upstream(record, "saliency", saliency_dir, [entry.id for entry in entries])
    unfinished = outputs.unfinished(folders, args, runtime)
    todo = of_shard(unfinished, args.batch_size, args.shard)
    batches = inference_batches(dataset, todo, args.batch_size, runtime, args.num_workers, collate)
    if args.dry_run:
        return batches.dry_run(len(todo), args.output_dir)

    def forward(network: Any, batch: dict) -> list[torch.Tensor]:
        return network.localization_maps(batch["image"], batch["labels"], batch["size"], scales)

    errors: list[str] = []
    summary = LabelSummary(root.classes)

    def labelled(writers: Writers) -> Any:
        """(name, label, classes, scores, image or None) of each image; the maps get written."""
        for batch, maps in predict(model, batches, runtime, forward, "pseudo labels"):
            errors.extend(batch["errors"])
            for i, scores in enumerate(maps):
                classes = batch["labels"][i].nonzero()[:, 0].tolist()
                saliency = batch["saliency"][i] if saliency_dir is not None else None
                background = background_scores(batch["size"][i], saliency, args.background_score)
                label = fuse(scores, classes, background.to(scores.device), alpha=args.alpha,
                             ignore=args.ignore)
                name = f"{batch['id'][i]}.png"
                if args.save_maps is not None:
                    writers.submit(save_maps, args.save_maps / name, to_bytes(scores), classes)
                yield name, label, classes, scores, batch["pixels"][i] if with_crf else None

    with Writers() as writers:
        results = labelled(writers)
        if with_crf:
            results = sharpened(results, max(args.alpha, args.background_score))
        for name, label, classes, *_ in results:
            label = label.cpu().numpy()
            summary.add(label, classes)
            writers.submit(save_label, args.output_dir / name, label)
    summary.skip("failed", len(errors))
    summary.gather(runtime)
    summary.skip("were there already", len(entries) - len(unfinished))
    summary.skip("are left to other shards", len(unfinished) - len(todo))
    if runtime.main:
        note(**summary.figures())
        log.info("%s", summary.line(args.output_dir))
        if warning := summary.warning():
            log.warning("%s", warning)
    report_failures(errors, len(entries), runtime)


def sharpened(images: Any, background: float) -> Any:
    """Labels drawn to the borders in the image by the CRF; what is to be ignored stays so.

    Args:
        images: (name, label (H, W), classes, scores (K, H, W), pixels) of each image.
        background: the threshold on the scores that its labels come from.

    Yields:
        (name, label, classes).
    """
    import torch

    from labelling.crf import crf_labels, score_probabilities
    from labelling.labels import IGNORE

    jobs = (((name, label, classes), pixels, score_probabilities(scores, background))
            for name, label, classes, scores, pixels in images)
    for (name, label, classes), strongest in crf_labels(jobs):
        numbers = torch.tensor([0, *(index + 1 for index in classes)], dtype=torch.uint8)
        drawn = numbers[torch.as_tensor(strongest).long().cpu()]
        label = torch.as_tensor(label).cpu()
        yield name, torch.where(label == IGNORE, label, drawn), classes


def of_the_maps(record: "Record") -> "Record":
    """The record of the maps, which the labelling rule does not shape."""
    return replace(record, options={name: value for name, value in record.options.items()
                                    if name not in RULE})


if __name__ == "__main__":
    launch(main, parse())
