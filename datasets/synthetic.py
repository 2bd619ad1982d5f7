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
import logging
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

from utils.labels import IGNORE, SALIENCY_THRESHOLD, save_label

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "single")  # a position here is part of each image's seed
OVERSAMPLING = 2  # pictures are drawn so much larger, then averaged down: smooth edges
ATTEMPTS = 20  # to place the creatures of a scene
MIN_VISIBLE = 0.65  # share of a creature that nearer ones must leave visible
# Heads, which tell the class: colours of face and trim, trim shapes behind the face and on it.
# Shapes are circles (x, y, radius) or polygons; x forward, y up, 1 is the head's radius.
HEADS = {
    "hare": ((235, 130, 165), (250, 205, 215), [[(-.7, .5), (-.75, 2.3), (-.3, 2.5), (-.05, .8)],
             [(.05, .8), (.2, 2.4), (.65, 2.3), (.55, .5)]], [(.8, -.1, .2)]),
    "cat": ((245, 140, 25), (255, 225, 170), [[(-1, .2), (-.95, 1.6), (-.1, .9)],
            [(.1, .9), (.85, 1.6), (1, .2)]], [(.55, -.4, .42)]),
    "duck": ((25, 140, 70), (250, 190, 30), [(-.75, .75, .35), (-.35, 1.05, .35)],
             [[(.6, .3), (1.9, -.05), (1.9, -.3), (.5, -.45)]]),
    "mouse": ((75, 110, 225), (190, 200, 250), [(-.8, .85, .72), (.7, .95, .66)], [(1, -.15, .22)]),
    "ox": ((165, 35, 35), (245, 235, 205), [[(-.5, .6), (-1.5, 1.1), (-1.4, 2), (-1, 1.4),
           (.1, .9)], [(.5, .6), (1.5, 1.1), (1.4, 2), (1, 1.4), (-.1, .9)]], [(.65, -.4, .45)]),
    "snail": ((140, 55, 175), (225, 180, 240), [[(-.3, .8), (-.75, 2), (-.55, 2.1), (0, .8)],
              [(.2, .8), (.6, 2), (.8, 1.95), (.5, .8)], (-.65, 2.1, .28), (.7, 2.05, .28)],
              [(.2, -.5, .3)]),
    "unicorn": ((60, 200, 205), (255, 245, 120), [[(0, .7), (1.1, 2.5), (.75, .5)]],
                [(.75, -.35, .4)]),
    "lion": ((250, 205, 60), (165, 85, 20), [(0, 0, 1.55)], [(.7, -.25, .3)]),
}
CLASS_NAMES = tuple(HEADS)
# Coats, which classes share: a pattern in body coordinates (u forward, v up, n noise) and two muted
# colours: stripes, spots, patches, bands, checks, a pale belly, rings, waves.
COATS = (
    (lambda u, v, n: np.sin(17 * u + 2 * v), (105, 80, 60), (215, 190, 155)),
    (lambda u, v, n: np.sin(13 * u) * np.sin(13 * v) - .2, (85, 95, 110), (195, 200, 208)),
    (lambda u, v, n: 2.5 * n, (60, 55, 60), (235, 230, 220)),
    (lambda u, v, n: np.sin(15 * v), (75, 100, 130), (165, 190, 210)),
    (lambda u, v, n: np.sin(11 * (u + v)) * np.sin(11 * (u - v)), (95, 110, 70), (190, 195, 140)),
    (lambda u, v, n: v + .15 + n, (120, 90, 95), (230, 210, 205)),
    (lambda u, v, n: np.sin(16 * np.hypot(u, v)), (115, 95, 140), (200, 185, 215)),
    (lambda u, v, n: np.sin(13 * u + 4 * np.sin(9 * v)), (150, 130, 75), (225, 210, 155)),
)


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


