"""The label rule at many alphas in one pass over the pixels.

The strongest class of a pixel is the same at every alpha; alpha only decides whether the pixel is
given to it. So a pixel needs its strongest class and the number of alphas at which it claims the
pixel, and one histogram of both makes the confusion matrices of all alphas.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from labelling.labels import IGNORE
from labelling.metrics import check_labels, count_pairs

# Alphas at which localization maps are always scored: 0 to 0.6 in steps of 0.05.
ALPHAS = tuple(round(0.05 * step, 2) for step in range(13))


def claims(scores: Tensor, classes: Sequence[int], salient: np.ndarray | None,
           alphas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Which label claims each pixel, and at how many of the alphas.

    At alpha number i, `label` where `level > i`, else 0, is what `labelling.rule.fuse` gives
    without its ignore steps.

    Args:
        scores: (K, H, W) float32 >= 0, the maps of `classes`.
        classes: their 0-based indices, ascending.
        salient: (H, W) bool, where the background's score is 0 instead of 1. None: alpha itself
            is the background's score.
        alphas: ascending, fewer than 256.

    Returns:
        (label, level), both (H, W) uint8.
    """
    size = tuple(scores.shape[1:])
    label, level = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    highest = np.zeros(size, np.float32)
    for index, score in zip(classes, scores.numpy(), strict=True):
        higher = score > highest  # so the first of equal maxima stays, and a class beats no score
        label[higher] = index + 1
        np.maximum(highest, score, out=highest)
    for alpha in alphas:
        level += highest > np.float32(alpha) if salient is None else highest >= np.float32(alpha)
    level[label == 0] = 0
    if salient is not None:
        level[highest <= (~salient).astype(np.float32)] = 0
    return label, level


def sweep_counts(claimed: tuple[np.ndarray, np.ndarray], target: np.ndarray, num_labels: int,
                 num_alphas: int) -> np.ndarray:
    """One image's counts at each alpha.

    Args:
        claimed: from `claims`.
        target: mask, (H, W) uint8.

    Returns:
        (num_alphas, n, n + 1) int64: for each alpha what `labelling.metrics.count_labels` gives.

    Raises:
        ValueError: the shapes differ, or a label of the mask is out of range.
    """
    label, level = claimed
    codes = level.astype(np.uint16) * np.uint16(num_labels) + label
    pairs = count_pairs(target, codes, (num_alphas + 1) * num_labels)
    check_labels(pairs[:IGNORE].sum(axis=1), num_labels, "ground truth")
    pairs = pairs[:num_labels].reshape(num_labels, num_alphas + 1, num_labels)
    counts = np.zeros((num_alphas, num_labels, num_labels + 1), np.int64)
    for i in range(num_alphas):
        counts[i, :, :num_labels] = pairs[:, i + 1:].sum(axis=1)
        counts[i, :, 0] += pairs[:, :i + 1].sum(axis=(1, 2))
    return counts
