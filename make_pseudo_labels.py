"""Step 3: pseudo labels at the images' own sizes.

In: images, their labels, a background cue and a checkpoint (the refinement network's, or the
classifier's alone). Out: OUTPUT_DIR/ID.png in the VOC palette: 0 background, class index + 1,
255 ignore. Masks are never opened. Finished images are skipped when it is started again.
"""

import argparse
from pathlib import Path

import torch

from datasets import transforms
from datasets.layout import DataRoot
from datasets.voc import VOCDataset, collate
from models import build
from utils import checkpoint, options
from utils.crf import require_crf, sharpen
from utils.engine import predict
from utils.files import output_folder
from utils.labels import background_scores, fuse, save_label
from utils.maps import save_maps
from utils.runtime import inference_loader
from utils.stage import begin, labelling_todo, launch, report_failures


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
    source = checkpoint.read_network(args, len(root.classes))
    runtime = begin(args, {"images": root.image_dir, "list": args.list,
                           "checkpoint": args.checkpoint, "saliency": saliency_dir})
    if args.save_maps is not None:
        output_folder(args.save_maps, "--save-maps")
    todo = labelling_todo(args, [entry.id for entry in entries], runtime)
    model = runtime.place(source.into(build(source.network)))
    dataset = VOCDataset(root, entries, transforms.image_only(args.image_size),
                         saliency_dir=saliency_dir, pixels=args.background == "crf",
                         tolerant=True)
    loader = inference_loader(dataset, todo, args.batch_size, runtime, args.num_workers, collate)
    scales = [round(s * args.image_size) for s in args.scales]

    def forward(network: torch.nn.Module, batch: dict) -> list[torch.Tensor]:
        return network.localization_maps(batch["image"], batch["labels"], batch["size"], scales)

    errors = []
    for batch, maps in predict(model, loader, runtime, forward, "pseudo labels"):
        errors += batch["errors"]
        for i, scores in enumerate(maps):
            name, classes = f"{batch['id'][i]}.png", batch["labels"][i].nonzero()[:, 0].tolist()
            saliency = batch["saliency"][i] if saliency_dir is not None else None
            background = background_scores(batch["size"][i], saliency, args.background_score)
            if args.save_maps is not None:
                save_maps(args.save_maps / name,
                          (scores.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy(), classes)
            if args.background == "crf":
                scores, background = map(torch.from_numpy, sharpen(
                    scores.cpu().numpy(), background.numpy(), batch["pixels"][i], args.alpha))
            label = fuse(scores, classes, background.to(scores.device), alpha=args.alpha,
                         ignore=args.ignore)
            save_label(args.output_dir / name, label.cpu().numpy())
    report_failures(errors, len(entries), runtime)


if __name__ == "__main__":
    launch(main, parse())
