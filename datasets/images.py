"""Decoding of one image, and of the mask or saliency map that belongs to it, from strangers.

In: paths. Out: upright RGB images, (H, W) uint8 companions of the same size; anything wrong with a
file is a `UserError` that names it.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from labelling.labels import read_label
from utils.files import UserError
from utils.images import open_image, photo_formats

_ORIENTATION = 0x0112  # EXIF tag
# Its values other than 1 (stored upright), with what turns the stored image upright.
_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}
_TRANSPOSED = range(5, 9)  # those that swap height and width


def read_image(path: Path) -> tuple[Image.Image, int]:
    """Open a photo as upright RGB; also return its EXIF orientation (1: stored upright).

    JPEG, PNG, TIFF, WebP and BMP, and HEIC where pillow-heif is installed, whatever the suffix.

    Raises:
        UserError: missing, truncated, no image of these formats, or absurdly large.
    """
    with open_image(path, "image", photo_formats(path)) as image:
        orientation = _orientation(image)
        image = _upright(image, orientation)
        if image.mode.startswith("I"):  # 16-bit grey: keep the upper 8 bits
            image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
        elif "transparency" in image.info:  # a palette's: Pillow asks for this detour
            image = image.convert("RGBA")
        return image.convert("RGB"), orientation


def image_size(path: Path) -> tuple[tuple[int, int], int]:
    """The (height, width) in pixels of the upright image, and its EXIF orientation.

    Reads the header alone, but for PNGs: their EXIF may stand behind the pixels.

    Raises:
        UserError: missing, or no image. Damage behind the header is not seen.
    """
    with open_image(path, "image", photo_formats(path)) as image:
        orientation = _orientation(image)
        width, height = image.size
        return ((width, height) if orientation in _TRANSPOSED else (height, width)), orientation


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where it is not told or nonsense."""
    if image.format == "PNG":  # asked for EXIF, Pillow decodes it: an error then is the pixels'
        image.load()
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF: viewers show such a photo as it is stored, and so do we
        return 1
    return int(value) if value in list(_UPRIGHT) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF anew, and fails on fields of a wrong type.
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


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
        array = np.array(_upright(Image.fromarray(array), orientation))
    if array.shape != size:
        raise UserError(f"{path}: {array.shape[1]}x{array.shape[0]} pixels, but its image has "
                        f"{size[1]}x{size[0]}")
    return array
