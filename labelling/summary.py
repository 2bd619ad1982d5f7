"""What came of a labelling stage, counted while it writes: one line, and a warning if need be.

In: label images (H, W) uint8, one after the other. Out: sentences for the log.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from labelling.labels import IGNORE

NUMBERS = 256  # that a label's byte can hold
SHOWN = 5  # classes that a line names
MANY_EMPTY = 0.5  # share of the images


class LabelSummary:
    """Counts over label images; its memory does not grow with them.

    Args:
        classes: names, in the order of their indices.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.images = self.empty = 0
        self.pixels = np.zeros(NUMBERS, np.int64)  # of each label number
        self.expected = np.zeros(len(self.classes), np.int64)  # images said to show each class
        self.skipped: Counter[str] = Counter()

    def add(self, label: np.ndarray | Tensor, expected: Iterable[int] = ()) -> None:
        """Count a label image.

        Args:
            label: (H, W) uint8, 0 background, class index + 1, 255 undecided.
            expected: classes, from 0, that the image is said to show.
        """
        counts = np.bincount(np.asarray(label).ravel(), minlength=NUMBERS)
        self.pixels += counts
        self.images += 1
        self.empty += not counts[1:IGNORE].any()
        self.expected[list(expected)] += 1

    def skip(self, reason: str, count: int = 1) -> None:
        """Count images for which no label was made; `reason` as in "12 were there already"."""
        if count:
            self.skipped[reason] += count

    def gather(self, runtime: Any) -> None:
        """Take in what the other processes have counted; every process has all of it then."""
        parts = runtime.gather((self.images, self.empty, self.pixels, self.expected,
                                self.skipped))
        images, empty, pixels, expected, skipped = zip(*parts, strict=True)
        self.images, self.empty = sum(images), sum(empty)
        self.pixels, self.expected = sum(pixels), sum(expected)
        self.skipped = sum(skipped, Counter())

    @property
    def never(self) -> list[str]:
        """Classes that no label shows: of those expected, or of all if nothing was said."""
        asked = self.expected > 0 if self.expected.any() else np.ones(len(self.classes), bool)
        return [name for name, wanted, pixels in zip(
            self.classes, asked, self.pixels[1:len(self.classes) + 1], strict=True)
            if wanted and not pixels]

    def figures(self) -> dict[str, Any]:
        """The same as plain values, for a JSON file."""
        total = max(int(self.pixels.sum()), 1)
        return {"images": self.images, "skipped": dict(self.skipped), "empty": self.empty,
                "foreground": int(self.pixels[1:IGNORE].sum()) / total,
                "undecided": int(self.pixels[IGNORE]) / total, "never": self.never}

    def line(self, folder: Path) -> str:
        """The one line at the end of a stage; `folder` is where to look."""
        figures = self.figures()
        parts = [f"{self.images} images labelled"]
        parts += [f"{count} {reason}" for reason, count in self.skipped.items()]
        if self.images:
            parts += [f"foreground {figures['foreground']:.1%}, 255 {figures['undecided']:.1%} of "
                      "the pixels", f"{self.empty} all background"]
            if never := self.never:
                more = f" and {len(never) - SHOWN} more" if len(never) > SHOWN else ""
                parts.append(f"never seen: {', '.join(never[:SHOWN])}{more}")
        return f"{folder}: {'; '.join(parts)}"

    def warning(self) -> str | None:
        """What to try if more than half of the images are all background; None if they are not."""
        if self.empty <= MANY_EMPTY * self.images:
            return None
        return (f"{self.empty} of {self.images} images are all background: lower --alpha and "
                "--background-score, try another --background, or train longer (does the "
                "classifier's mAP say that it has learned?)")
