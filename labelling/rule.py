"""The one rule that turns localization maps into pseudo labels (spec, step 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from labelling.labels import IGNORE

CONFLICT_SCORE = 0.9  # a pixel with more than CONFLICT_COUNT scores above this is ignored
CONFLICT_COUNT = 2


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
