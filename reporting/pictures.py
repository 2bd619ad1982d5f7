"""The images of the explorer: which of them, and each with all its layers, as data URIs.

On the page an image is at most SIDE pixels long. Its maps are resized to that by the same
interpolation as in scoring and stored as 8-bit numbers: q stands for the score q / 255 in float32.
The page applies the label rule to these numbers, so that for every alpha it shows exactly

    fuse(q.float() / 255, classes, background_scores(size, saliency, alpha), alpha=alpha)

Without saliency alpha itself is the background's score, as in scoring. A number reaches alpha where
float32(q / 255) >= float32(alpha), which is one threshold on q: the page need not compute scores.
"""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, features

from datasets.images import read_companion, read_image
from datasets.layout import DataRoot
from datasets.scoring import resized_scores
from labelling.labels import IGNORE, SALIENCY_THRESHOLD
from labelling.maps import load_maps
from labelling.metrics import count_labels, label_iou, mean_iou
from labelling.sweep import claims, sweep_counts
from reporting.run import Result
from utils.files import UserError
from utils.logging import get_logger

log = get_logger()
SIDE = 400  # longest side of a picture, in pixels
EXTREMES = 10  # of the worst and of the best images
PHOTO_QUALITY = 80
PHOTO_FORMAT = "WEBP" if features.check("webp") else "JPEG"


def choose(ids: Sequence[str], count: int, per_image: dict[str, float]) -> list[str]:
    """`count` of the ids, evenly spaced, and those with the lowest and highest scores.

    Evenly spaced, because a choice by hand would prove nothing; in the order of the list.
    """
    places = np.linspace(0, len(ids) - 1, min(count, len(ids)), dtype=int)
    ranked = sorted((image_id for image_id in ids if image_id in per_image),
                    key=lambda image_id: per_image[image_id])
    chosen = {ids[place] for place in places}
    chosen.update(ranked[:EXTREMES] + ranked[-EXTREMES:])
    return [image_id for image_id in ids if image_id in chosen]


@dataclass(frozen=True)
class Gallery:
    """Makes the page's record of an image; called from several threads.

    Attributes:
        layers: results, each with the folder of its files.
        mask_dir, saliency_dir: None: there are none.
        alphas: key of a result of maps -> alpha at which the image is scored.
    """

    root: DataRoot
    layers: Sequence[tuple[Result, Path]]
    mask_dir: Path | None
    saliency_dir: Path | None
    alphas: dict[str, float]

    def __call__(self, image_id: str) -> dict[str, Any] | None:
        """id, size, picture, classes, doubt and layers of an image; None if it is unreadable.

        A layer that has no file for this image is left out; one with an unfit file as well, with
        a warning.
        """
        try:
            image, orientation = read_image(self.root.image(image_id))
        except UserError as error:
            log.warning("left out: %s", error)
            return None
        size = (image.height, image.width)
        small = page_size(size)
        companion = {}
        for name, folder in (("mask", self.mask_dir), ("saliency", self.saliency_dir)):
            if folder is not None and (file := folder / f"{image_id}.png").is_file():
                companion[name] = _tolerant(read_companion, file, size, orientation)
        mask, saliency = companion.get("mask"), companion.get("saliency")
        salient = None if saliency is None else saliency > SALIENCY_THRESHOLD
        record: dict[str, Any] = {"id": image_id, "size": small,
                                  "picture": photo_uri(image, small), "layers": {}}
        if salient is not None:
            record["salient"] = numbers_uri(nearest(salient.astype(np.uint8), small))
        for result, folder in self.layers:
            file = folder / f"{image_id}.png"
            if not file.is_file():
                continue
            read = self._maps if result.maps else self._labels
            layer = _tolerant(read, file, result, size, mask, salient)
            if layer is not None:
                record["layers"][result.key] = layer
        if mask is not None:
            record["layers"]["mask"] = {"numbers": numbers_uri(nearest(mask, small)),
                                        "labels": _labels_in(mask)}
        found = {label for layer in record["layers"].values() for label in layer["labels"]}
        record["labels"] = sorted(found)
        doubts = [layer["doubt"] for layer in record["layers"].values() if "doubt" in layer]
        record["doubt"] = doubts[-1] if doubts else None
        return record

    def _maps(self, file: Path, result: Result, size: tuple[int, int], mask: np.ndarray | None,
              salient: np.ndarray | None) -> dict[str, Any]:
        maps, classes = load_maps(file, len(self.root.classes))
        small = page_size(size)
        numbers = (resized_scores(maps, small).clamp(0, 1) * 255).round().byte().numpy()
        layer = {"numbers": numbers_uri(numbers.reshape(-1, small[1])) if classes else None,
                 "classes": classes, "labels": [index + 1 for index in classes],
                 "doubt": round(doubt(numbers), 4), "alpha": self.alphas[result.key]}
        if mask is not None:
            claimed = claims(resized_scores(maps, size), classes, salient,
                             [self.alphas[result.key]])
            layer |= _scores(sweep_counts(claimed, mask, len(self.root.classes) + 1, 1)[0])
        return layer

    def _labels(self, file: Path, result: Result, size: tuple[int, int],
                mask: np.ndarray | None, _: np.ndarray | None) -> dict[str, Any]:
        label = read_companion(file, size)
        layer = {"numbers": numbers_uri(nearest(label, page_size(size))),
                 "labels": _labels_in(label)}
        if mask is not None:
            layer |= _scores(count_labels(label, mask, len(self.root.classes) + 1))
        return layer


def doubt(numbers: np.ndarray) -> float:
    """How unsure maps (K, h, w) uint8 are, from 0 to 1.

    With p the highest score of a pixel it is sum p (1 - p) / sum p: the mean doubt about the
    pixels that are claimed. 1 where no map claims anything.
    """
    highest = numbers.max(axis=0) / 255 if len(numbers) else np.zeros(1)
    claimed = highest.sum()
    return float((highest * (1 - highest)).sum() / claimed) if claimed else 1.0


def page_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that an image of `size` has on the page: smaller, never larger."""
    factor = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels or other numbers (H, W) uint8 at another (height, width), none of them mixed."""
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_NEAREST)


def photo_uri(image: Image.Image, size: tuple[int, int]) -> str:
    """A photo at `size`, as data URI."""
    small = image if image.size == size[::-1] else image.resize(
        size[::-1], Image.Resampling.LANCZOS)
    return _uri(small, PHOTO_FORMAT, quality=PHOTO_QUALITY)


def numbers_uri(array: np.ndarray) -> str:
    """(H, W) uint8 as data URI of a grey PNG, which a canvas gives back number by number."""
    return _uri(Image.fromarray(array), "PNG")


def _uri(image: Image.Image, format: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{format.lower()};base64,{text}"


def readable(name: str | os.PathLike) -> str:
    """A file name as text that can be written, whatever bytes it holds."""
    return os.fspath(name).encode("utf-8", "replace").decode("utf-8")


def _labels_in(label: np.ndarray) -> list[int]:
    return [int(number) for number in np.unique(label) if number not in (0, IGNORE)]


def _scores(counts: np.ndarray) -> dict[str, Any]:
    """mIoU of an image and IoU of each label in its mask, for JSON."""
    iou = label_iou(counts)
    if not iou:
        return {}
    return {"miou": round(mean_iou(counts), 4),
            "iou": {str(label): round(value, 4) for label, value in iou.items()}}


def _tolerant(function: Any, file: Path, *args: Any) -> Any:
    """What `function` makes of a file, or None with a warning if the file is unfit."""
    try:
        return function(file, *args)
    except (UserError, ValueError) as error:
        log.warning("left out: %s", error)
        return None
