"""Segmentation scores from one streaming confusion matrix."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelling.labels import IGNORE

CODES = 256  # values of an 8-bit label


def count_pairs(target: np.ndarray, codes: np.ndarray, num_codes: int) -> np.ndarray:
    """How often each pair of (8-bit target, code below `num_codes`) occurs: (256, num_codes).

    Raises:
        ValueError: the shapes differ.
    """
    if target.shape != codes.shape:
        raise ValueError(f"prediction has {codes.size} pixels, ground truth {target.size}")
    narrow: Any = np.uint16 if CODES * num_codes <= 1 << 16 else np.uint32
    pairs = target.astype(narrow) * narrow(num_codes) + codes
    return np.bincount(pairs.ravel(), minlength=CODES * num_codes).reshape(CODES, num_codes)


class ConfusionMatrix:
    """Counts of (ground truth, prediction) pixels; its memory does not grow with the images.

    Args:
        num_labels: labels including background.
        unlabelled: what a predicted 255 is: "miss" (wrong, but no false positive of any class)
            or "skip" (the pixel does not count).
    """

    def __init__(self, num_labels: int, unlabelled: str = "miss") -> None:
        if unlabelled not in ("miss", "skip"):
            raise ValueError(f"unlabelled must be 'miss' or 'skip', got {unlabelled!r}")
        self.num_labels, self.unlabelled = num_labels, unlabelled
        # One column more than rows: predictions of no label.
        self.counts = torch.zeros(num_labels, num_labels + 1, dtype=torch.int64)

    def update(self, prediction: np.ndarray | Tensor, target: np.ndarray | Tensor) -> float:
        """Add integer label arrays of equal shape; target 255 is ignored.

        Returns:
            The mIoU of this image alone (see `mean_iou`).

        Raises:
            ValueError: the shapes differ, or a label is out of range.
        """
        counts = count_labels(prediction, target, self.num_labels, self.unlabelled)
        self.counts += torch.from_numpy(counts)
        return mean_iou(counts)

    def scores(self) -> "Scores":
        """The scores of all that was added."""
        return Scores.of(self.counts.cpu().numpy())


def count_labels(prediction: np.ndarray | Tensor, target: np.ndarray | Tensor, num_labels: int,
                 unlabelled: str = "miss") -> np.ndarray:
    """One image's counts, (n, n + 1) int64, as `ConfusionMatrix` adds them up.

    Raises:
        ValueError: the shapes differ, or a label is out of range.
    """
    pairs = count_pairs(_as_codes(target, "ground truth"), _as_codes(prediction, "prediction"),
                        CODES)
    check_labels(pairs[:IGNORE].sum(axis=1), num_labels, "ground truth")
    pairs = pairs[:num_labels]
    check_labels(pairs[:, :IGNORE].sum(axis=0), num_labels, "prediction")
    missed = pairs[:, IGNORE:] if unlabelled == "miss" else np.zeros((num_labels, 1), np.int64)
    return np.concatenate((pairs[:, :num_labels], missed), axis=1)


def label_iou(counts: np.ndarray) -> dict[int, float]:
    """The IoU of each label that is in the ground truth.

    Args:
        counts: (n, n + 1), as in `ConfusionMatrix.counts`.
    """
    hits, truth, predicted = _marginals(counts)
    union = truth + predicted - hits
    return {int(label): float(hits[label] / union[label]) for label in np.flatnonzero(truth)}


def mean_iou(counts: np.ndarray) -> float:
    """The mean of `label_iou`; NaN where the ground truth has no label at all."""
    iou = label_iou(counts)
    return sum(iou.values()) / len(iou) if iou else float("nan")


def _marginals(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each label that are right, in the ground truth, and predicted."""
    return counts.diagonal(), counts.sum(axis=1), counts[:, :-1].sum(axis=0)


def _mean(values: np.ndarray, chosen: np.ndarray) -> float:
    return float(values[chosen].mean()) if chosen.any() else 0.0


def _as_codes(labels: np.ndarray | Tensor, what: str) -> np.ndarray:
    """Labels as a flat array of bytes.

    Raises:
        ValueError: a label is not in 0 to 255.
    """
    array = np.ravel(labels.cpu().numpy() if isinstance(labels, Tensor) else labels)
    if array.dtype != np.uint8:
        wrong = array[(array < 0) | (array > IGNORE)]
        if wrong.size:
            raise ValueError(f"{what} holds label {wrong[0]}, which is no 8-bit number")
        array = array.astype(np.uint8)
    return array


def check_labels(pixels: np.ndarray, num_labels: int, what: str) -> None:
    """Check a histogram of labels.

    Raises:
        ValueError: there are pixels of a label from `num_labels` on.
    """
    wrong = np.flatnonzero(pixels[num_labels:])
    if wrong.size:
        raise ValueError(f"{what} holds label {num_labels + wrong[0]}, but there are "
                         f"{num_labels} labels (0 to {num_labels - 1})")


@dataclass
class Scores:
    """Scores in [0, 1]. Means run over the labels present in the ground truth.

    `precision` and `recall` (= mean accuracy) include the background, `foreground_*` do not.
    """

    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    miou: float
    precision: float
    recall: float
    foreground_recall: float
    foreground_precision: float
    class_iou: list[float]
    class_precision: list[float]
    class_recall: list[float]
    class_pixels: list[int]

    @classmethod
    def of(cls, counts: np.ndarray) -> "Scores":
        """The scores of a confusion matrix (n, n + 1) of pixel counts."""
        counts = counts.astype(np.float64)
        hits, truth, predicted = _marginals(counts)
        present = truth > 0
        foreground = present & (np.arange(len(counts)) > 0)
        iou = hits / np.maximum(truth + predicted - hits, 1)
        recall, precision = hits / np.maximum(truth, 1), hits / np.maximum(predicted, 1)
        total = max(truth.sum(), 1)
        return cls(
            pixel_accuracy=float(hits.sum() / total), mean_accuracy=_mean(recall, present),
            frequency_weighted_iou=float((truth / total * iou)[present].sum()),
            miou=_mean(iou, present), precision=_mean(precision, present),
            recall=_mean(recall, present), foreground_recall=_mean(recall, foreground),
            foreground_precision=_mean(precision, foreground), class_iou=iou.tolist(),
            class_precision=precision.tolist(), class_recall=recall.tolist(),
            class_pixels=truth.astype(int).tolist())

    def table(self, names: list[str]) -> str:
        """A table of the scores, in percent; `names` are those of the labels, background first."""
        width = max(len(name) for name in (*names, "background"))
        lines = [f"{'class':{width}}    IoU  precision  recall"]
        for name, iou, precision, recall, pixels in zip(
                names, self.class_iou, self.class_precision, self.class_recall,
                self.class_pixels, strict=True):
            absent = "" if pixels else "   (not in the ground truth)"
            lines.append(f"{name:{width}}  {100 * iou:5.2f}      {100 * precision:5.2f}   "
                         f"{100 * recall:5.2f}{absent}")
        lines.append(f"{'mean':{width}}  {100 * self.miou:5.2f}      {100 * self.precision:5.2f}   "
                     f"{100 * self.recall:5.2f}")
        lines.append(f"mIoU {100 * self.miou:.2f}   pixel accuracy {100 * self.pixel_accuracy:.2f}"
                     f"   frequency-weighted IoU {100 * self.frequency_weighted_iou:.2f}")
        return "\n".join(lines)
