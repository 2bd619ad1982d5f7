"""The fully connected CRF against pydensecrf: time, memory and agreement, in one run.

    python -m benchmarks.crf                    scenes drawn here
    python -m benchmarks.crf --photos ROOT      a data root's photos and masks (--count of them)
    python -m benchmarks.crf --quick            one size, one repetition

Both ways take turns on the same images; given are medians. "build" is the lattices (ours keeps the
one of positions from one image to the next of a size), "iterate" ten mean-field steps. Ratios above
1 are ours being faster. pydensecrf runs on one thread.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from labelling.crf import CRFParams, dense_crf, require_crf
from labelling.labels import IGNORE, read_label
from utils.files import UserError

SIZES = ((375, 500), (768, 1024))
STEPS = 10
Scene = tuple[np.ndarray, np.ndarray]  # image (H, W, 3) uint8, labels (H, W) from 0


def drawn(size: tuple[int, int], count: int) -> Iterator[Scene]:
    """Scenes of ellipses on shaded ground."""
    rows, columns = np.mgrid[:size[0], :size[1]]
    for seed in range(count):
        rng = np.random.default_rng(seed)
        truth = np.zeros(size, np.int64)
        image = 120 + 50 * np.sin(rows / 40)[..., None] + rng.uniform(-60, 60, 3)
        for label in rng.choice(np.arange(1, 21), 3, replace=False):
            y, x = rng.uniform(0.2, 0.8, 2) * size
            inside = ((rows - y) / rng.uniform(0.1, 0.3) / size[0]) ** 2 + (
                (columns - x) / rng.uniform(0.1, 0.3) / size[1]) ** 2 < 1
            truth[inside], image[inside] = label, rng.uniform(40, 200, 3)
        yield np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8), truth


def photos(root: Path, size: tuple[int, int], count: int) -> Iterator[Scene]:
    """Photos of a VOC root that have masks, resized."""
    for mask in sorted((root / "SegmentationClassAug").glob("*.png"))[:count]:
        with Image.open(root / "JPEGImages" / f"{mask.stem}.jpg") as image:
            picture = np.asarray(image.convert("RGB").resize(size[::-1]))
        label = read_label(mask).astype(np.int64)
        label[label == IGNORE] = 0
        yield picture, np.asarray(Image.fromarray(label.astype(np.uint8)).resize(
            size[::-1], Image.Resampling.NEAREST)).astype(np.int64)


def probabilities(truth: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """(C, H, W) float32: the truth, blurred and noisy, as unsure as a network; of `classes`, the
    truth's come first."""
    rng = np.random.default_rng(seed)
    present = np.unique(truth)[:classes]
    logits = np.full((classes, *truth.shape), -6, np.float32)
    for i, label in enumerate(present):
        logits[i] = 6 * (truth == label) - 3
    small = F.interpolate(torch.from_numpy(logits)[None], scale_factor=1 / 8, mode="area")[0]
    small += torch.from_numpy(rng.normal(0, 1, small.shape).astype(np.float32))
    return F.interpolate(small[None], truth.shape, mode="bilinear")[0].softmax(0).numpy()


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(scenes: list[Scene], classes: int, repeat: int, threads: int, negligible: float
            ) -> None:
    """Print a row: ours and pydensecrf's, build and iterations apart, and the agreement."""
    torch.set_num_threads(threads)
    ways = {backend: CRFParams(backend=backend, negligible=negligible if backend == "torch" else 0)
            for backend in ("torch", "pydensecrf")}
    build: dict[str, list[float]] = {backend: [] for backend in ways}
    whole: dict[str, list[float]] = {backend: [] for backend in ways}
    same, apart = [], []
    for index, (image, truth) in enumerate(scenes):
        scores = probabilities(truth, classes, index)
        results = {}
        for _ in range(repeat):
            for backend, params in ways.items():
                build[backend].append(seconds(
                    lambda p=params, i=image, s=scores: dense_crf(i, s, replace(p, iterations=0))))
                start = time.perf_counter()
                results[backend] = dense_crf(image, scores, params)
                whole[backend].append(time.perf_counter() - start)
        ours, theirs = results["torch"], results["pydensecrf"]
        same.append((ours.argmax(0) == theirs.argmax(0)).mean())
        apart.append(np.abs(ours - theirs).max())
    median = {b: (statistics.median(build[b]), statistics.median(whole[b])) for b in ways}
    (our_build, our_whole), (their_build, their_whole) = median["torch"], median["pydensecrf"]
    height, width = scenes[0][0].shape[:2]
    left_out = "  classes below 0.05 left out" if negligible else ""
    print(f"| {width}x{height} | {classes}{left_out} | {threads} | {our_build:.2f} + "
          f"{our_whole - our_build:.2f} | {their_build:.2f} + {their_whole - their_build:.2f} | "
          f"{their_whole / our_whole:.2f} | {100 * min(same):.4f} | {max(apart):.1e} |", flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="ROOT", help="a VOC root with masks")
    parser.add_argument("--count", type=int, default=4, help="images of each size")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--large", action="store_true", help="only the image of 12 megapixels")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure what there is to measure with."""
    args = parse(argv)
    if args.quick:
        args.count = args.repeat = 1
    if args.large:
        return large((3000, 4000), args.photos)
    try:
        require_crf(CRFParams(backend="pydensecrf"))
    except UserError as error:
        print(f"the table is left out: {error}")
    else:
        table(args)
    if not args.quick:
        large((3000, 4000), args.photos)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:.0f} MB")


def table(args: argparse.Namespace) -> None:
    """Ours against pydensecrf, by size, threads and number of classes."""
    print("| image | classes | threads | ours: build + iterate, s | pydensecrf, s | "
          "times as fast | labels alike, % | marginals differ |\n"
          "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in SIZES[:1] if args.quick else SIZES:
        scenes = list(photos(args.photos, size, args.count) if args.photos
                      else drawn(size, args.count))
        for threads in (1, 2):
            for classes, negligible in ((3, 0.0), (21, 0.0), (21, 0.05)):
                compare(scenes, classes, args.repeat, threads, negligible)


def large(size: tuple[int, int], root: Path | None) -> None:
    """12 megapixels, done in tiles by default: time, and how that agrees with all in one.

    A photo is enlarged and given the noise of a sensor (3 levels); without one, a scene is drawn.
    """
    torch.set_num_threads(2)
    (image, truth), = photos(root, size, 1) if root else drawn(size, 1)
    if root:
        noise = np.random.default_rng(0).normal(0, 3, image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    scores = probabilities(truth, 3, 0)
    tiled: list[np.ndarray] = []
    taken = seconds(lambda: tiled.append(dense_crf(image, scores)))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{size[1]}x{size[0]}, 3 classes, in tiles: {taken:.1f} s, peak {memory:.0f} MB",
          end="", flush=True)
    whole = dense_crf(image, scores, CRFParams(max_pixels=size[0] * size[1]))
    alike = (tiled[0].argmax(0) == whole.argmax(0)).mean()
    print(f"; labels as without tiles: {100 * alike:.3f} %")


if __name__ == "__main__":
    main()
