"""What a run on a data root can do, and how long it should train: for run.sh.

In: a data root. Out: what was found and what will be left out, in words on stderr; settings as
lines `NAME VALUE` on stdout; with a share to hold out, two lists in RUN_DIR/lists.

The paper trains 15 and 30 epochs and 20,000 iterations on 10,582 images. On n images it is
sqrt(10,582 / n) times as many epochs: half as many steps on a quarter of the images, each of which
is seen twice as often. The learning rate falls at a third and two thirds of them, as in the paper.
A first look (--quick) takes a twentieth of that; without a GPU a fortieth, on small images, and
with the small DeepLab of the demo, whose images and iterations cost a fortieth as well. Where there
are no initial weights either, all networks are the demo's, which learn from random ones.
"""

import argparse
import logging
import math
import sys
from pathlib import Path

import torch

from datasets.layout import DataRoot, Entry
from datasets.lists import NO_CLASS, split
from datasets.voc import require_files
from utils.files import UserError, output_folder, write_text
from utils.logging import get_logger
from utils.options import positive_unit, seed
from utils.stage import launch

PAPER_IMAGES, EPOCHS, REFINE_EPOCHS, ITERATIONS = 10_582, 15, 30, 20_000
MAX_EPOCHS = 300
QUICK = 20  # times shorter, for a first look
SIDE, SMALL_SIDE, SMALL_ITERATIONS = 320, 160, 200  # the latter two for a first look without a GPU
BATCH = 10
# The demo's networks and rates, for trainings from random weights.
SMALL = {"NETWORK": "--width 0.125 --batch-norm", "RATE": "--lr 0.02", "REFINE_RATE": "--lr 0.001",
         "SUPPRESSION": "--drs fixed --delta 0.7"}
STARTS = {"none": "random weights", "imagenet": "ImageNet weights"}
COCO_WEIGHTS = Path("checkpoints/deeplabv1_resnet101-coco.pth")


def schedule(images: int, shorter: int = 1) -> dict[str, object]:
    """Epochs, milestones and iterations for so many images; see the top of the file."""
    factor = math.sqrt(PAPER_IMAGES / images) / shorter
    settings: dict[str, object] = {"BATCH": min(BATCH, images)}
    for name, paper in (("", EPOCHS), ("REFINE_", REFINE_EPOCHS)):
        epochs = min(MAX_EPOCHS, max(2, round(paper * factor)))
        third = epochs / 3
        settings[f"{name}EPOCHS"] = epochs
        # Epochs are counted from 1, and the rate falls at the start of a milestone.
        settings[f"{name}MILESTONES"] = f"{max(2, round(third))} {max(3, round(2 * third))}"
    iterations = ITERATIONS * math.sqrt(images / PAPER_IMAGES) / shorter
    settings["ITERATIONS"] = max(20, 10 * round(iterations / 10))
    return settings


def complete(root: DataRoot, folder: Path, entries: list[Entry]) -> bool:
    """Whether `folder` has a PNG for every entry."""
    try:
        require_files(folder, entries)
    except UserError:
        return False
    return bool(entries)


