"""Joint transforms of a sample: image, localization maps, saliency and mask stay aligned.

Each has two halves. `sample` runs in a loading process, on one image: geometry, by Pillow on 8-bit
images, because Pillow's resize is the one that published weights have seen (torchvision's of a
tensor differs by a level here and there, which moves up to half a percent of the labels). `batch`
runs on the device of the batch, on all its images: colours, conversion to float. So what
travels in between is small. This is the only home of mean and std.
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets import jitter

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLIP_SHARE = 0.5  # of the samples in training
Sample = dict[str, Any]
Batch = dict[str, Any]


class Transform(ABC):
    """The two halves; objects are small and picklable, so that any process can be given one."""

    @abstractmethod
    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """One image's half, on the CPU.

        Args:
            sample: with "image" (Pillow, RGB) and, where there are any, "mask" and "saliency"
                (H, W), "maps" (K, h, w), all uint8 arrays. Other entries are passed on.
            rng: source of all random choices.

        Returns:
            the sample with its images as uint8 tensors, "image" (3, H, W), and what `batch` needs
            to know of this image.
        """

    @abstractmethod
    def batch(self, batch: Batch) -> Batch:
        """The batch's half, on its device.

        Args:
            batch: collated samples (`datasets.voc.collate`).

        Returns:
            the batch with "image" (B, 3, H, W) float32, normalised, in channels_last.
        """


class Evaluation(Transform):
    """Everything resized to a square, nothing random."""

    def __init__(self, size: int) -> None:
        self.size = size

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return to_tensors(_resized(sample, self.size))

    def batch(self, batch: Batch) -> Batch:
        floats = batch["image"].to(torch.float32, memory_format=torch.channels_last)
        return batch | {"image": normalize(floats.div_(255))}


class ImageOnly(Evaluation):
    """The image resized to a square; saliency and mask keep their own size, and so does the image
    itself, which is kept as "pixels" (H, W, 3) uint8 if `keep_pixels`."""

    def __init__(self, size: int, keep_pixels: bool = False) -> None:
        super().__init__(size)
        self.keep_pixels = keep_pixels

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        kept = {"pixels": np.array(sample["image"])} if self.keep_pixels else {}
        return to_tensors(sample | _resized({"image": sample["image"]}, self.size)) | kept


class RefinementTraining(Transform):
    """Resized to a square, colour jitter, flip of image and maps together (paper: 320)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        colours = jitter.draw(rng)
        sample = _flipped(_resized(sample, self.size), rng.random() < FLIP_SHARE)
        return to_tensors(sample) | {"jitter": colours, "crop": (0, 0)}

    def batch(self, batch: Batch) -> Batch:
        return _jittered(batch, self.size)


class ClassifierTraining(Transform):
    """Resized to a square, flip, colour jitter, random crop, in this order (paper: 384, 320).

    The contrast of a jittered image turns around the mean of all of it, so the image is cropped
    in the batch's half, after the jitter; whatever else the sample has, in the image's.
    """

    def __init__(self, resize: int, crop: int) -> None:
        self.resize, self.crop = resize, crop

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sample = _flipped(_resized(sample, self.resize), rng.random() < FLIP_SHARE)
        colours = jitter.draw(rng)
        top, left = (int(place) for place in rng.integers(0, self.resize - self.crop + 1, 2))
        for name in _companions(sample):
            sample[name] = sample[name][..., top:top + self.crop, left:left + self.crop]
        return to_tensors(sample) | {"jitter": colours, "crop": (top, left)}

    def batch(self, batch: Batch) -> Batch:
        return _jittered(batch, self.crop)


def to_tensors(sample: Sample) -> Sample:
    """Images as uint8 tensors; "image" is a (3, H, W) view of its pixels as they lie."""
    return sample | {"image": torch.from_numpy(np.array(sample["image"])).permute(2, 0, 1)} | {
        name: torch.from_numpy(np.array(sample[name])) for name in _companions(sample)}


def normalize(images: Tensor) -> Tensor:
    """Subtract mean, divide by std: (B, 3, H, W) float in [0, 1], channels_last, in place."""
    # The same numbers for a whole row of pixels: with three at a time the CPU is ten times slower.
    where = images.device, images.shape[3]
    return images.sub_(per_channel(MEAN, *where)).div_(per_channel(STD, *where))


@lru_cache(maxsize=32)
def per_channel(values: tuple[float, ...], device: torch.device, width: int = 1) -> Tensor:
    """A number for each channel, (1, C, 1, width) float32, channels_last.

    They are kept, because the CPU waits for the GPU while it brings new ones there.
    """
    numbers = torch.tensor(values, device=device)[None, :, None, None]
    return numbers.expand(1, -1, 1, width).contiguous(memory_format=torch.channels_last)


def _companions(sample: Sample) -> list[str]:
    return [name for name in ("mask", "saliency", "maps") if name in sample]


def _resized(sample: Sample, side: int) -> Sample:
    """Image and maps bilinear, masks and saliency nearest, each to a square."""
    def resize(array: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.fromarray(array).resize((side, side), how))

    bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    sample = sample | {"image": sample["image"].resize((side, side), bilinear)}
    for name in _companions(sample):
        array = sample[name]
        if name != "maps":
            sample[name] = resize(array, nearest)
        elif array.shape[1:] != (side, side):  # scores, not class numbers: interpolated
            maps = [resize(one, bilinear) for one in array]
            sample[name] = np.stack(maps) if maps else np.zeros((0, side, side), np.uint8)
    return sample


def _flipped(sample: Sample, flip: bool) -> Sample:
    """The sample, mirrored if `flip`."""
    if not flip:
        return sample
    return sample | {name: sample[name][..., ::-1] for name in _companions(sample)} | {
        "image": sample["image"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)}


def _jittered(batch: Batch, side: int) -> Batch:
    """Jittered, then cropped to `side` at each image's place, normalised."""
    images, draws = batch["image"], batch["jitter"]
    result = torch.empty((len(images), 3, side, side), device=images.device,
                         memory_format=torch.channels_last)
    places = zip(result, batch["crop"], strict=True)
    # A GPU takes all images in one go; a CPU is twice as fast on what fits into its caches.
    chunk = 1 if images.device.type == "cpu" else len(images)
    for part, drawn in zip(images.split(chunk), draws.split(chunk), strict=True):
        # Channel by channel, since jitter mixes them.
        floats = part.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        for image in jitter.apply(floats, drawn):
            goal, (top, left) = next(places)
            goal.copy_(image[:, top:top + side, left:left + side])
    return {name: value for name, value in batch.items() if name not in ("jitter", "crop")} | {
        "image": normalize(result)}
