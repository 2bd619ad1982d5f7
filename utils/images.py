"""Image files from strangers: opened in the formats that are promised, any failure one message.

In: a path. Out: an open Pillow image, or a `UserError` that names the file.
"""

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from utils.files import UserError, open_regular

PHOTO_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")  # names that Pillow gives them
HEIC_FORMAT, HEIC_SUFFIXES = "HEIF", frozenset({".heic", ".heif"})  # with pillow-heif
# Of odd metadata and of large images: several lines about what is read all the same.
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def open_image(path: Path, what: str, formats: Sequence[str], advice: str = ""
               ) -> Iterator[Image.Image]:
    """The image in a file, to be decoded inside the `with` block.

    Args:
        what: the file's role, for messages: "image", "label image".
        formats: that are accepted, whatever the file is called.
        advice: where the file comes from, for the message that it is missing.

    Raises:
        UserError: missing, no regular file, of another format, damaged, absurdly large; or
            anything else that went wrong inside the block, where Pillow decodes.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=list(formats)) as image:
            yield image
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}{advice and '; '}{advice}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: unreadable {what} (its content is not "
                        f"{' or '.join(formats)})") from error
    # Damage makes Pillow's decoders raise whatever they stumble over: struct.error, TypeError,
    # KeyError, ZeroDivisionError, MemoryError ...
    except Exception as error:
        raise UserError(f"{path}: unreadable {what} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """What an error says, on one line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text[:200] or type(error).__name__


@cache
def heic_available() -> bool:
    """Whether HEIC photos can be read, because pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def photo_formats(path: Path) -> tuple[str, ...]:
    """The formats in which a photo called `path` is accepted."""
    if path.suffix.lower() not in HEIC_SUFFIXES or not heic_available():
        return PHOTO_FORMATS
    _register_heic()
    return (HEIC_FORMAT, *PHOTO_FORMATS)


@cache
def _register_heic() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
