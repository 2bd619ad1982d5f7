"""Joint transforms of a sample: image, localization maps, saliency and mask stay aligned.

Built from torchvision.transforms.v2; a sample is a dict whose entries are tv_tensors. This is the
only home of mean and std.
"""

from collections.abc import Callable
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}
Transform = Callable[[dict[str, Any]], dict[str, Any]]


class Maps(tv_tensors.Mask):
    """Localization maps (C, H, W): moved with the image, never colour-jittered, and, unlike a
    mask, resized bilinearly, because they hold scores and not class numbers."""


@F.register_kernel(functional="resize", tv_tensor_cls=Maps)
def _resize_maps(inpt: Maps, size: list[int], **kwargs: Any) -> Maps:
    resized = F.resize_image(inpt.as_subclass(torch.Tensor), size)
    return tv_tensors.wrap(resized, like=inpt)


def _normalize() -> list[v2.Transform]:
    return [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(MEAN, STD)]


def classifier_training(resize: int, crop: int) -> Transform:
    """Resize to a square, flip, jitter, random crop (paper: 384 and 320)."""
    return v2.Compose([v2.Resize((resize, resize)), v2.RandomHorizontalFlip(),
                       v2.ColorJitter(**JITTER), v2.RandomCrop(crop), *_normalize()])


def refinement_training(size: int) -> Transform:
    """Resize to a square, jitter, flip image and maps together (paper: 320)."""
    return v2.Compose([v2.Resize((size, size)), v2.ColorJitter(**JITTER),
                       v2.RandomHorizontalFlip(), *_normalize()])


def evaluation(size: int) -> Transform:
    """Resize everything to a square and normalise, nothing random."""
    return v2.Compose([v2.Resize((size, size)), *_normalize()])


def image_only(size: int) -> Transform:
    """Resize the image to a square and normalise; saliency and mask keep their own size."""
    transform = evaluation(size)

    def apply(sample: dict[str, Any]) -> dict[str, Any]:
        return sample | {"image": transform(sample["image"])}

    return apply
