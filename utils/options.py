"""The options that all stages share, under one name each, with types that check their values.

Nothing heavy is imported here: `--help` and a mistyped option are answered in a blink.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils.files import UserError

MIN_SIDE, MAX_SIDE = 8, 8192  # pixels: the networks halve their input three times
MAX_SEED = 2**32 - 1  # what NumPy's generators take


def number(kind: type, low: float, high: float, open_low: bool = False) -> Callable[[str], float]:
    """An argparse type: a `kind` (int or float) in [low, high], or (low, high]."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or (open_low and value == low):
            bounds = f"{'above' if open_low else 'from'} {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {text[:40]}")
        return value

    parse.__name__ = kind.__name__
    return parse


positive_int = number(int, 1, 1e9)
count = number(int, 0, 1e9)
processes = number(int, 0, 1024)
side = number(int, MIN_SIDE, MAX_SIDE)
seed = number(int, 0, MAX_SEED)
positive = number(float, 0, 1e12, open_low=True)
not_negative = number(float, 0, 1e6)
factor = number(float, 0, 16, open_low=True)
unit = number(float, 0, 1)
positive_unit = number(float, 0, 1, open_low=True)


def file_name(text: str) -> str:
    """An argparse type: a name that stays in its folder."""
    if not 0 < len(text) <= 100 or text.startswith(".") or set(text) & set("/\\\0"):
        raise argparse.ArgumentTypeError(f"must be a plain file name, got {text[:40]!r}")
    return text


def shard(text: str) -> tuple[int, int]:
    """An argparse type: "I/N", the I-th of N shards, counted from 1."""
    number_of, _, total = text.partition("/")
    if not (number_of.isdecimal() and total.isdecimal() and 1 <= int(number_of) <= int(total)
            and int(total) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, got {text[:40]!r}")
    return int(number_of), int(total)


def backbone(text: str) -> str | None:
    """An argparse type: the name of a network; None is the paper's, which records of earlier
    trainings do not name."""
    return None if text == "vgg16" else text


def neutral(option: argparse.Action) -> argparse.Action:
    """Mark an option that does not shape the result: work may go on with another value of it."""
    option.shapes_result = False  # type: ignore[attr-defined]
    return option


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Adds the default to the help of options that have one worth telling."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, False, True, argparse.SUPPRESS) or "default" in text:
            return text
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) \
            else "%(default)s"
        return f"{text} (default: {default})"


