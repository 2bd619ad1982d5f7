"""Step 2: train the refinement network on the localization maps.

In: images and the maps of make_localization_maps.py. Out: OUTPUT_DIR/{last,best}.pth,
metrics.json and TensorBoard events. Start it again to go on after an interruption.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from datasets import transforms
from datasets.layout import DataRoot
from datasets.voc import VOCDataset, collate, validation_set
from models.refine import RefineNet, refinement_target
from utils import options
from utils.engine import Batch
from utils.stage import begin, launch
from utils.training import train_network

LR_FACTORS = dict.fromkeys(("trunk_weights", "trunk_biases", "head_weights", "head_biases"), 1)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = options.stage_parser(__doc__, images="train_aug", output="refine", batch_size=10)
    options.add_training(parser, epochs=30, lr=1e-4, milestones=[10, 20], weight_decay=0.0)
    parser.add_argument("--maps-dir", type=Path, metavar="DIR",
                        help="localization maps (default: RUN_DIR/localization_maps)")
    options.add_labelling(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    options.resolve_folders(args)
    maps_dir = args.maps_dir or args.run_dir / "localization_maps"
    root = DataRoot(args.data_root)
    runtime = begin(args, {"images": root.image_dir, "list": args.list, "maps": maps_dir,
                           "weights": args.init})
    model = RefineNet(len(root.classes), args.width, args.batch_norm)
    train_set = VOCDataset(root, root.entries(args.list),
                           transforms.refinement_training(args.image_size),
                           maps_dir=maps_dir, seed=args.seed)
    train_network(args, runtime, model, root.classes, torch.optim.Adam, LR_FACTORS,
                  refinement_loss, train_set, validation_set(root, args), collate)


def refinement_loss(network: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean squared error against each pixel's strongest localization maps."""
    target = refinement_target(batch["maps"].float() / 255)
    return F.mse_loss(network(batch["image"]).float(), target)


if __name__ == "__main__":
    launch(main, parse())
