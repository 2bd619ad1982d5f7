"""Localization maps on disk: sparse, compressed, and viewable.

One PNG per image: the maps of the classes present, 8 bit, one below the other. Which classes they
are and how large one map is stands in a text chunk. A 320x320 map takes about 20 KB, a twentieth
to a hundredth of the official 2 MB an image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from utils.files import UserError
from utils.images import open_image
from utils.writing import save_png

KEY = "localization maps"  # keyword of the PNG text chunk
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 26)  # Pillow takes more for an attack


def to_bytes(scores: Tensor) -> np.ndarray:
    """Scores (K, H, W) float -> 8-bit maps, as they are stored: 255 times, truncated.

    Maps of so many classes and pixels that no file of them would be read again become smaller.
    """
    if scores.numel() > MAX_PIXELS:
        factor = (MAX_PIXELS / scores.numel()) ** 0.5
        height, width = (max(1, int(side * factor)) for side in scores.shape[1:])
        scores = F.interpolate(scores[None].float(), (height, width), mode="area")[0]
    return (scores.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()


def save_maps(path: Path, maps: np.ndarray, classes: Sequence[int]) -> None:
    """Write maps (K, H, W) uint8 of the 0-based `classes`, atomically."""
    count, height, width = maps.shape
    if count != len(classes) or maps.dtype != np.uint8:
        raise ValueError(f"{len(classes)} classes, maps {maps.shape} {maps.dtype}")
    info = PngInfo()
    info.add_text(KEY, f"{height}x{width} classes {' '.join(map(str, classes))}".strip())
    # An image without classes still needs a pixel to be a PNG.
    tiles = maps.reshape(count * height, width) if count else np.zeros((1, 1), np.uint8)
    save_png(path, Image.fromarray(tiles), pnginfo=info)


def load_maps(path: Path, num_classes: int) -> tuple[np.ndarray, list[int]]:
    """Read maps (K, H, W) uint8 and their ascending 0-based classes.

    Raises:
        UserError: missing, truncated, not written by `save_maps`, or classes out of range.
    """
    with open_image(path, "localization map", ("PNG",),
                    "run make_localization_maps.py with the same list") as image:
        image.load()
        tiles, text = np.array(image), image.info.get(KEY)
    try:
        size, _, numbers = str(text).partition(" classes")
        height, width = (int(side) for side in size.split("x"))
        classes = [int(number) for number in numbers.split()]
        maps = tiles.reshape(len(classes), height, width) if classes else \
            np.zeros((0, height, width), np.uint8)
    except ValueError as error:
        raise UserError(f"{path}: a PNG, but not localization maps ({text})") from error
    if classes != sorted(set(classes)) or any(not 0 <= c < num_classes for c in classes):
        raise UserError(f"{path}: classes {classes}, but the data set has {num_classes}")
    return maps, classes
