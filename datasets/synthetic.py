"""The built-in demo data: a generated data set of small creatures, in exact VOC layout.

In: a `DemoSpec` (classes, images per list, image size, seed). Out: a folder with JPEGImages,
Annotations, ImageSets/Segmentation/{train_aug,train,val,single}.txt, SegmentationClassAug,
saliency_map and classes.txt, made in seconds and the same for the same spec.

The data poses the problem that DRS solves. Only the head tells a creature's class. The body, most
of it, wears a coat that two classes prefer: it tells a little. Rocks wear the same coats, balls the
heads' colours, and the saliency maps are as wrong as an off-the-shelf detector's. `train_aug` lists
the training scenes, `train` a quarter of them, `val` other scenes, and `single` images of one
creature each: the stand-in for ImageNet.

    python -m datasets.synthetic data/demo --classes 6 --train 400 --val 100 --single 600
"""

import argparse
import json
import os
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

from datasets.creatures import CLASS_NAMES, COATS, HEADS, Pen, smooth_noise
from labelling.labels import IGNORE, SALIENCY_THRESHOLD, save_label
from utils.files import UserError
from utils.logging import get_logger, progress
from utils.processes import map_in_processes
from utils.stage import free, hold_path, launch

log = get_logger()
SPLITS = ("train", "val", "single")  # a position here is part of each image's seed
OVERSAMPLING = 2  # pictures are drawn so much larger, then averaged down: smooth edges
ATTEMPTS = 20  # to place the creatures of a scene
MIN_VISIBLE = 0.65  # share of a creature that nearer ones must leave visible


@dataclass(frozen=True)
class DemoSpec:
    """What fixes a demo data set; equal specs give equal files.

    `train`, `val` and `single` count images; `size` is the side of an image in pixels, around which
    height and width vary by some 12 %; `coat_preference` is the probability that a creature wears
    the coat of its class (class c shares its own with class c ^ 1) and not just any coat.
    """

    num_classes: int = 6
    train: int = 400
    val: int = 100
    single: int = 600
    size: int = 240
    seed: int = 0
    coat_preference: float = 0.85
    version: int = 1  # raise it when the same spec begins to draw other images

    def __post_init__(self) -> None:
        if not (2 <= self.num_classes <= len(HEADS) and 0 <= self.coat_preference <= 1
                and min(self.train, self.val, self.single) >= 1 and self.size >= 32):
            raise ValueError(f"demo data: 2 to {len(HEADS)} classes, 1 or more images a kind, "
                             f"size from 32, coat preference from 0 to 1; got {self}")


