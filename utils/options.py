"""The options that all stages share, under one name each, with types that check their values."""

import argparse
from collections.abc import Callable
from pathlib import Path

from utils.files import UserError


def number(kind: type, low: float, high: float = float("inf"), open_low: bool = False
           ) -> Callable[[str], float]:
    """An argparse type: a `kind` (int or float) in [low, high], or (low, high]."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or (open_low and value == low):
            bounds = f"{'(' if open_low else '['}{low:g}, {high:g}]" if high != float("inf") \
                else f"{'above' if open_low else 'at least'} {low:g}"
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


MIN_SIDE = 8  # pixels: the networks halve their input three times
positive_int = number(int, 1)
side = number(int, MIN_SIDE)
count = number(int, 0)
positive = number(float, 0, open_low=True)
not_negative = number(float, 0)
share = number(float, 0, 1)
positive_share = number(float, 0, 1, open_low=True)


def stage_parser(doc: str, *, images: str, output: str, batch_size: int | None
                 ) -> argparse.ArgumentParser:
    """A parser with the options common to all stages.

    Args:
        doc: the script's docstring.
        images: default of --list.
        output: name of the default output folder inside the run folder.
        batch_size: default of --batch-size; None: the stage has no batches.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=type("Formatter", (
            argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter), {}))
    group = parser.add_argument_group("data and output")
    group.add_argument("--data-root", type=Path, required=True,
                       help="data set in VOC layout, or a folder of images with classes.txt")
    group.add_argument("--list", default=images, metavar="LIST",
                       help="images: a list file, or the name of one in ImageSets/Segmentation")
    group.add_argument("--run-dir", type=Path, metavar="DIR",
                       help="folder of the whole run (default: runs/NAME OF DATA ROOT)")
    group.add_argument("--output-dir", type=Path, metavar="DIR",
                       help=f"this stage's output (default: RUN_DIR/{output})")
    group.add_argument("--overwrite", action="store_true",
                       help="start over instead of going on with what is there")
    parser.set_defaults(default_output=output)
    if batch_size is not None:
        group = parser.add_argument_group("machine")
        group.add_argument("--batch-size", type=positive_int, default=batch_size,
                           help="global batch, whatever the number of processes")
        group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                           help="auto: the GPU, if there is one")
        group.add_argument("--amp", choices=("auto", "bf16", "fp16", "off"), default="auto",
                           help="mixed precision; auto: bf16 where the hardware runs it fast")
        group.add_argument("--num-workers", type=count, default=2,
                           help="data loading processes (0: in the main process)")
        group.add_argument("--seed", type=count, default=0, help="of all random choices")
    return parser


def add_training(parser: argparse.ArgumentParser, *, epochs: int, lr: float,
                 milestones: list[int], weight_decay: float) -> argparse._ArgumentGroup:
    """Options of a training; the defaults are the paper's. Returns the group to add to."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive_int, default=epochs, help="passes over the list")
    group.add_argument("--lr", type=positive, default=lr, help="base learning rate")
    group.add_argument("--milestones", type=positive_int, nargs="*", default=milestones,
                       help="epochs (from 1) at whose start the learning rate falls to a tenth")
    group.add_argument("--weight-decay", type=not_negative, default=weight_decay,
                       help="of all parameters")
    group.add_argument("--image-size", type=side, default=320,
                       help="side of the square the network sees, in pixels")
    group.add_argument("--init", default="imagenet", metavar="imagenet|none|FILE",
                       help="trunk weights: torchvision's ImageNet VGG-16, random, or a checkpoint")
    group.add_argument("--width", type=positive, default=1.0,
                       help="factor on all channel counts (1: the paper's VGG-16)")
    group.add_argument("--batch-norm", action="store_true",
                       help="batch norm after each 3x3 convolution, for training from scratch")
    group.add_argument("--val-list", default="train", metavar="LIST|none",
                       help="images whose masks choose the best checkpoint; without masks, or "
                            "with none, the last is the best")
    return group


def add_checkpoint(parser: argparse.ArgumentParser, default: str) -> None:
    """Options that name a checkpoint and what an official file does not tell about itself."""
    group = parser.add_argument_group("network")
    group.add_argument("--checkpoint", type=Path, metavar="FILE",
                       help=f"our checkpoint or an official one (default: RUN_DIR/{default})")
    group.add_argument("--network", choices=("classifier", "refine"),
                       help="for official files that do not tell")
    group.add_argument("--drs", choices=("learnable", "fixed", "none"),
                       help="for official files that do not tell")
    group.add_argument("--delta", type=positive_share, help="for official files of a fixed DRS")
    group.add_argument("--image-size", type=side,
                       help="side of the square input (default: as trained, else 320)")
    group.add_argument("--scales", type=positive, nargs="+", default=[0.8, 1.0, 1.2],
                       help="factors on the image size; maps are the maximum over them")
    parser.set_defaults(default_checkpoint=default)


def add_labelling(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options of the rule that turns maps into labels. Returns the group to add to."""
    group = parser.add_argument_group("labels")
    group.add_argument("--alpha", type=share, default=0.2,
                       help="localization scores below are no evidence (paper, \"Experiments\")")
    group.add_argument("--background", choices=("saliency", "threshold", "crf"),
                       help="background cue: saliency maps (the default where they are), a "
                            "constant score, or that sharpened by a CRF")
    group.add_argument("--background-score", type=positive_share, default=0.2, metavar="S",
                       help="the constant score of --background threshold and crf")
    group.add_argument("--saliency-dir", type=Path, metavar="DIR",
                       help="saliency maps (default: DATA_ROOT/saliency_map)")
    return group


def input_sides(args: argparse.Namespace) -> list[int]:
    """The sides in pixels that --scales asks for.

    Raises:
        UserError: one is too small for the network.
    """
    sides = [round(scale * args.image_size) for scale in args.scales]
    if min(sides) < MIN_SIDE:
        raise UserError(f"--scales: {min(args.scales):g} of {args.image_size} pixels is less than "
                        f"the {MIN_SIDE} that a network needs")
    return sides


def resolve_folders(args: argparse.Namespace) -> None:
    """Fill in --run-dir, --output-dir and --checkpoint where they were left out."""
    if args.run_dir is None:
        args.run_dir = Path("runs") / args.data_root.resolve().name
    if args.output_dir is None:
        args.output_dir = args.run_dir / args.default_output
    if getattr(args, "checkpoint", "") is None:
        args.checkpoint = args.run_dir / args.default_checkpoint
    for name in ("default_output", "default_checkpoint"):
        if hasattr(args, name):
            delattr(args, name)


def resolve_background(args: argparse.Namespace, default_dir: Path) -> Path | None:
    """Settle --background; return the saliency folder, or None where none is used.

    Raises:
        UserError: saliency is asked for, or nothing is said, and there are no saliency maps.
    """
    folder = args.saliency_dir or default_dir
    if args.background is None and folder.is_dir():
        args.background = "saliency"
    if args.background in ("threshold", "crf"):
        return None
    if not folder.is_dir():
        raise UserError(f"{folder}: no saliency maps; put them there, name their folder with "
                        "--saliency-dir, or choose --background threshold or crf")
    return folder
