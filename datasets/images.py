"""Decoding of one image, and of the mask or saliency map that belongs to it, from strangers.

In: paths. Out: upright RGB images, (H, W) uint8 companions of the same size; anything wrong with a
file is a `UserError` that names it.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from labelling.labels import read_label
from utils.files import UserError

_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSED = range(5, 9)  # its values that swap height and width


def read_image(path: Path) -> tuple[Image.Image, int]:
    """Open any image as upright RGB; also return its EXIF orientation (1: stored upright).

    Raises:
        UserError: missing, truncated, no image, or absurdly large.
    """
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grey: keep the upper 8 bits
                image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
            elif "transparency" in image.info:  # a palette's: Pillow asks for this detour
                image = image.convert("RGBA")
            return image.convert("RGB"), orientation
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image") from error
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError,
            Image.DecompressionBombError) as error:
        raise UserError(f"{path}: unreadable image ({error})") from error


def read_companion(path: Path, size: tuple[int, int], orientation: int = 1) -> np.ndarray:
    """Read a mask or saliency map that belongs to an image.

    Args:
        path: palette or grey PNG.
        size: (height, width) of the upright image.
        orientation: the image's EXIF orientation. A companion drawn on the image as it is stored,
            before rotation, is rotated along with it.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: missing, unreadable or of another size than the image.
    """
    return match_image(read_label(path), path, size, orientation)


def match_image(array: np.ndarray, path: Path, size: tuple[int, int], orientation: int
                ) -> np.ndarray:
    """A mask or saliency map (H, W), read from `path`, as it lies on the upright image.

    Raises:
        UserError: its size is not the image's.
    """
    if array.shape != size and orientation in _TRANSPOSED and array.shape == size[::-1]:
        image = Image.fromarray(array)
        image.getexif()[_ORIENTATION] = orientation
        array = np.array(ImageOps.exif_transpose(image))
    if array.shape != size:
        raise UserError(f"{path}: {array.shape[1]}x{array.shape[0]} pixels, but its image has "
                        f"{size[1]}x{size[0]}")
    return array
