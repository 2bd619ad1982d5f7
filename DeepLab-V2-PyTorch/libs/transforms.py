"""DeepLab's own input: BGR 0-255 minus mean; for training, a random scale, crop and flip.

In and out: samples and batches of `datasets.voc`, in two halves as in `datasets.transforms`. The
root's transforms make another input (RGB in [0, 1], squares), so nothing here repeats them.
Source: DRS paper, section "Experiments"; the official code's order of steps.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.transforms import FLIP_SHARE, Batch, Sample, Transform, per_channel, to_tensors
from labelling.labels import IGNORE
from utils.files import UserError


class Training(Transform):
    """Random scale, crop and flip of image and label.

    Args:
        mean: of B, G and R.
        scales: factors on both sides, one of which is drawn for each sample.
        crop: side of the result. What is missing at the right and at the bottom is filled, with
            the mean in the image and with 255 in the label.
    """

    def __init__(self, mean: Sequence[float], scales: Sequence[float], crop: int) -> None:
        self.mean, self.scales, self.crop = mean, scales, crop

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """"image" (3, crop, crop) float32 RGB in 0 .. 255, "mask" (crop, crop) uint8, labels.

        The pixels of a scaled image are no whole numbers, and neither is the mean around it.
        """
        cv2.setNumThreads(0)  # the loading processes are many already
        mask, labels = sample["mask"], sample["labels"]
        highest = mask.max(where=mask != IGNORE, initial=0)
        if highest > len(labels):
            raise UserError(f"the label PNG of {sample['id']} holds label {highest}, but there "
                            f"are {len(labels)} classes and the background")
        image, mask = augment(np.asarray(sample["image"]), mask, self.mean[::-1], self.scales,
                              self.crop, rng)
        return {"id": sample["id"], "image": torch.from_numpy(image).permute(2, 0, 1),
                "mask": torch.from_numpy(mask), "labels": labels}

    def batch(self, batch: Batch) -> Batch:
        """"image" (B, 3, crop, crop) float32, "mask" (B, crop, crop) int64 and "present".

        "present" (B, 1 + C) is the image-level label vector with the background's 1 in front.
        """
        labels = batch["labels"]
        return batch | {"image": normalize(batch["image"], self.mean), "mask": batch["mask"].long(),
                        "present": torch.cat((torch.ones_like(labels[:, :1]), labels), dim=1)}


class Inference(Transform):
    """Whole images, normalised; the mask as it is, and the image as "pixels" if `keep_pixels`."""

    def __init__(self, mean: Sequence[float], keep_pixels: bool = False) -> None:
        self.mean, self.keep_pixels = mean, keep_pixels

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        kept = {"pixels": np.array(sample["image"])} if self.keep_pixels else {}
        return to_tensors(sample) | kept

    def batch(self, batch: Batch) -> Batch:
        return batch | {"image": normalize(batch["image"], self.mean)}


def normalize(images: Tensor, mean: Sequence[float]) -> Tensor:
    """(B, 3, H, W) RGB in 0 .. 255 -> float32 BGR minus `mean` (of B, G, R)."""
    return images.flip(1).float().sub_(per_channel(tuple(mean), images.device))


def shrink(image: Image.Image, max_side: int | None) -> Image.Image:
    """The image, its longest side at most `max_side` pixels (None: as it is); bilinear, 8-bit."""
    longest = max(image.size)
    if max_side is None or longest <= max_side:
        return image
    width, height = (max(1, round(side * max_side / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def nearest(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels (h, w) uint8 at another size (height, width), by Pillow's nearest."""
    if label.shape == size:
        return label
    return np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))


def augment(image: np.ndarray, label: np.ndarray, mean: Sequence[float],
            scales: Sequence[float], crop: int, rng: np.random.Generator
            ) -> tuple[np.ndarray, np.ndarray]:
    """A random scale, crop and flip of image and label together.

    Sizes are truncated to whole pixels and the image is interpolated as float by OpenCV, the label
    by Pillow's nearest, as in the official code.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) uint8.
        mean: what the image is filled up with, in the order of its channels.

    Returns:
        image (crop, crop, 3) float32 and label (crop, crop) uint8.
    """
    scale = scales[int(rng.integers(len(scales)))]
    height, width = (max(1, int(length * scale)) for length in label.shape)
    if (height, width) != label.shape:
        image = cv2.resize(image.astype(np.float32), (width, height),
                           interpolation=cv2.INTER_LINEAR)
        label = nearest(label, (height, width))
    top, left = rng.integers(0, (max(height - crop, 0) + 1, max(width - crop, 0) + 1))
    rows, columns = slice(top, top + crop), slice(left, left + crop)
    height, width = min(height, crop), min(width, crop)
    cut = np.empty((crop, crop, 3), np.float32)
    cut[:] = mean
    cut[:height, :width] = image[rows, columns]
    cut_label = np.full((crop, crop), IGNORE, np.uint8)
    cut_label[:height, :width] = label[rows, columns]
    if rng.random() < FLIP_SHARE:
        cut, cut_label = cut[:, ::-1].copy(), cut_label[:, ::-1].copy()
    return cut, cut_label
