"""One image's pixels counted against its mask, for labels or for maps at many alphas.

In: the id of an image. Out: counts (A, n, n + 1) int64 of pixels by label in the mask and label
predicted, as `labelling.metrics.ConfusionMatrix` adds them up, one for each alpha (labels: A = 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datasets.images import image_size, read_companion
from datasets.layout import DataRoot
from labelling.labels import SALIENCY_THRESHOLD
from labelling.maps import load_maps
from labelling.metrics import count_labels
from labelling.sweep import claims, sweep_counts
from utils.files import UserError


@dataclass(frozen=True)
class LabelCounter:
    """Counts label PNGs; a predicted 255 is as `unlabelled` says (see `ConfusionMatrix`).

    Calling it raises a `UserError` that names a file which is unfit.
    """

    root: DataRoot
    labels_dir: Path
    mask_dir: Path
    unlabelled: str = "miss"

    def __call__(self, image_id: str) -> np.ndarray:
        size, orientation = image_size(self.root.image(image_id))
        files = self.labels_dir / f"{image_id}.png", self.mask_dir / f"{image_id}.png"
        label, mask = (read_companion(file, size, orientation) for file in files)
        try:
            return count_labels(label, mask, len(self.root.classes) + 1, self.unlabelled)[None]
        except ValueError as error:
            raise UserError(f"{files[0]} against {files[1]}: {error}") from error


@dataclass(frozen=True)
class MapCounter:
    """Counts what localization maps become at each of the ascending `alphas`, by the label rule
    without its ignore steps.

    Without saliency, alpha itself is the background's score: a pixel belongs to its strongest
    class where that exceeds alpha. Calling it raises a `UserError` that names an unfit file.
    """

    root: DataRoot
    maps_dir: Path
    mask_dir: Path
    saliency_dir: Path | None
    alphas: Sequence[float]

    def __call__(self, image_id: str) -> np.ndarray:
        size, orientation = image_size(self.root.image(image_id))
        name = f"{image_id}.png"
        maps, classes = load_maps(self.maps_dir / name, len(self.root.classes))
        mask = read_companion(self.mask_dir / name, size, orientation)
        salient = None if self.saliency_dir is None else \
            read_companion(self.saliency_dir / name, size, orientation) > SALIENCY_THRESHOLD
        claimed = claims(resized_scores(maps, size), classes, salient, self.alphas)
        try:
            return sweep_counts(claimed, mask, len(self.root.classes) + 1, len(self.alphas))
        except ValueError as error:
            raise UserError(f"{self.maps_dir / name} against {self.mask_dir / name}: "
                            f"{error}") from error


def resized_scores(maps: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Stored maps (K, h, w) uint8 as scores (K, H, W) float32 in [0, 1] of an image's size."""
    scores = torch.from_numpy(maps).float() / 255
    if scores.shape[1:] == size:
        return scores
    if not len(maps):
        return torch.zeros(0, *size)
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=True)[0]