def smooth_noise(rng: Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Noise around [0, 1] with `cells` bumps a side: (H, W) float32."""
    coarse = rng.random((min(cells, height), cells), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


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


class Pen:
    """Draws on a picture in a creature's coordinates: u forward, v up, 1 is half a body's length.

    `view` is the part of the picture (H, W, 3) uint8 RGB around it, `drawn` what it covers there.
    """

    def __init__(self, picture: np.ndarray, rng: Generator, centre: tuple[float, float],
                 unit: float) -> None:
        corner = np.maximum(np.array(centre) - 2.2 * unit, 0).astype(int)
        end = (np.array(centre) + 2.2 * unit).astype(int)
        self.window = (slice(corner[1], end[1]), slice(corner[0], end[0]))
        self.view = picture[self.window]
        self.drawn = np.zeros(self.view.shape[:2], dtype=np.uint8)
        self.rng, self.unit, self.centre = rng, unit, np.array(centre) - corner
        turn, flip = rng.normal(0, 0.12), rng.choice((-1, 1))
        self.axes = np.array([[flip * np.cos(turn), -flip * np.sin(turn)],  # (u, v) -> (x, y)
                              [-np.sin(turn), -np.cos(turn)]])

    def draw(self, shapes: list, colour: np.ndarray | tuple, origin: tuple = (0, 0),
             size: float = 1) -> None:
        """Paint polygons and circles in a colour (3,) or (H, W, 3), with a dark outline."""
        outlines = []
        for shape in shapes:
            if isinstance(shape, tuple):
                angle = np.linspace(0, 2 * np.pi, 24)[:, None]
                shape = shape[:2] + shape[2] * np.hstack((np.cos(angle), np.sin(angle)))
            local = np.array(origin) + size * np.asarray(shape)
            outlines.append(np.round(self.centre + self.unit * local @ self.axes.T).astype(int))
        low = np.maximum(np.min([o.min(0) for o in outlines], 0) - 1, 0)
        high = np.maximum(np.max([o.max(0) for o in outlines], 0) + 2, 0)
        box = (slice(low[1], high[1]), slice(low[0], high[0]))
        mask = np.zeros_like(self.drawn[box])
        if not mask.size:
            return
        for outline in outlines:
            cv2.fillPoly(mask, [(outline - low).astype(np.int32)], 1)
        core = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=max(1, int(self.unit / 45)))
        colour = np.asarray(colour, np.float32)
        shaded = (colour[box] if colour.ndim == 3 else colour) * (0.5 + 0.5 * core)[..., None]
        np.copyto(self.view[box], shaded.astype(np.uint8), where=mask[..., None] > 0)
        self.drawn[box] |= mask

    def coat(self, index: int) -> np.ndarray:
        """A coat for the view around the body, (H, W, 3), paler above than below."""
        height, width = self.drawn.shape
        reach = (self.centre - 1.7 * self.unit, self.centre + 1.7 * self.unit)
        (left, top), (right, bottom) = np.clip(reach, 0, (width, height)).astype(int)
        body = (slice(top, bottom), slice(left, right))
        y, x = (np.arange(part.start, part.stop, dtype=np.float32) for part in body)
        x, y = (x - self.centre[0]) / self.unit, (y[:, None] - self.centre[1]) / self.unit
        (xu, xv), (yu, yv) = (self.axes * self.rng.uniform(0.85, 1.2)).astype(np.float32)
        noise = smooth_noise(self.rng, height, width, 16) - np.float32(0.5)
        u, v = x * xu + y * yu, x * xv + y * yv
        pattern, dark, light = COATS[index % len(COATS)]
        share = 1 / (1 + np.exp(-9 * pattern(u, v, noise[body])))[..., None]
        dark, light = np.float32((dark, light) + self.rng.normal(0, 14, 3))
        shade = np.clip(1 + np.float32(0.3) * v, 0.65, 1.15)[..., None]
        coat = np.zeros((height, width, 3), np.float32)
        coat[body] = np.clip((dark + share * (light - dark)) * shade, 0, 255)
        return coat

    def creature(self, label: int, coat: int) -> None:
        """A body in coat `coat` with the head of class `label`."""
        rng, coat = self.rng, self.coat(coat)
        plump, legs = rng.uniform(0.48, 0.68), rng.choice((0, 2, 4), p=(0.2, 0.3, 0.5))
        feet = np.array((0, -0.25) if legs == 2 else (-0.75, -0.5, 0.4, 0.65))[:legs]
        length = plump + rng.uniform(0.25, 0.45)
        tail = rng.uniform(0.2, 1)
        self.draw([[(f - .1, 0), (f + .1, 0), (f + .12, -length), (f - .12, -length)]
                   for f in feet] + [[(-.7, .1), (-1.3, tail), (-1.45, tail), (-.9, -.2)]],
                  0.85 * coat)
        angle = np.linspace(0, 2 * np.pi, 40)
        self.draw([np.stack((np.cos(angle), plump * np.sin(angle)), 1),
                   [(.3, .4), (.9, -.2), (1.2, .4), (.85, .75)]], coat)
        face, trim, behind, front = HEADS[CLASS_NAMES[label]]
        tint = rng.normal(0, 14, 3)
        face, trim = np.clip(face + tint, 0, 255), np.clip(trim + tint, 0, 255)
        spot, radius = (rng.uniform(1, 1.15), rng.uniform(.45, .75)), rng.uniform(.28, .36)
        body, self.drawn = self.drawn, np.zeros_like(self.drawn)
        self.draw(behind, trim, spot, radius)
        self.draw([(0, 0, 1)], face, spot, radius)
        self.draw(front, trim, spot, radius)
        self.draw([(.35, .3, .22)], (20, 20, 25), spot, radius)
        self.head, self.drawn = self.drawn, self.drawn | body

    def head_cut(self) -> bool:
        """Whether the head touches an edge of the picture."""
        edges = (self.head[0], self.head[-1], self.head[:, 0], self.head[:, -1])
        return any(edge.any() for edge in edges)

    def distractor(self, num_classes: int) -> None:
        """What is no creature: a rock in some coat, a bush, or a ball in a head's colour."""
        kind = self.rng.choice(("rock", "bush", "ball"), p=(0.5, 0.35, 0.15))
        if kind == "ball":
            return self.draw([(0, 0, .6)], HEADS[CLASS_NAMES[self.rng.integers(num_classes)]][0])
        if kind == "bush":
            leaves = np.array((60, 110, 50)) + self.rng.uniform(-30, 30, 3)
            return self.draw([(*self.rng.uniform(-1, 1, 2), .5) for _ in range(7)], leaves)
        angle = np.linspace(0, 2 * np.pi, 9)[:, None]
        outline = self.rng.uniform(0.7, 1.2, angle.shape) * np.hstack((np.cos(angle),
                                                                       np.sin(angle)))
        return self.draw([outline], self.coat(self.rng.integers(num_classes)))


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
        label = rng.integers(spec.num_classes)
        coat = label // 2 if rng.random() < spec.coat_preference else rng.integers(len(COATS))
        trial = picture.copy()
        unit = scale * rng.uniform(0.18, 0.30)
        pen = Pen(trial, rng, extent * rng.uniform(0.25, 0.75, 2), unit)
        pen.creature(label, coat)
        drawn, here = pen.drawn > 0, (slice(None), *pen.window)
        left = visible - [np.bincount(part[drawn], minlength=4) for part in parts[here]]
        if pen.head_cut() or (left < MIN_VISIBLE * visible)[:, 1:].any():
            continue
        classes.append(int(label))
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
    soft = cv2.GaussianBlur(found.astype(np.float32), (0, 0), 0.5 + 0.01 * owner.shape[0])
    soft += 0.6 * (smooth_noise(rng, *owner.shape, 10) - 0.5) + rng.uniform(-0.08, 0.08)
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
    draw = partial(make_image, root=root, spec=spec)
    if workers == 1:
        lines = list(map(draw, jobs))
    else:
        with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            lines = list(pool.map(draw, jobs, chunksize=16))
    train, rest = lines[:spec.train], lines[spec.train:]
    for name, content in (("train_aug", train), ("train", train[::4]), ("val", rest[:spec.val]),
                          ("single", rest[spec.val:])):
        (lists / f"{name}.txt").write_text("\n".join(content) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES[:spec.num_classes]) + "\n")
    (root / "demo.json").write_text(json.dumps(asdict(spec), indent=1) + "\n")


