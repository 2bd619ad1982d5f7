"""What an image costs outside the network, stage by stage, on one core: the way of the data.

Each stage is timed in two ways in turn, image by image: the straightforward way of the official
code, written out again here from its description (torchvision on Pillow images, all 20 classes in
NumPy, maps stored dense), and ours, in its halves: `sample` (a loading process), `batch` (the
device), `result` (what is done with the network's output, until it is a file). The network and
the enlarging of its maps are left out of both; random scores take their place. The floor is what
no way gets below: Pillow's decoding, the resize to 320 and a copy into an array. Figures are
processor time (on a GPU: time until it is done) in ms an image; the ratios are what to quote.

    python -m benchmarks.data_path --photos FOLDER      without: 500x375 JPEGs drawn here
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import v2

from datasets.layout import VOC_CLASSES, DataRoot
from datasets.scoring import LabelCounter, MapCounter
from datasets.transforms import MEAN, STD, ClassifierTraining, ImageOnly, RefinementTraining
from datasets.voc import VOCDataset, collate
from labelling.labels import save_label, voc_palette
from labelling.maps import save_maps, to_bytes
from labelling.rule import background_scores, fuse

SIZE, RESIZE, ALPHA, CLASSES, BATCH = 320, 384, 0.2, len(VOC_CLASSES), 8
PHOTO = (500, 375)
JITTER = v2.ColorJitter(0.3, 0.3, 0.3, 0.1)
TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
BEFORE, SCALES = "before", 3


# The data

def photo_like(rng: np.random.Generator) -> Image.Image:
    """Shading, edges at several scales and grain; as many bytes as a photo has as JPEG."""
    width, height = PHOTO
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([128 + 60 * np.sin(rows / rng.uniform(20, 90) + columns /
                                          rng.uniform(20, 90)) for _ in range(3)], -1)
    for _ in range(40):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        inside = ((columns - x) / rng.uniform(4, 80)) ** 2 + \
            ((rows - y) / rng.uniform(4, 80)) ** 2 < 1
        picture[inside] = rng.uniform(0, 255, 3)
    picture += rng.normal(0, 14, picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def smooth_maps(classes: int, size: tuple[int, int], rng: np.random.Generator) -> torch.Tensor:
    """Scores (K, *size) as a network at stride 8 gives: less than half of them above 0."""
    coarse = torch.from_numpy(rng.normal(-0.1, 1, (1, classes, 40, 40))).float()
    coarse = F.avg_pool2d(coarse, 5, stride=1, padding=2).relu()
    scores = F.interpolate(coarse, size, mode="bilinear", align_corners=True)[0]
    return scores / (scores.amax((1, 2), keepdim=True) + 1e-5)


def make_root(folder: Path, photos: Path | None, count: int) -> DataRoot:
    """A VOC root with images, saliency, masks, maps as ours and, dense, as the official ones."""
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "saliency_map", "SegmentationClassAug", "maps", BEFORE):
        (folder / name).mkdir()
    found = sorted(photos.glob("*.jpg"))[:count] if photos else []
    lines = []
    for index in range(len(found) or count):
        name, path = f"{index:06d}", folder / "JPEGImages" / f"{index:06d}.jpg"
        if found:
            path.symlink_to(found[index].resolve())
        else:
            photo_like(rng).save(path, quality=90)
        with Image.open(path) as image:
            size = image.size
        classes = sorted(rng.choice(CLASSES, rng.choice(3, p=(0.6, 0.3, 0.1)) + 1, replace=False))
        rough = Image.fromarray(rng.integers(0, 101, (5, 7), dtype=np.uint8))
        saliency = np.asarray(rough.resize(size, Image.Resampling.BICUBIC))
        Image.fromarray(saliency).save(folder / "saliency_map" / f"{name}.png")
        mask = np.where(saliency > 50, classes[0] + 1, 0)
        save_label(folder / "SegmentationClassAug" / f"{name}.png", mask)
        maps = to_bytes(smooth_maps(len(classes), (SIZE, SIZE), rng))
        save_maps(folder / "maps" / f"{name}.png", maps, classes)
        dense = np.zeros((CLASSES, SIZE, SIZE), np.uint8)
        dense[classes] = maps
        np.save(folder / BEFORE / f"{name}.npy", dense)
        lines.append(f"{name} {' '.join(map(str, classes))}")
    (folder / "all.txt").write_text("\n".join(lines))
    return DataRoot(folder)


# The official way, one image each

class Official:
    """What the official code does with image `index`, written out from its description."""

    def __init__(self, root: DataRoot) -> None:
        self.root, self.entries = root, root.entries("all")
        self.training = v2.Compose([v2.Resize((RESIZE, RESIZE)), v2.RandomHorizontalFlip(), JITTER,
                                    v2.RandomCrop(SIZE), TENSOR])

    def floor(self, index: int) -> None:
        """What no way gets below: decode, resize, copy."""
        np.array(self.image(index).resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    def image(self, index: int) -> Image.Image:
        """The photo."""
        with Image.open(self.root.image(self.entries[index].id)) as image:
            return image.convert("RGB")

    def classifier(self, index: int) -> None:
        """Resize, flip, jitter, crop, tensor."""
        self.training(self.image(index))

    def refinement(self, index: int) -> None:
        """Dense maps with the image; at each pixel the strongest are kept."""
        maps = np.load(self.root.root / BEFORE / f"{self.entries[index].id}.npy")
        image = JITTER(v2.functional.resize(self.image(index), [SIZE, SIZE]))
        TENSOR(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        target = torch.from_numpy(np.ascontiguousarray(maps[:, :, ::-1])).float() / 255
        torch.where(target == target.amax(0), target, torch.zeros_like(target))

    def merged(self, index: int, scales: list[np.ndarray]) -> np.ndarray:
        """The maximum over the scales, of the classes present."""
        result, labels = np.zeros_like(scales[0]), np.zeros((CLASSES, 1, 1), np.float32)
        for scores in scales:
            result = np.maximum(result, scores)
        labels[list(self.entries[index].labels or ())] = 1
        return result * labels

    def maps(self, index: int, scales: list[np.ndarray]) -> None:
        """All classes, stored uncompressed."""
        TENSOR(v2.functional.resize(self.image(index), [SIZE, SIZE]))
        maps = (self.merged(index, scales) * 255).astype(np.uint8)
        np.save(self.root.root / BEFORE / "written.npy", maps)

    def labels(self, index: int, scales: list[np.ndarray]) -> None:
        """The rule on 21 channels."""
        TENSOR(v2.functional.resize(self.image(index), [SIZE, SIZE]))
        name = f"{self.entries[index].id}.png"
        scores = self.merged(index, scales)
        scores[scores < ALPHA] = 0
        salient = (np.asarray(Image.open(self.root.saliency_dir / name)) > 50).astype(np.float32)
        everything = np.concatenate((1 - salient[None], scores))
        label = everything.argmax(0).astype(np.uint8)
        unclaimed = (salient == 1) & (label == 0)
        label[(everything > 0.9).sum(0) > 2] = 255
        label[unclaimed] = 255
        written = Image.fromarray(label)
        written.putpalette(voc_palette())
        written.save(self.root.root / BEFORE / "written.png")

    def count(self, label: np.ndarray, index: int) -> None:
        """A confusion matrix of one image."""
        mask = np.asarray(Image.open(self.root.mask_dir / f"{self.entries[index].id}.png"))
        known = mask < CLASSES + 1
        pairs = (CLASSES + 1) * mask[known].astype(int) + label[known]
        np.bincount(pairs, minlength=(CLASSES + 1) ** 2)

    def score_labels(self, index: int) -> None:
        """Labels against a mask."""
        name = f"{self.entries[index].id}.png"
        self.count(np.asarray(Image.open(self.root.mask_dir / name)), index)

    def score_maps(self, index: int) -> None:
        """Dense maps, enlarged, made labels, against a mask."""
        maps = np.load(self.root.root / BEFORE / f"{self.entries[index].id}.npy")
        size = self.image(index).size[::-1]
        scores = F.interpolate(torch.from_numpy(maps)[None].float() / 255, size, mode="bilinear",
                               align_corners=True)[0].numpy()
        everything = np.concatenate((np.full((1, *size), ALPHA, np.float32), scores))
        self.count(everything.argmax(0).astype(np.uint8), index)


# Measuring

class Timer:
    """Seconds of processor time an image, by (stage, part)."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[tuple[str, str], list[float]]()

    def __call__(self, stage: str, part: str, function: Callable[..., Any], *args: Any,
                 images: int = 1) -> Any:
        """Time a call; on a GPU, `batch` is timed by the clock until the GPU is done."""
        on_gpu = self.device.type == "cuda" and part == "batch"
        clock = time.perf_counter if on_gpu else time.process_time
        start = clock()
        result = function(*args)
        if on_gpu:
            torch.cuda.synchronize(self.device)
        self.seconds.setdefault((stage, part), []).append((clock() - start) / images)
        return result

    def ms(self, stage: str, part: str) -> float:
        """The median of a part in ms, 0 where the stage has none."""
        return 1000 * statistics.median(self.seconds.get((stage, part), [0.0]))


