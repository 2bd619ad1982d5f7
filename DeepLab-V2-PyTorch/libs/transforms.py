"""DeepLab's own input: BGR 0-255 minus mean; for training, a random scale, crop and flip.

In and out: samples of `datasets.voc`. The root's transforms make another input (RGB in [0, 1],
squares), so nothing here repeats them.
Source: DRS paper, section "Experiments"; the official code's order of steps.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.transforms import Transform
from labelling.labels import IGNORE
from libs.losses import resize_labels
from utils.files import UserError


def training(mean: Sequence[float], scales: Sequence[float], crop: int) -> Transform:
    """Samples with "image" (3, crop, crop) float32, "mask" (crop, crop) int64 and "present".

    "present" (1 + C,) is the image-level label vector with the background's 1 in front. Random
    choices are drawn from torch's default generator, which the data set seeds for each sample.
    """
    def apply(sample: dict[str, Any]) -> dict[str, Tensor]:
        labels, mask = sample["labels"], torch.as_tensor(sample["mask"]).long()
        highest = int(mask[mask != IGNORE].max()) if (mask != IGNORE).any() else 0
        if highest > len(labels):
            raise UserError(f"the label PNG of {sample['id']} holds label {highest}, but there "
                            f"are {len(labels)} classes and the background")
        image, mask = augment(normalize(sample["image"], mean), mask, scales, crop)
        return {"image": image, "mask": mask, "present": torch.cat((labels.new_ones(1), labels))}

    return apply


def inference(mean: Sequence[float]) -> Transform:
    """Whole images: the sample with its image normalised."""
    return lambda sample: sample | {"image": normalize(sample["image"], mean)}


def normalize(image: Tensor, mean: Sequence[float]) -> Tensor:
    """(3, H, W) uint8 RGB -> (3, H, W) float32 BGR minus `mean` (of B, G, R)."""
    return torch.as_tensor(image).flip(0).float() - torch.tensor(mean)[:, None, None]


def augment(image: Tensor, label: Tensor, scales: Sequence[float], crop: int
            ) -> tuple[Tensor, Tensor]:
    """A random scale, crop and flip of image and label together.

    Args:
        image: (3, H, W) float, mean-subtracted: padding with the mean is padding with 0.
        label: (H, W) integers; padded with 255.
        scales: factors, one of which is drawn.
        crop: side of the result.

    Returns:
        image (3, crop, crop) and label (crop, crop).
    """
    scale = scales[_below(len(scales))]
    size = tuple(max(1, round(length * scale)) for length in label.shape)
    if size != tuple(label.shape):
        image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        label = resize_labels(label[None], size)[0]
    # Cut first, pad what is missing at the bottom and right afterwards: the same, on fewer pixels.
    top, left = (_below(max(length - crop, 0) + 1) for length in size)
    image = image[:, top:top + crop, left:left + crop]
    label = label[top:top + crop, left:left + crop]
    missing = (0, crop - label.shape[1], 0, crop - label.shape[0])
    image, label = F.pad(image, missing), F.pad(label, missing, value=IGNORE)
    if _below(2):
        image, label = image.flip(2), label.flip(1)
    return image, label


def _below(limit: int) -> int:
    """A random whole number in [0, limit)."""
    return int(torch.randint(limit, ()))