class StageParser(argparse.ArgumentParser):
    """The parser of a stage, with the options common to all.

    `parse_args` also fills in --run-dir, --output-dir and --checkpoint where they were left out,
    and lists in `args.shaping` the names of the options that shape the result.

    Args:
        doc: the script's docstring.
        images: default of --list; None: every image.
        output: name of the default output folder inside the run folder.
        batch_size: default of --batch-size; None: the stage runs no network.
        pytorch: the network is one of PyTorch's, which has precision and compiler to choose.
    """

    def __init__(self, doc: str | None, *, images: str | None, output: str,
                 batch_size: int | None, pytorch: bool = True) -> None:
        super().__init__(description=doc, formatter_class=_Formatter)
        self.output, self.checkpoint = output, ""
        group = self.add_argument_group("data and output")
        neutral(group.add_argument(
            "--data-root", type=Path, required=True,
            help="data set in VOC layout, or a folder of images (docs/own_data.md)"))
        neutral(group.add_argument(
            "--list", default=images, metavar="LIST",
            help="images: a list file, or the name of one in ImageSets/Segmentation"))
        neutral(group.add_argument(
            "--run-dir", type=Path, metavar="DIR",
            help="folder of the whole run (default: runs/NAME OF DATA ROOT)"))
        neutral(group.add_argument("--output-dir", type=Path, metavar="DIR",
                                   help=f"this stage's output (default: RUN_DIR/{output})"))
        neutral(group.add_argument("--overwrite", action="store_true",
                                   help="start over instead of going on with what is there"))
        neutral(group.add_argument(
            "--dry-run", action="store_true",
            help="open, build and check everything, draw one batch, say what would be done"))
        if batch_size is not None:
            self._add_machine(batch_size, pytorch)

    def _add_machine(self, batch_size: int, pytorch: bool) -> None:
        group = self.add_argument_group("machine")
        # These two shape a training, see add_training; labelling they change to rounding or not.
        self._random = [
            neutral(group.add_argument("--batch-size", type=positive_int, default=batch_size,
                                       help="global batch, whatever the number of processes")),
            neutral(group.add_argument("--seed", type=seed, default=0,
                                       help="of all random choices"))]
        neutral(group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                                   help="auto: the GPU, if there is one"))
        if pytorch:
            neutral(group.add_argument(
                "--amp", choices=("auto", "bf16", "fp16", "off"), default="auto",
                help="mixed precision; auto: bf16 where the hardware runs it fast"))
            neutral(group.add_argument(
                "--compile", action="store_true",
                help="compile the network first (minutes, then faster steps)"))
        neutral(group.add_argument("--num-workers", type=processes, metavar="N",
                                   help="data loading processes; 0: in the main process "
                                        "(default: the cores that this process has)"))

    def add_training(self, *, epochs: int, lr: float, milestones: list[int], weight_decay: float
                     ) -> argparse._ArgumentGroup:
        """Options of a training; the defaults are the paper's. Returns the group to add to."""
        group = self.add_argument_group("training")
        for option in self._random:
            option.shapes_result = True  # type: ignore[attr-defined]
        # More epochs may follow later: what was trained so far is not changed by their number.
        neutral(group.add_argument("--epochs", type=positive_int, default=epochs,
                                   help="passes over the list"))
        neutral(group.add_argument(
            "--save-every", type=not_negative, default=30, metavar="MINUTES",
            help="save within an epoch, too, after this long; 0: at the ends of epochs only"))
        group.add_argument("--lr", type=positive, default=lr, help="base learning rate")
        group.add_argument("--milestones", type=positive_int, nargs="*", default=milestones,
                           help="epochs (from 1) at whose start the learning rate falls to a tenth")
        group.add_argument("--weight-decay", type=not_negative, default=weight_decay,
                           help="of all parameters")
        group.add_argument("--image-size", type=side, default=320,
                           help="side of the square the network sees, in pixels")
        neutral(group.add_argument(  # recorded by the file's content
            "--init", default="imagenet", metavar="imagenet|none|FILE",
            help="trunk weights: torchvision's for ImageNet, random, or a checkpoint"))
        group.add_argument("--backbone", type=backbone, metavar="NAME",
                           help="torchvision's vgg16_bn, resnet18 and so on, or timm:NAME "
                                "(docs/backbones.md; default: vgg16, the paper's)")
        group.add_argument("--output-stride", type=int, choices=(8, 16, 32),
                           help="pixels to a cell of the maps, for other networks (default: 16 "
                                "where they can be dilated, else 32)")
        group.add_argument("--width", type=factor, default=1.0,
                           help="factor on all channel counts (1: the paper's VGG-16)")
        group.add_argument("--batch-norm", action="store_true",
                           help="batch norm after each 3x3 convolution, for training from scratch")
        group.add_argument("--val-list", default="train", metavar="LIST|none",
                           help="images whose masks choose the best checkpoint; without masks, or "
                                "with none, the last is the best")
        return group

    def add_checkpoint(self, default: str) -> None:
        """Options that name a checkpoint and what an official file does not tell about itself."""
        self.checkpoint = default
        group = self.add_argument_group("network")
        neutral(group.add_argument(  # recorded by its content
            "--checkpoint", type=Path, metavar="FILE",
            help=f"our checkpoint or an official one (default: RUN_DIR/{default})"))
        group.add_argument("--network", choices=("classifier", "refine"),
                           help="for official files that do not tell")
        group.add_argument("--drs", choices=("learnable", "fixed", "none"),
                           help="for official files that do not tell")
        group.add_argument("--delta", type=positive_unit, help="for official files of a fixed DRS")
        group.add_argument("--image-size", type=side,
                           help="side of the square input (default: as trained, else 320)")
        group.add_argument("--scales", type=factor, nargs="+", default=[0.8, 1.0, 1.2],
                           help="factors on the image size; maps are the maximum over them")

    def add_shard(self) -> None:
        """An option that leaves to other runs, at the same time or later, all but a share."""
        neutral(self.add_argument_group("sharing").add_argument(
            "--shard", type=shard, metavar="I/N",
            help="do the I-th of N shares of the list's batches, into the same output folder as "
                 "the others, with the same --batch-size (docs/cluster.md)"))

    def add_labelling(self, sweep: bool = False) -> argparse._ArgumentGroup:
        """Options of the rule that turns maps into labels. Returns the group to add to.

        Args:
            sweep: the rule is used at many alphas, each of which is the background's score, too.
        """
        group = self.add_argument_group("labels")
        group.add_argument("--alpha", type=unit, default=0.2,
                           help="localization scores below are no evidence (paper, Experiments)")
        group.add_argument("--background", choices=("saliency", "threshold", "crf"),
                           help="background cue: saliency maps (the default where they are), a "
                                "constant score, or that sharpened by a CRF")
        if not sweep:
            group.add_argument("--background-score", type=positive_unit, default=0.2, metavar="S",
                               help="the constant score of --background threshold and crf")
        neutral(group.add_argument(  # recorded by the files in it
            "--saliency-dir", type=Path, metavar="DIR",
            help="saliency maps (default: DATA_ROOT/saliency_map)"))
        return group

    def parse_args(self, args: Any = None,  # type: ignore[override]
                   namespace: Any = None) -> argparse.Namespace:
        """The options, complete."""
        parsed = super().parse_args(args, namespace)
        if getattr(parsed, "shard", None) and parsed.overwrite:
            self.error("--shard I/N with --overwrite would remove what other shards have done; "
                       "remove the output folder first, instead")
        if parsed.run_dir is None:
            parsed.run_dir = Path("runs") / parsed.data_root.resolve().name
        if parsed.output_dir is None:
            parsed.output_dir = parsed.run_dir / self.output
        if self.checkpoint and parsed.checkpoint is None:
            parsed.checkpoint = parsed.run_dir / self.checkpoint
        parsed.defaults = {action.dest: action.default for action in self._actions
                           if action.default is not None}
        parsed.shaping = [action.dest for action in self._actions
                          if action.dest != "help" and getattr(action, "shapes_result", True)]
        return parsed


def trained_side(record: Any, checkpoint: Path) -> int:
    """The image size that the record in a checkpoint tells; where there is none, the paper's 320.

    Raises:
        UserError: it is no such record, or no such size.
    """
    try:
        return int(side(str((record or {}).get("options", {}).get("image_size", 320))))
    except (AttributeError, ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"checkpoint {checkpoint}: damaged, it does not tell the size of the "
                        f"images it was trained with ({error}); say it with --image-size"
                        ) from error


def input_sides(args: argparse.Namespace, network: Mapping[str, Any]) -> list[int]:
    """The sides in pixels that --scales asks for.

    Args:
        network: the description of the network (`utils.checkpoint.Checkpoint`).

    Raises:
        UserError: one is too small for the network, or absurdly large.
    """
    smallest = max(MIN_SIDE, network.get("output_stride", MIN_SIDE))
    sides = [round(scale * args.image_size) for scale in args.scales]
    for scale, length in zip(args.scales, sides, strict=True):
        if not smallest <= length <= MAX_SIDE:
            raise UserError(f"--scales: {scale:g} of {args.image_size} pixels is {length}; this "
                            f"network takes {smallest} to {MAX_SIDE}")
    return sides


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