def plan(args: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    """The settings, and sentences on what will be done and left out."""
    root = DataRoot(args.root)
    said = [root.describe()]
    train = root.entries("train_aug")
    settings: dict[str, object] = {"LIST": "train_aug"}
    if args.val_share:
        train, held = split(train, args.val_share, args.seed)
        for name, entries in (("train_aug", train), ("val", held)):
            write_list(output_folder(args.run_dir / "lists") / f"{name}.txt", entries)
        settings |= {"LIST": args.run_dir / "lists" / "train_aug.txt",
                     "VAL": args.run_dir / "lists" / "val.txt"}
        said.append(f"held out: {len(held)} images by seed {args.seed}")
    elif root.has_list("val"):
        settings["VAL"] = "val"
    if all(len(entry.labels or ()) == len(root.classes) for entry in train):
        said.append("warning: every image shows every class, so there is nothing to tell apart: "
                    f"add images without them ({NO_CLASS} in a table, a subfolder called "
                    f"{NO_CLASS})")
    small = args.quick and not torch.cuda.is_available()
    scratch = small and args.init == "none"
    settings |= schedule(len(train), 2 * QUICK if small and not scratch else
                         QUICK if args.quick else 1)
    settings |= {"SIDE": SIDE, "CONFIG": "voc12.yaml"}
    if small:
        settings |= {"SIDE": SMALL_SIDE, "CONFIG": "demo.yaml", "ITERATIONS": SMALL_ITERATIONS}
        said.append(f"there is no GPU: --quick takes images of {SMALL_SIDE} pixels and the demo's "
                    + ("small networks" if scratch else "small DeepLab"))
    settings |= SMALL if scratch else {}
    said.append(f"trainings: {settings['EPOCHS']} epochs of the classifier, "
                f"{settings['REFINE_EPOCHS']} of the refinement, {settings['ITERATIONS']} "
                f"iterations of DeepLab on {len(train):,} images"
                + (" (--quick: a first look, not a result)" if args.quick else ""))
    settings |= background(args, root, train, said)
    scored = root.entries("train", labels=False) if root.has_list("train") else train
    if complete(root, root.mask_dir, scored):
        settings["SCORED"] = "train" if root.has_list("train") else settings["LIST"]
    else:
        said.append("left out: scores of the labels, and the plain CAM to compare them with, for "
                    "lack of masks")
    if "VAL" in settings and not complete(root, root.mask_dir, root.entries(
            str(settings["VAL"]), labels=False)):
        said.append("left out: DeepLab's scores, for lack of masks of val")
        del settings["VAL"]
    if "VAL" not in settings:
        said.append("DeepLab is shown on all images, those it was trained on among them")
    if small or args.init == "none":
        settings |= {"INIT_MODEL": "none", "ONLINE_LABEL": "off"}
    elif COCO_WEIGHTS.is_file():
        settings |= {"INIT_MODEL": COCO_WEIGHTS.resolve(), "ONLINE_LABEL": "official"}
    else:
        settings |= {"INIT_MODEL": "imagenet", "ONLINE_LABEL": "off"}
    start = str(settings["INIT_MODEL"])
    said.append(f"DeepLab starts from {STARTS.get(start, start)}")
    return settings, said


def background(args: argparse.Namespace, root: DataRoot, train: list[Entry], said: list[str]
               ) -> dict[str, object]:
    """Where the background cue comes from: what is asked for, else saliency maps where they are."""
    made = args.run_dir / "saliency"
    if args.background in ("threshold", "crf"):
        return {"BACKGROUND": args.background}
    if complete(root, root.saliency_dir, train):
        return {"BACKGROUND": "saliency"}
    if complete(root, made, train):
        return {"BACKGROUND": "saliency", "SALIENCY_DIR": made}
    if args.background == "saliency":
        said.append(f"saliency maps: will be made by make_saliency.py, into {made}")
        return {"BACKGROUND": "saliency", "SALIENCY_DIR": made, "MAKE_SALIENCY": "yes"}
    said.append("background: by a CRF, for lack of saliency maps; labels are better with them "
                "(--background saliency)")
    return {"BACKGROUND": "crf"}


def write_list(path: Path, entries: list[Entry]) -> None:
    """Write an image list with class indices."""
    lines = [f"{entry.id}\t{' '.join(map(str, entry.labels or ())) or '-'}\n" for entry in entries]
    write_text(path, "".join(lines))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m datasets.plan", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the data set")
    parser.add_argument("--run-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--quick", action="store_true", help=f"train {QUICK} times shorter")
    parser.add_argument("--val-share", type=positive_unit, metavar="SHARE", help="to hold out")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--background", choices=("saliency", "threshold", "crf"),
                        help="the cue (default: saliency maps where they are, else crf)")
    parser.add_argument("--init", default="imagenet", help="as of the trainings")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Print what will be done."""
    get_logger().setLevel(logging.ERROR)  # what is found and left out is said below
    settings, said = plan(args)
    print("\n".join(said), file=sys.stderr)
    for name, value in settings.items():
        print(name, value)


if __name__ == "__main__":
    launch(main, parse())