def run(root: DataRoot, timer: Timer) -> None:
    """All stages once over all images, both ways."""
    official, entries, rng = Official(root), root.entries("all"), np.random.default_rng(1)
    written = root.root / BEFORE
    training = {"classifier training": (ClassifierTraining(RESIZE, SIZE), official.classifier, {}),
                "refinement training": (RefinementTraining(SIZE), official.refinement,
                                        {"maps_dir": root.root / "maps"})}
    for stage, (transform, before, folders) in training.items():
        halves(timer, stage, VOCDataset(root, entries, transform, **folders), before)
    for stage, before, folders in (
            ("maps", official.maps, {}),
            ("labels", official.labels, {"saliency_dir": root.saliency_dir})):
        dataset = VOCDataset(root, entries, ImageOnly(SIZE), **folders)
        samples = halves(timer, stage, dataset, None)
        for index, sample in enumerate(samples):
            size = (SIZE, SIZE) if stage == "maps" else sample["size"]
            dense = [smooth_maps(CLASSES, size, rng).numpy() for _ in range(SCALES)]
            classes = list(entries[index].labels or ())
            scores = torch.from_numpy(dense[0][classes])
            timer(stage, BEFORE, before, index, dense)
            timer(stage, "result", finish, stage, sample, scores, classes, written / "ours.png")
    counters = {"scoring labels": (LabelCounter(root, root.mask_dir, root.mask_dir),
                                   official.score_labels),
                "scoring maps": (MapCounter(root, root.root / "maps", root.mask_dir, None, [ALPHA]),
                                 official.score_maps)}
    for index, entry in enumerate(entries):
        for stage, (counter, before) in counters.items():
            timer(stage, BEFORE, before, index)
            timer(stage, "sample", counter, entry.id)
        timer("floor", "sample", official.floor, index)


