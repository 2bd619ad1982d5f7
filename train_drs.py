"""Step 1: train the classifier with DRS modules on image-level labels.

In: images and their labels (no masks needed). Out: OUTPUT_DIR/{last,best}.pth, metrics.json and
TensorBoard events. Start it again to go on after an interruption.
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F

from datasets import transforms
from datasets.layout import DataRoot
from datasets.voc import VOCDataset, collate, validation_set
from models.classifier import Classifier
from utils import options
from utils.engine import Batch
from utils.stage import begin, launch
from utils.training import train_network

# Factors on the learning rate (paper, "Implementation Details").
LR_FACTORS = {"trunk_weights": 1, "trunk_biases": 2, "head_weights": 10, "head_biases": 20}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = options.stage_parser(__doc__, images="train_aug", output="classifier", batch_size=10)
    group = parser.add_argument_group("DRS")
    group.add_argument("--drs", choices=("learnable", "fixed", "none"), default="learnable",
                       help="suppression controller; none is the plain CAM baseline")
    group.add_argument("--delta", type=options.positive_share, default=0.55,
                       help="control value of --drs fixed")
    group = options.add_training(parser, epochs=15, lr=1e-3, milestones=[5, 10],
                                 weight_decay=5e-4)
    group.add_argument("--resize", type=options.positive_int,
                       help="side that images are resized to before the random crop "
                            "(default: 1.2 x image size)")
    options.add_labelling(parser)
    args = parser.parse_args(argv)
    args.resize = args.resize or round(1.2 * args.image_size)
    if args.resize < args.image_size:
        parser.error(f"--resize {args.resize} is smaller than --image-size {args.image_size}")
    return args


def main(args: argparse.Namespace) -> None:
    root = DataRoot(args.data_root)
    runtime = begin(args, {"images": root.image_dir, "list": args.list, "weights": args.init})
    model = Classifier(len(root.classes), args.drs, args.delta, args.width, args.batch_norm)
    train_set = VOCDataset(root, root.entries(args.list),
                           transforms.classifier_training(args.resize, args.image_size),
                           seed=args.seed)
    train_network(args, runtime, model, root.classes,
                  partial(torch.optim.SGD, momentum=0.9, nesterov=True), LR_FACTORS,
                  classification_loss, train_set, validation_set(root, args), collate)


def classification_loss(network: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Multi-label soft margin loss of the image-level labels."""
    return F.multilabel_soft_margin_loss(network(batch["image"]).float(), batch["labels"])


if __name__ == "__main__":
    launch(main, parse())
