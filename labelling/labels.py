"""Label PNGs: the values of their pixels and the VOC palette. Loads no PyTorch."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from utils.files import UserError
from utils.images import open_image
from utils.writing import save_png

IGNORE = 255
SALIENCY_THRESHOLD = 50  # a saliency pixel is foreground above this value of 255


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


def save_label(path: Path, label: ArrayLike) -> None:
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
