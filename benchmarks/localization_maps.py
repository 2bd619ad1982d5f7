"""How fast localization maps are made, against the way the official code makes them.

Both ways start from the same images on disk and the same full-size classifier and end with files
on disk. The baseline follows the description of the official inference (docs in README): one image
at a time, gradients recorded, every class upsampled at every scale and brought to the CPU as
float32, combined in NumPy, all classes stored uncompressed. Ours is make_localization_maps.py's
path. The two are run in turn; the figure to quote is the ratio of the medians.

    python -m benchmarks.localization_maps --images 12 --device cpu
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from datasets import transforms
from datasets.layout import VOC_CLASSES, DataRoot
from datasets.voc import VOCDataset, collate
from labelling.maps import load_maps, save_maps
from models.classifier import Classifier
from utils import runtime as runtimes
from utils.engine import predict
from utils.logging import setup_logging
from utils.runtime import Runtime, inference_loader

SIZE, SCALES = 320, (256, 320, 384)


def make_data(root: Path, images: int) -> None:
    """VOC-sized photos (500x375, smooth noise) with two classes each."""
    rng = np.random.default_rng(0)
    (root / "JPEGImages").mkdir()
    lines = []
    for index in range(images):
        noise = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(
            root / "JPEGImages" / f"{index:06d}.jpg")
        lines.append(f"{index:06d} {index % 20} {(index + 7) % 20}")
    (root / "all.txt").write_text("\n".join(lines))


def baseline(model: Classifier, dataset: VOCDataset, runtime: Runtime, out: Path) -> None:
    """One image at a time, with gradients, all classes, NumPy, uncompressed."""
    for index in range(len(dataset)):
        sample = dataset[index]
        image = sample["image"].as_subclass(torch.Tensor)[None].to(runtime.device)
        labels = sample["labels"].numpy()[:, None, None]
        result = np.zeros((len(labels), SIZE, SIZE), np.float32)
        for scale in SCALES:
            scaled = F.interpolate(image, (scale, scale), mode="bilinear", align_corners=False)
            maps = F.interpolate(F.relu(model.class_maps(scaled)), (SIZE, SIZE), mode="bilinear",
                                 align_corners=True)
            maps = maps / (maps.amax(dim=(2, 3), keepdim=True) + 1e-5)
            result = np.maximum(result, maps[0].detach().cpu().numpy() * labels)
        np.save(out / f"{sample['id']}.npy", (result * 255).astype(np.uint8))


def ours(model: Classifier, dataset: VOCDataset, runtime: Runtime, out: Path,
         workers: int) -> None:
    """Batches, no gradients, only the classes present, compressed."""
    loader = inference_loader(dataset, range(len(dataset)), 8, runtime, workers, collate)

    def forward(network: Classifier, batch: dict) -> list[torch.Tensor]:
        return network.localization_maps(batch["image"], batch["labels"],
                                         [(SIZE, SIZE)] * len(batch["image"]), SCALES)

    for batch, maps in predict(model, loader, runtime, forward, "ours"):
        for image_id, labels, scores in zip(batch["id"], batch["labels"], maps, strict=True):
            save_maps(out / f"{image_id}.png", (scores * 255).to(torch.uint8).cpu().numpy(),
                      labels.nonzero()[:, 0].tolist())


def timed(function: Callable[[], None]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Run both in turn and print medians, ratio, sizes and agreement."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--num-workers", type=int, default=2)
    args = parser.parse_args()
    setup_logging()
    runtime = runtimes.setup(args.device, args.amp)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_data(root, args.images)
        (root / "classes.txt").write_text("\n".join(VOC_CLASSES))
        data = DataRoot(root)
        dataset = VOCDataset(data, data.entries("all"), transforms.image_only(SIZE))
        plain = Classifier().to(runtime.device).eval()
        placed = Classifier()
        placed.load_state_dict(plain.state_dict())
        placed = runtime.place(placed)
        old, new = root / "old", root / "new"
        old.mkdir()
        new.mkdir()
        baseline(plain, dataset, runtime, old)  # warm-up of both, and files to compare
        ours(placed, dataset, runtime, new, args.num_workers)
        old_times, new_times = [], []
        for _ in range(args.runs):
            old_times.append(timed(lambda: baseline(plain, dataset, runtime, old)))
            new_times.append(timed(lambda: ours(placed, dataset, runtime, new,
                                                args.num_workers)))
        difference = max(int(np.abs(np.load(old / f"{e.id}.npy")[list(e.labels)].astype(int)
                                    - load_maps(new / f"{e.id}.png", 20)[0]).max())
                         for e in dataset.entries)
        sizes = [sum(f.stat().st_size for f in d.iterdir()) / args.images / 1000
                 for d in (old, new)]
    a, b = statistics.median(old_times), statistics.median(new_times)
    print(f"device {runtime.device}, precision {runtime.amp_dtype or 'float32'}, "
          f"{args.images} images, {args.runs} runs each")
    print(f"baseline {a / args.images:.3f} s an image   {sizes[0]:.0f} KB an image")
    print(f"ours     {b / args.images:.3f} s an image   {sizes[1]:.0f} KB an image")
    print(f"ratio    {a / b:.2f} times as fast, {sizes[0] / sizes[1]:.0f} times smaller; "
          f"largest difference {difference} of 255")


if __name__ == "__main__":
    main()
