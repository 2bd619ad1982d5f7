"""Speed and agreement of the CRF with negligible classes left out, against all classes.

    python benchmarks/crf.py                                images drawn here, 21 classes
    python benchmarks/crf.py --root ROOT --logits FOLDER    logits that DeepLab's `test` stored

Both ways are timed in turn on the same images, so that the ratio does not depend on what else the
machine does. Printed: seconds per image, their ratio, the share of pixels with the same label.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from labelling.crf import CRFParams, crf_label, crf_labels, require_crf

CLASSES, SIZE, STRIDE = 21, (375, 500), 8


def drawn(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """VOC-sized scenes of ellipses, with logits as rough and as unsure as a network's."""
    rows, columns = np.mgrid[:SIZE[0], :SIZE[1]]
    for seed in range(count):
        rng = np.random.default_rng(seed)
        truth = np.zeros(SIZE, dtype=np.int64)
        image = np.ones((*SIZE, 3)) * rng.uniform(40, 200, 3)
        for label in rng.choice(np.arange(1, CLASSES), rng.integers(1, 4), replace=False):
            y, x = rng.uniform(0.2, 0.8, 2) * SIZE
            inside = ((rows - y) / rng.uniform(40, 120)) ** 2 + (
                (columns - x) / rng.uniform(40, 160)) ** 2 < 1
            truth[inside], image[inside] = label, rng.uniform(40, 200, 3)
        image += rng.normal(0, 12, image.shape)
        coarse = truth[STRIDE // 2::STRIDE, STRIDE // 2::STRIDE]
        logits = rng.normal(0, 1, (CLASSES, *coarse.shape)) + rng.uniform(-9, -4, (CLASSES, 1, 1))
        for label in np.unique(truth):
            logits[label] += 7 + 4 * (coarse == label)
        yield np.clip(image, 0, 255).astype(np.uint8), probabilities(torch.from_numpy(logits), SIZE)


def stored(root: Path, folder: Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images of a VOC-layout root with the logits (C, h, w) that `test` stored for them."""
    for path in sorted(folder.glob("*.npz"))[:count]:
        with Image.open(root / "JPEGImages" / f"{path.stem}.jpg") as file:
            image = np.array(file.convert("RGB"))
        with np.load(path) as arrays:
            logits = torch.from_numpy(arrays["logits"])
        yield image, probabilities(logits, image.shape[:2])


def probabilities(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """(C, h, w) -> softmax (C, *size) float32."""
    return F.interpolate(logits[None].float(), size, mode="bilinear",
                         align_corners=False)[0].softmax(dim=0).numpy()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="data set, with --logits")
    parser.add_argument("--logits", type=Path, help="folder of stored logits")
    parser.add_argument("--images", type=int, default=12, help="how many images")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    if (args.root is None) != (args.logits is None):
        parser.error("--root and --logits belong together")
    require_crf()
    items = list(drawn(args.images) if args.root is None
                 else stored(args.root, args.logits, args.images))
    if not items:
        parser.error(f"{args.logits} holds no .npz file")
    variants = {f"negligible < {value:g}": CRFParams(negligible=value)
                for value in (0.0, 0.01, 0.05, 0.1, 0.2)}
    seconds = dict.fromkeys(variants, 0.0)
    same, worst = dict.fromkeys(variants, 0.0), dict.fromkeys(variants, 1.0)
    kept = dict.fromkeys(variants, 0.0)
    for image, scores in items:
        labels = {}
        for name, params in variants.items():
            start = time.perf_counter()
            labels[name] = crf_label(image, scores, params)
            seconds[name] += time.perf_counter() - start
            kept[name] += (scores.max(axis=(1, 2)) >= params.negligible).mean() * len(scores)
        full = next(iter(labels.values()))
        for name, label in labels.items():
            agreement = (label == full).mean()
            same[name] += agreement
            worst[name] = min(worst[name], agreement)
    count, reference = len(items), next(iter(seconds.values()))
    print(f"{count} images of {items[0][1].shape} (classes, height, width)")
    print(f"{'left out':20} classes  s/image  speed-up  agreement  worst image")
    for name in variants:
        print(f"{name:20} {kept[name] / count:7.1f}  {seconds[name] / count:7.3f}  "
              f"{reference / seconds[name]:7.2f}x  {100 * same[name] / count:8.3f}%  "
              f"{100 * worst[name]:10.3f}%")
    jobs = [(i, *item) for i, item in enumerate(items)]
    times = []
    for processes in (1, args.processes):
        start = time.perf_counter()
        for _ in crf_labels(jobs, processes):
            pass
        times.append(time.perf_counter() - start)
    print(f"{args.processes} processes: {times[0] / times[1]:.2f} times as fast as one "
          "(their start included)")


if __name__ == "__main__":
    main()