def halves(timer: Timer, stage: str, dataset: VOCDataset, before: Callable[[int], None] | None
           ) -> list[dict[str, Any]]:
    """Time both halves over the data set, and the official way beside them; return the samples."""
    samples = []
    for start in range(0, len(dataset), BATCH):
        part = []
        for index in range(start, min(start + BATCH, len(dataset))):
            if before is not None:
                timer(stage, BEFORE, before, index)
            part.append(timer(stage, "sample", dataset.__getitem__, (start, index)))
        batch = timer(stage, "collate", collate, part, images=len(part))
        batch = {name: value.to(timer.device) if isinstance(value, torch.Tensor) else value
                 for name, value in batch.items()}
        timer(stage, "batch", dataset.transform.batch, batch, images=len(part))
        samples += part
    return samples


def finish(stage: str, sample: dict[str, Any], scores: torch.Tensor, classes: list[int],
           path: Path) -> None:
    """From scores (K, H, W) to a file, our way."""
    if stage == "maps":
        save_maps(path, to_bytes(scores), classes)
    else:
        background = background_scores(sample["size"], sample["saliency"], 0.0)
        save_label(path, fuse(scores, classes, background, alpha=ALPHA))


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="JPEGs to measure with")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="where the batch half runs")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    timer = Timer(torch.device(args.device))
    with tempfile.TemporaryDirectory() as folder:
        root = make_root(Path(folder), args.photos, args.images)
        run(root, timer)  # warm-up
        timer.seconds.clear()
        for _ in range(args.runs):
            run(root, timer)
    floor = timer.ms("floor", "sample")
    parts = ("sample", "collate", "batch", "result")
    print(f"{'ms an image':20s}official" + "".join(f"{part:>9s}" for part in parts)
          + "     ours   times as fast   floors")
    for stage in dict.fromkeys(stage for stage, _ in timer.seconds if stage != "floor"):
        times = [timer.ms(stage, part) for part in parts]
        before, ours = timer.ms(stage, BEFORE), sum(times)
        print(f"{stage:20s}{before:8.2f}" + "".join(f"{t:9.2f}" if t else " " * 9 for t in times)
              + f"{ours:9.2f}{before / ours:16.2f}{ours / floor:9.1f}")
    print(f"{'floor':20s}{floor:8.2f}   decode, resize to {SIZE}, copy; {args.runs} runs of "
          f"{args.images} images, medians")


if __name__ == "__main__":
    main()