def draw_background(rng: Generator, height: int, width: int) -> np.ndarray:
    """A meadow under a sky, (H, W, 3) uint8 RGB."""
    sky = np.array((170, 200, 225), np.float32) + rng.uniform(-30, 30, 3).astype(np.float32)
    ground = np.array((130, 150, 95), np.float32) + rng.uniform(-35, 35, 3).astype(np.float32)
    ridge = height * (rng.uniform(0.1, 0.45) + 0.15 * smooth_noise(rng, 1, width, 6))
    below = np.arange(height)[:, None] > ridge
    relief = sum(weight * (smooth_noise(rng, height, width, cells) - 0.5)
                 for cells, weight in ((4, 60), (14, 40), (50, 35)))
    picture = np.where(below[..., None], ground, sky) + (relief * (0.5 + 0.5 * below))[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_scene(rng: Generator, spec: DemoSpec, single: bool
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """One image: picture (H, W, 3) uint8 RGB; creature number of each pixel (H, W) uint8, 0 for
    none; distractors (H, W) uint8, where visible; and the class of each creature."""
    aspect, scale = rng.uniform(0.88, 1.12), OVERSAMPLING * spec.size
    height, width = round(spec.size * aspect), round(spec.size / aspect)
    picture = draw_background(rng, height * OVERSAMPLING, width * OVERSAMPLING)
    extent = np.array((width, height)) * OVERSAMPLING
    clutter = np.zeros(picture.shape[:2], dtype=np.uint8)
    parts = np.stack((clutter, clutter))  # whose pixel it is, and whose head
    for _ in range(rng.integers(2, 7)):
        pen = Pen(picture, rng, extent * rng.uniform(0.02, 0.98, 2),
                  scale * rng.uniform(0.03, 0.10))
        pen.distractor(spec.num_classes)
        clutter[pen.window] |= pen.drawn
    classes: list[int] = []
    visible = np.zeros((2, 4), dtype=int)  # pixels left of each creature's body and of its head
    wanted = 1 if single else rng.choice((1, 2, 3), p=(0.3, 0.5, 0.2))
    for attempt in count():  # one that hides another, or whose head is cut off, is refused
        if len(classes) == wanted or (classes and attempt >= ATTEMPTS):
            break
        label = int(rng.integers(spec.num_classes))
        preferred = rng.random() < spec.coat_preference
        coat = label // 2 if preferred else int(rng.integers(len(COATS)))
        trial = picture.copy()
        unit = scale * rng.uniform(0.18, 0.30)
        pen = Pen(trial, rng, extent * rng.uniform(0.25, 0.75, 2), unit)
        pen.creature(label, coat)
        drawn, here = pen.drawn > 0, (slice(None), *pen.window)
        left = visible - [np.bincount(part[drawn], minlength=4) for part in parts[here]]
        if pen.head_cut() or (left < MIN_VISIBLE * visible)[:, 1:].any():
            continue
        classes.append(label)
        picture, visible = trial, left
        parts[here][:, drawn] = len(classes) * np.stack((pen.drawn, pen.head))[:, drawn]
        visible[:, len(classes)] = np.count_nonzero(pen.drawn), np.count_nonzero(pen.head)
    owner = parts[0]
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    picture = np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
    owner = np.ascontiguousarray(owner[::OVERSAMPLING, ::OVERSAMPLING])
    return picture, owner, clutter[::OVERSAMPLING, ::OVERSAMPLING] * (owner == 0), classes


def draw_saliency(rng: Generator, owner: np.ndarray, clutter: np.ndarray) -> np.ndarray:
    """An imperfect saliency map of the creatures, (H, W) uint8."""
    found = owner > 0
    if owner.max() > 1 and rng.random() < 0.06:  # a creature missed
        found &= owner != rng.integers(1, owner.max() + 1)
    number, shapes = cv2.connectedComponents(clutter)
    if number > 1 and rng.random() < 0.15:  # something that is no creature stands out
        found |= shapes == rng.integers(1, number)
    # Soft borders that stray in and out by some pixels and lose thin legs and tails.
    height, width = owner.shape
    soft = cv2.GaussianBlur(found.astype(np.float32), (0, 0), 0.5 + 0.01 * owner.shape[0])
    soft = soft + 0.6 * (smooth_noise(rng, height, width, 10) - 0.5) + rng.uniform(-0.08, 0.08)
    level = 2 * SALIENCY_THRESHOLD / (1 + np.exp(-8 * (soft - 0.5)))  # the border: the threshold
    return np.clip(2.55 * level, 0, 255).astype(np.uint8)


def write_annotation(path: Path, owner: np.ndarray, classes: list[int]) -> None:
    """VOC's XML: the file's name and size, the class and the box (from 1, inclusive) of each."""
    text = (f"<filename>{path.stem}.jpg</filename><size><width>{owner.shape[1]}</width>"
            f"<height>{owner.shape[0]}</height><depth>3</depth></size><segmented>1</segmented>")
    for number, label in enumerate(classes, start=1):
        places = np.argwhere(owner == number) + 1
        (top, left), (bottom, right) = places.min(0), places.max(0)
        text += (f"<object><name>{CLASS_NAMES[label]}</name><difficult>0</difficult><bndbox>"
                 f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
                 f"</bndbox></object>")
    root = ElementTree.fromstring(f"<annotation>{text}</annotation>")
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path)


def make_image(job: tuple[str, int], root: Path, spec: DemoSpec) -> str:
    """Draw and write image `index` of `split`; returns its line of an image list."""
    split, index = job
    rng = np.random.default_rng((spec.seed, SPLITS.index(split), index))
    picture, owner, clutter, classes = draw_scene(rng, spec, single=split == "single")
    name = f"{split}_{index:06d}"
    mask = np.array([0, *(label + 1 for label in classes)], dtype=np.uint8)[owner]
    mask[cv2.morphologyEx(owner, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0] = IGNORE
    Image.fromarray(picture).save(root / "JPEGImages" / f"{name}.jpg", quality=92)
    save_label(root / "SegmentationClassAug" / f"{name}.png", mask)
    saliency = draw_saliency(rng, owner, clutter)
    Image.fromarray(saliency).save(root / "saliency_map" / f"{name}.png")
    write_annotation(root / "Annotations" / f"{name}.xml", owner, classes)
    return " ".join([name, *map(str, sorted(set(classes)))])


def _write_all(root: Path, spec: DemoSpec, workers: int) -> None:
    lists = root / "ImageSets" / "Segmentation"
    for folder in (root / "JPEGImages", root / "SegmentationClassAug", root / "saliency_map",
                   root / "Annotations", lists):
        folder.mkdir(parents=True)
    jobs = [(split, index) for split in SPLITS for index in range(getattr(spec, split))]
    made = map_in_processes(partial(make_image, root=root, spec=spec), jobs, workers)
    lines = list(progress(made, "demo data", total=len(jobs), unit="image"))
    train, rest = lines[:spec.train], lines[spec.train:]
    for name, content in (("train_aug", train), ("train", train[::4]), ("val", rest[:spec.val]),
                          ("single", rest[spec.val:])):
        (lists / f"{name}.txt").write_text("\n".join(content) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES[:spec.num_classes]) + "\n")
    (root / "demo.json").write_text(json.dumps(asdict(spec), indent=1) + "\n")


def generate(root: Path, *, overwrite: bool = False, workers: int | None = None,
             **parameters: Any) -> None:
    """Make the demo data set of `DemoSpec(**parameters)` in the folder `root`.

    Does nothing when `root` already holds it. The folder appears whole or not at all.

    Args:
        overwrite: replace another demo data set in `root`.
        workers: processes; None for one per CPU.

    Raises:
        UserError: a parameter is out of range, or `root` holds anything else (with `overwrite`:
            no demo data set).
    """
    root = Path(root)
    try:
        spec = DemoSpec(**parameters)
    except ValueError as error:
        raise UserError(str(error)) from error
    stored = root / "demo.json"
    if stored.exists() and _stored(stored) == asdict(spec):
        return log.info("demo data: %s is up to date", root)
    if stored.exists() and not overwrite:
        raise UserError(f"{root} holds a demo data set of other parameters: pass --overwrite to "
                        "replace it")
    if not stored.exists() and root.exists() and any(root.iterdir()):
        raise UserError(f"{root} is not empty and no demo data set: choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    # One name, locked: what a killed run has left is found and replaced by the next.
    unfinished = root.with_name(f".{root.name}.unfinished")
    held = hold_path(root.with_name(f".{root.name}.lock"), f"{root}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        _write_all(unfinished, spec, workers or os.cpu_count() or 1)
        if root.exists():
            shutil.rmtree(root)
        unfinished.rename(root)
    finally:
        free(held)
    log.info("demo data: %d training scenes -> %s", spec.train, root)


def _stored(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # damaged: as one of other parameters
        return None


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line: see the docstring of the file."""
    parser = argparse.ArgumentParser(prog="python -m datasets.synthetic",
                                     description="Make the demo data set.")
    parser.add_argument("root", type=Path, help="folder to make")
    parser.add_argument("--classes", type=int, default=DemoSpec.num_classes, dest="num_classes")
    for name in ("train", "val", "single", "size", "seed", "coat_preference"):
        default = getattr(DemoSpec, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--overwrite", action="store_true", help="replace another demo data set")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Make the data set that the options describe."""
    generate(**vars(args))


if __name__ == "__main__":
    launch(main, parse())
