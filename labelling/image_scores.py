"""How good a classifier is at naming what is in an image: mAP and F1, and what to make of them.

In: logits and image-level labels, batch after batch. Out: `ImageScores`, and a sentence that says
whether the classifier has learned. Image-level labels are always there, masks are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Skill is the way from the mAP of a random ranking (0) to a perfect one (1). For a class that a
# tenth of the images show, a fifth means AP 0.28: of the images ranked first, about seven in ten do
# not show it, and what their maps point at is not the class. A half means AP 0.55: every other one.
NOT_LEARNED, LITTLE_LEARNED = 0.2, 0.5
FEW_POSITIVES = 5  # images of a class, on average: with fewer, mAP is mostly chance


class ImageScorer:
    """Collects logits and labels; 5 bytes for each image and class.

    Args:
        num_classes: columns of logits and labels.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        """Forget all that was added."""
        self._logits: list[Tensor] = []  # on their device: a copy would make the CPU wait
        self._labels: list[Tensor] = []

    def update(self, logits: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> None:
        """Add a batch.

        Args:
            logits: (B, C) float, above 0 where the class is taken to be present.
            labels: (B, C) of 0 and 1.

        Raises:
            ValueError: the shapes differ from each other or from `num_classes`.
        """
        scores, present = torch.as_tensor(logits).detach().float(), torch.as_tensor(labels) > 0
        if scores.shape != present.shape or scores.shape[1:] != (self.num_classes,):
            raise ValueError(f"logits {tuple(scores.shape)}, labels {tuple(present.shape)}, but "
                             f"there are {self.num_classes} classes")
        self._logits.append(scores)
        self._labels.append(present)

    def _all(self) -> tuple[np.ndarray, np.ndarray]:
        empty = torch.zeros(0, self.num_classes)
        logits, labels = (torch.cat([part.cpu() for part in (empty.to(kind), *parts)]).numpy()
                          for parts, kind in ((self._logits, torch.float32),
                                              (self._labels, torch.bool)))
        if np.isnan(logits).any():
            raise FloatingPointError("a logit is not a number: lower --lr, or use --amp off")
        return logits, labels

    def state(self) -> list[Tensor]:
        """All that was added, as `update` takes it: logits (N, C) float32, labels (N, C) bool."""
        return [torch.from_numpy(part) for part in self._all()]

    def gather(self, runtime: Any) -> None:
        """Take in what the other processes have collected; every process has all of it then."""
        parts = runtime.gather(self._all())
        self._logits, self._labels = ([torch.from_numpy(part[i]) for part in parts] for i in (0, 1))

    def scores(self) -> "ImageScores":
        """The scores of all that was added."""
        logits, labels = self._all()
        positives = labels.sum(axis=0)
        judged = positives > 0
        columns = range(self.num_classes)
        precision = np.array([average_precision(logits[:, c], labels[:, c]) for c in columns])
        chance = np.array([random_average_precision(int(positives[c]), len(labels))
                           for c in columns])
        claimed = logits > 0
        hits = (claimed & labels).sum(axis=0)
        f1 = 2 * hits / np.maximum(claimed.sum(axis=0) + positives, 1)

        def mean(values: np.ndarray) -> float:
            return float(values[judged].mean()) if judged.any() else 0.0

        return ImageScores(
            map=mean(precision), f1=mean(f1), random_map=mean(chance), images=len(labels),
            class_ap=precision.tolist(), class_f1=f1.tolist(), class_images=positives.tolist())


@dataclass(frozen=True)
class ImageScores:
    """Scores in [0, 1]. Means run over the classes that some image shows.

    Attributes:
        map: mean average precision.
        f1: mean over classes of the harmonic mean of precision and recall, a class being claimed
            where its logit is above 0.
        random_map: the mAP that a random ranking of these images has on average.
        images: how many.
        class_ap, class_f1: per class; 0 where no image shows it.
        class_images: images that show each class.
    """

    map: float
    f1: float
    random_map: float
    images: int
    class_ap: list[float]
    class_f1: list[float]
    class_images: list[int]

    @property
    def skill(self) -> float | None:
        """The way from a random ranking (0) to a perfect one (1); None: nothing to rank."""
        room = 1 - self.random_map
        return (self.map - self.random_map) / room if self.images and room > 1e-9 else None

    def figures(self) -> dict[str, float]:
        """What an epoch's line, metrics.json and TensorBoard show."""
        return {"map": self.map, "f1": self.f1}

    def table(self, names: Sequence[str]) -> str:
        """A table per class, in percent."""
        width = max(len(name) for name in (*names, "class"))
        lines = [f"{'class':{width}}  images     AP     F1"]
        lines += [f"{name:{width}}  {count:6d}  {100 * ap:5.1f}  {100 * f1:5.1f}"
                  f"{'' if count else '   (in no image)'}"
                  for name, count, ap, f1 in zip(names, self.class_images, self.class_ap,
                                                 self.class_f1, strict=True)]
        lines.append(f"{'mean':{width}}  {self.images:6d}  {100 * self.map:5.1f}  "
                     f"{100 * self.f1:5.1f}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Verdict:
    """What to make of the scores: one sentence, and whether the next stage is worth its time."""

    learned: bool
    sentence: str


def verdict(scores: ImageScores, *, held_out: bool) -> Verdict:
    """Whether a classifier has learned, and what to try if not.

    Args:
        scores: on image-level labels.
        held_out: whether the images took no part in the training; on training images a good mAP
            may be memory.
    """
    skill = scores.skill
    where = f"{scores.images} {'held-out' if held_out else 'training'} images"
    if skill is None:
        return Verdict(False, f"The classifier cannot be judged on {where}: every class is in all "
                       "of them or in none, so there is nothing to tell apart; add images without "
                       "the class.")
    figures = f"mAP {scores.map:.2f} on {where} (a random ranking has {scores.random_map:.2f})"
    shown = [count for count in scores.class_images if count]
    if sum(shown) < FEW_POSITIVES * len(shown):
        figures += f"; with {sum(shown) / len(shown):.1f} images a class that is little evidence"
    if skill < NOT_LEARNED:
        more = ", add images" if held_out else ""
        return Verdict(False, f"The classifier has not learned: {figures}. Its maps are noise. "
                       "Try more --epochs, --init imagenet, a higher --lr or the milder --drs "
                       f"fixed --delta 0.7{more}, and check the labels in the list.")
    if skill < LITTLE_LEARNED:
        return Verdict(True, f"The classifier has learned little: {figures}. Try more --epochs or "
                       "--init imagenet before the next stage.")
    return Verdict(True, f"The classifier has learned: {figures}.")


def average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """Area under the precision-recall curve of one class, as a step function.

    The sum over the thresholds of precision times the gain in recall, without interpolation
    (neither VOC's 11 points nor its rising envelope, both of which flatter). Images of equal score
    share a threshold, so that their order does not matter.

    Args:
        scores: (N,) float.
        present: (N,) bool.

    Returns:
        In [0, 1]; 0 where no image shows the class.
    """
    positives = int(present.sum())
    if not positives:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # last of equal scores
    hits = present[order].cumsum()[ends]
    gains = np.diff(hits, prepend=0)
    return float((hits / (ends + 1) * gains).sum() / positives)


def random_average_precision(positives: int, images: int) -> float:
    """The average precision that a random ranking has in expectation.

    A positive at rank k has (positives - 1) (k - 1) / (images - 1) others before it on average;
    the mean over k of its precision gives the closed form. It tends to positives / images.
    """
    if not positives:
        return 0.0
    if images == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, images + 1)).sum())
    return (harmonic + (images - harmonic) * (positives - 1) / (images - 1)) / images