def generate(root: Path, *, overwrite: bool = False, workers: int | None = None,
             **parameters: float) -> None:
    """Make the demo data set of `DemoSpec(**parameters)` in the folder `root`.

    Does nothing when `root` already holds it. The folder appears whole or not at all.

    Args:
        overwrite: replace another demo data set in `root`.
        workers: processes; None for one per CPU.

    Raises:
        ValueError: a parameter is out of range.
        FileExistsError: `root` holds anything else (with `overwrite`: no demo data set).
    """
    root, spec = Path(root), DemoSpec(**parameters)
    stored = root / "demo.json"
    if stored.exists() and json.loads(stored.read_text()) == asdict(spec):
        return log.info("demo data: %s is up to date", root)
    if stored.exists() and not overwrite:
        raise FileExistsError(f"{root} holds a demo data set of other parameters: pass --overwrite "
                              f"to replace it")
    if not stored.exists() and root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty and no demo data set: choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
        _write_all(Path(folder) / "made", spec, workers or os.cpu_count() or 1)
        if root.exists():
            shutil.rmtree(root)
        (Path(folder) / "made").rename(root)
    log.info("demo data: %d training scenes -> %s", spec.train, root)


def main() -> None:
    """Command line: see the docstring of the file."""
    parser = argparse.ArgumentParser(description="Make the demo data set.")
    parser.add_argument("root", type=Path, help="folder to make")
    parser.add_argument("--classes", type=int, default=DemoSpec.num_classes, dest="num_classes")
    for name in ("train", "val", "single", "size", "seed", "coat_preference"):
        default = getattr(DemoSpec, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--overwrite", action="store_true", help="replace another demo data set")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        generate(**vars(args))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
