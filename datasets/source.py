"""What a source of image-level labels tells: which classes are in which image.

In: names of images and of classes, from a reader of `datasets/sources.py`. Out: a `Source` with the
ids of images that are there, and with class names that are fit to be used.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets.lists import no_image
from datasets.pictures import Pictures, nfc, printable, some
from utils.files import UserError

MAX_CLASSES = 254  # a label PNG has 256 values: 0 is background, 255 is ignored
MAX_CLASS_NAME = 100  # characters


class NotThere(UserError):
    """A list or source that is not there at all, as opposed to one that is wrong within."""


class Source:
    """Image-level labels and where they come from.

    Args:
        found: the source in words, for messages.
        pictures: the images that may be spoken of.
        known: the classes, where something else says what they are; names besides these are errors.

    Attributes:
        labels: image id -> names of the classes that are in it, equal ones being one object;
            empty: none of the classes.
        lists: name of a list -> its image ids, where the source divides the images itself.
        order: the classes, where the source gives their order.
        coco: the COCO files, where it is these: they may hold segmentations.
        notes: what is left out.
    """

    def __init__(self, found: str, pictures: Pictures, known: Sequence[str] | None = None) -> None:
        self.found, self.pictures, self.known = found, pictures, known and set(known)
        self.labels: dict[str, frozenset[str]] = {}
        self._shared: dict[frozenset[str], frozenset[str]] = {}
        self.lists: dict[str, list[str]] = {}
        self.order: list[str] | None = None
        self.coco: list[Path] = []
        self.notes: list[str] = []
        self._checked: dict[str, str] = {}

    def find(self, name: object, where: str) -> str:
        """The id of the image that the source calls `name`.

        Raises:
            UserError: there is none; the message begins with `where`.
        """
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: names no image ({str(name)[:80]!r})")
        try:
            image_id = self.pictures.find(name)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if image_id is None:
            raise UserError(f"{where}: {no_image(name, self.pictures)}")
        return image_id

    def add(self, image_id: str, names: Iterable[object], where: str) -> None:
        """Note that these classes are in an image, besides those noted before.

        Raises:
            UserError: a name is none of a class; the message begins with `where`.
        """
        both = self.labels.get(image_id, frozenset()) | {self.name(name, where) for name in names}
        self.labels[image_id] = self._shared.setdefault(both, both)

    def name(self, value: object, where: str) -> str:
        """A class name, checked.

        Raises:
            UserError: no text, empty, too long, with line breaks and the like, or unknown.
        """
        if isinstance(value, str) and value in self._checked:
            return self._checked[value]
        name = class_name(value, where)
        if self.known is not None and name not in self.known:
            raise UserError(f"{where}: {name!r} is none of the classes of classes.txt "
                            f"({some(sorted(self.known), 5)})")
        self._checked[str(value)] = name
        return name

    @property
    def classes(self) -> list[str]:
        """The classes, in the source's own order or sorted.

        Raises:
            UserError: there are none, or too many.
        """
        classes = self.order or sorted({name for names in self.labels.values() for name in names})
        if not classes:
            raise UserError(f"{self.found}: names no class")
        if not 1 <= len(classes) <= MAX_CLASSES:
            raise UserError(f"{self.found}: {len(classes)} classes ({some(classes)}); there may be "
                            f"1 to {MAX_CLASSES}")
        return classes


def class_name(value: object, where: str) -> str:
    """A class name in composed form.

    Raises:
        UserError: no text, empty, too long, or with line breaks and the like.
    """
    name = nfc(value.strip()) if isinstance(value, str) else ""
    if not 1 <= len(name) <= MAX_CLASS_NAME or printable(name) != name:
        raise UserError(f"{where}: {str(value)[:80]!r} is no class name (1 to {MAX_CLASS_NAME} "
                        "characters on one line)")
    return name


def list_name(name: str) -> str | None:
    """The list that a file or folder called so holds: "train_aug", "val", "test" or None."""
    words = "".join(char if char.isalpha() else " " for char in name.lower()).split()
    for word in words:
        if word in ("train", "training"):
            return "train_aug"
        if word in ("val", "valid", "validation"):
            return "val"
        if word in ("test", "testing"):
            return "test"
    return None
