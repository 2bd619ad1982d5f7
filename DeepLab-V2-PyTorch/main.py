"""DeepLab-V2 on the pseudo labels: train, score on val, score with CRF, segment any image.

    python main.py train   -c configs/voc12.yaml [SECTION.KEY=VALUE ...]
    python main.py test    -c configs/voc12.yaml
    python main.py crf     -c configs/voc12.yaml
    python main.py predict -c configs/voc12.yaml --input IMAGE_OR_FOLDER --output-dir DIR [--crf]
    python main.py export  -c configs/voc12.yaml --output deeplab.onnx

On several GPUs: GPUS=N bash train.sh ... The configuration says where everything
lies (configs/voc12.yaml explains each key); outputs go under EXP.OUTPUT_DIR:
models/EXP/NETWORK/SPLIT/checkpoint_final.pth, scores/EXP/NETWORK/SPLIT/{scores,scores_crf}.json.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # datasets and utils, the root's

from utils.options import MIN_SIDE, number
from utils.stage import launch

COMMANDS = {"train": "train on pseudo labels", "test": "score on SPLIT.VAL",
            "crf": "score on SPLIT.VAL with a fully connected CRF",
            "predict": "segment any images", "export": "write the network as an ONNX file"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command, options and overrides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, usage=(
            f"main.py {name} -c CONFIG [options] [SECTION.KEY=VALUE ...]"))
        command.add_argument("-c", "--config", type=Path, required=True, metavar="YAML")
        command.add_argument("--device", choices=("auto", "cpu", "cuda"),
                             help="short for RUN.DEVICE=...")
        command.add_argument("--overwrite", action="store_true",
                             help="start over instead of going on with what is there")
        command.add_argument("--dry-run", action="store_true",
                             help="open, build and check everything, draw one batch, and say what "
                                  "would be done")
        add_options(name, command)
    args, overrides = parser.parse_known_args(argv)
    if strange := [word for word in overrides if word.startswith("-") or "=" not in word]:
        parser.error(f"unknown argument {strange[0]}")
    if args.device:
        overrides.append(f"RUN.DEVICE={args.device}")
    if getattr(args, "save_logits", False):
        overrides.append("EVAL.SAVE_LOGITS=true")
    args.overrides = overrides
    return args


def add_options(name: str, command: argparse.ArgumentParser) -> None:
    """The options of one command besides those of all."""
    if name == "train":
        return
    command.add_argument("-m", "--checkpoint", type=Path, metavar="FILE",
                         help="ours or a released one (default: the final one of `train`)")
    if name == "predict":
        command.add_argument("--input", type=Path, required=True, help="image or folder")
        command.add_argument("--output-dir", type=Path, required=True, metavar="DIR",
                             help="for NAME.png (labels) and overlays/NAME.jpg")
        command.add_argument("--crf", action="store_true", help="sharpen with a CRF")
        command.add_argument("--max-side", type=number(int, MIN_SIDE, 100_000), default=1024,
                             metavar="PIXELS",
                             help="larger images are segmented with their longest side shrunk to "
                                  "this; labels keep the image's size (default: 1024)")
        return
    if name == "export":
        command.add_argument("--output", type=Path, required=True, metavar="FILE.onnx")
        return
    command.add_argument("--labels-dir", type=Path, metavar="DIR",
                         help="also write the predicted labels there, as palette PNGs")
    command.add_argument("--scores", type=Path, metavar="FILE",
                         help="write the scores there instead of under EXP.OUTPUT_DIR")
    if name == "test":
        command.add_argument("--save-logits", action="store_true",
                             help="short for EVAL.SAVE_LOGITS=true")
    else:
        command.add_argument("--stored-logits", action="store_true",
                             help="read the logits that `test --save-logits` stored, instead of "
                                  "running the network")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from libs.evaluation import evaluate  # here, so that --help does not wait for torch
    from libs.experiment import Experiment
    from libs.predict import export, predict
    from libs.train import train

    experiment = Experiment(args)
    {"train": train, "test": evaluate, "crf": evaluate, "predict": predict, "export": export}[
        args.command](args, experiment)


if __name__ == "__main__":
    launch(main, parse())
