"""Segmentation scores from one streaming confusion matrix."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labelling.labels import IGNORE


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

    def update(self, prediction: np.ndarray | Tensor, target: np.ndarray | Tensor) -> None:
        """Add integer label arrays of equal shape; target 255 is ignored.

        Raises:
            ValueError: the shapes differ, or a label is out of range.
        """
        prediction = torch.as_tensor(prediction).flatten().to(torch.int64)
        target = torch.as_tensor(target).flatten().to(torch.int64)
        if prediction.shape != target.shape:
            raise ValueError(f"prediction has {prediction.numel()} pixels, ground truth "
                             f"{target.numel()}")
        n = self.num_labels
        known = target != IGNORE
        if self.unlabelled == "skip":
            known &= prediction != IGNORE
        target, prediction = target[known], prediction[known]
        for name, values in (("ground truth", target),
                             ("prediction", prediction[prediction != IGNORE])):
            wrong = values[(values < 0) | (values >= n)]
            if wrong.numel():
                raise ValueError(f"{name} holds label {int(wrong[0])}, but there are "
                                 f"{n} labels (0 to {n - 1})")
        prediction = torch.where(prediction == IGNORE, n, prediction)
        counts = torch.bincount(target * (n + 1) + prediction, minlength=n * (n + 1))
        self.counts += counts.reshape(n, n + 1).to(self.counts)

    def scores(self) -> "Scores":
        """The scores of all that was added."""
        counts = self.counts.double().cpu()
        hits, truth = counts.diagonal(), counts.sum(dim=1)
        predicted = counts[:, :self.num_labels].sum(dim=0)
        total = truth.sum().clamp(min=1)
        union = truth + predicted - hits
        present = truth > 0
        iou = hits / union.clamp(min=1)
        recall, precision = hits / truth.clamp(min=1), hits / predicted.clamp(min=1)

        def mean(values: Tensor) -> float:
            return float(values[present].mean()) if present.any() else 0.0

        foreground = present.clone()
        foreground[0] = False
        return Scores(
            pixel_accuracy=float(hits.sum() / total), mean_accuracy=mean(recall),
            frequency_weighted_iou=float((truth / total * iou)[present].sum()), miou=mean(iou),
            precision=mean(precision), recall=mean(recall),
            foreground_recall=float(recall[foreground].mean()) if foreground.any() else 0.0,
            foreground_precision=float(precision[foreground].mean()) if foreground.any() else 0.0,
            class_iou=iou.tolist(), class_precision=precision.tolist(),
            class_recall=recall.tolist(), class_pixels=truth.long().tolist())


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
