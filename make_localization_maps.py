"""Between the steps: multi-scale localization maps of a list of images.

In: images, their labels and a checkpoint (the classifier's, or the refinement network's).
Out: OUTPUT_DIR/ID.png, 8-bit maps of the classes present (`labelling/maps.py`). Finished images are
skipped when it is started again.
"""

import argparse

import torch

from datasets import transforms
from datasets.layout import DataRoot
from datasets.voc import VOCDataset, collate
from labelling.maps import save_maps
from models import build
from utils import checkpoint, options
from utils.engine import predict
from utils.runtime import inference_loader
from utils.stage import begin, labelling_todo, launch, report_failures


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = options.stage_parser(__doc__, images="train_aug", output="localization_maps",
                                  batch_size=8)
    options.add_checkpoint(parser, "classifier/best.pth")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    options.resolve_folders(args)
    root = DataRoot(args.data_root)
    entries = root.entries(args.list)
    source = checkpoint.read_network(args, len(root.classes))
    scales = options.input_sides(args)
    runtime = begin(args, {"images": root.image_dir, "list": args.list,
                           "checkpoint": args.checkpoint})
    model = runtime.place(source.into(build(source.network)))
    todo = labelling_todo(args, [entry.id for entry in entries], runtime)
    dataset = VOCDataset(root, entries, transforms.image_only(args.image_size), tolerant=True)
    loader = inference_loader(dataset, todo, args.batch_size, runtime, args.num_workers, collate)
    size = (args.image_size,) * 2

    def forward(network: torch.nn.Module, batch: dict) -> list[torch.Tensor]:
        return network.localization_maps(batch["image"], batch["labels"],
                                         [size] * len(batch["image"]), scales)

    errors = []
    for batch, maps in predict(model, loader, runtime, forward, "localization maps"):
        errors += batch["errors"]
        for i, scores in enumerate(maps):
            save_maps(args.output_dir / f"{batch['id'][i]}.png",
                      (scores.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy(),
                      batch["labels"][i].nonzero()[:, 0].tolist())
    report_failures(errors, len(entries), runtime)


if __name__ == "__main__":
    launch(main, parse())
