"""Pseudo labels: the VOC palette, label PNGs, and the one rule that turns maps into labels."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.files import UserError
from utils.images import open_image
from utils.writing import save_png

IGNORE = 255
SALIENCY_THRESHOLD = 50  # a saliency pixel is foreground above this value of 255
CONFLICT_SCORE = 0.9  # a pixel with more than CONFLICT_COUNT scores above this is ignored
CONFLICT_COUNT = 2


@lru_cache(maxsize=1)
def voc_palette() -> bytes:
    """The PASCAL VOC colour map: 256 RGB triples; label bits are spread over colour bits."""
    labels = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((labels >> (3 * bit + channel) & 1) << (7 - bit)).astype(
                np.uint8)
    return colors.tobytes()


def save_label(path: Path, label: np.ndarray | Tensor) -> None:
    """Write (H, W) uint8 labels as a palette PNG, atomically."""
    image = Image.fromarray(np.asarray(label, dtype=np.uint8))
    image.putpalette(voc_palette())
    save_png(path, image)


def read_label(path: Path) -> np.ndarray:
    """Read a label PNG (palette or grey) as (H, W) uint8 class numbers.

    Raises:
        UserError: missing, unreadable, or a colour image whose numbers are lost.
    """
    with open_image(path, "label file", ("PNG",)) as image:
        if image.mode not in ("P", "L"):
            raise UserError(f"{path}: a label image must be a palette or grey PNG, "
                            f"this one is {image.mode}")
        return np.array(image)


def colorize(label: np.ndarray) -> np.ndarray:
    """(H, W) labels -> (H, W, 3) uint8 RGB in VOC colours."""
    return np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)[label]


def background_scores(size: tuple[int, int], saliency: Tensor | None,
                      constant: float) -> Tensor:
    """The background's score at each pixel of an image of `size` (height, width).

    Args:
        saliency: (H, W) of 0 and 1; the score is then 1 - saliency. None: `constant` everywhere.

    Returns:
        (H, W) float32.
    """
    if saliency is None:
        return torch.full(size, constant)
    return 1.0 - saliency.float()


def fuse(scores: Tensor, classes: Sequence[int] | Tensor, background: Tensor, *,
         alpha: float, ignore: bool = True) -> Tensor:
    """The pseudo-label rule (spec, step 3): localization scores + background cue -> labels.

    Args:
        scores: (K, H, W) float >= 0, the maps of the classes present in the image.
        classes: their K 0-based indices, ascending.
        background: (H, W) float score of the background: 1 - saliency, or a constant.
        alpha: scores below are set to 0.
        ignore: mark as 255 the pixels where several classes are certain, and the salient pixels
            (background score 0) that no class claims. Off, the rule is the one of validation.

    Returns:
        (H, W) uint8: 0 background, class index + 1, or 255.
    """
    best = background.to(scores, copy=True)
    label = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    certain = (best > CONFLICT_SCORE).to(torch.uint8)
    # A running maximum: argmax over a short first dimension takes ten times as long.
    for score, number in zip(scores, torch.as_tensor(classes).tolist(), strict=True):
        score = score * (score >= alpha)
        won = (score > best).to(torch.uint8)  # the first of equal maxima keeps the pixel
        torch.maximum(label, won.mul_(number + 1), out=label)  # numbers ascend
        torch.maximum(best, score, out=best)
        certain += score > CONFLICT_SCORE
    if ignore:
        unclaimed = (background == 0).to(label.device) & (label == 0)
        ignored = unclaimed | (certain > CONFLICT_COUNT)
        torch.maximum(label, ignored.to(torch.uint8).mul_(IGNORE), out=label)
    return label
