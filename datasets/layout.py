"""A data root: where images, labels, masks and saliency lie, what the classes and lists are.

Works for the VOC 2012 layout and for a plain folder of images with a `classes.txt`. Everything
read here comes from outside and is checked: names, numbers, XML.
"""

import logging
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.files import UserError

log = logging.getLogger("drs")
VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
               "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep",
               "sofa", "train", "tvmonitor")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
XML_LIMIT = 1 << 20  # bytes; VOC's annotations have a few thousand
NO_CLASS = "-"  # in a list: none of the classes is in the image


@dataclass(frozen=True)
class Entry:
    """One line of an image list.

    Attributes:
        id: file name of the image without its suffix.
        labels: 0-based classes present, ascending; None where they were not asked for.
    """

    id: str
    labels: tuple[int, ...] | None


class DataRoot:
    """The files of one data set.

    Args:
        root: VOC-layout folder, or a folder of images.
        tolerant: accept two images of one name (the first is taken) instead of raising; they are
            listed in `clashes`.

    Raises:
        UserError: no such folder, no images in it, two of one name, or a bad `classes.txt`.
    """

    def __init__(self, root: str | Path, tolerant: bool = False) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"--data-root {self.root}: no such folder")
        voc_images = self.root / "JPEGImages"
        self.image_dir = voc_images if voc_images.is_dir() else self.root
        self.mask_dir = self.root / "SegmentationClassAug"
        self.saliency_dir = self.root / "saliency_map"
        self.annotation_dir = self.root / "Annotations"
        self.list_dir = self.root / "ImageSets" / "Segmentation"
        self.classes = self._read_classes()
        self.clashes: list[str] = []
        if not self.images:
            raise UserError(f"--data-root {self.root}: no images in {self.image_dir}; expected "
                            "the VOC2012 layout (JPEGImages/, Annotations/, ...) or a folder of "
                            "images")
        if self.clashes and not tolerant:
            raise UserError(self.clashes[0])

    def _read_classes(self) -> list[str]:
        path = self.root / "classes.txt"
        if not path.is_file():
            if self.image_dir == self.root:
                raise UserError(f"{path}: missing; a folder of images needs it, a class name a "
                                "line (only the VOC layout has default classes)")
            return list(VOC_CLASSES)
        names = [_nfc(line.strip()) for line in _read_text(path).splitlines() if line.strip()]
        if not names or len(set(names)) != len(names) or len(names) > 254:
            raise UserError(f"{path}: must hold 1 to 254 different class names, a name a line")
        return names

    @cached_property
    def images(self) -> dict[str, Path]:
        """Image id -> file, from one look at the folder."""
        found: dict[str, Path] = {}
        for path in sorted(self.image_dir.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                first = found.setdefault(path.stem, path)
                if first != path:
                    self.clashes.append(f"{path} and {first.name}: two images of one name")
        return found

    @cached_property
    def _normal_forms(self) -> dict[str, str]:
        return {_nfc(image_id): image_id for image_id in self.images}

    def find_image(self, name: str) -> str | None:
        """The id of the image that a list calls `name`, or None: with or without a suffix, its
        accents composed or not (a file name from macOS often has them apart, a list has not)."""
        as_file = Path(name)
        stem = as_file.stem if as_file.suffix.lower() in IMAGE_SUFFIXES else name
        for candidate in (name, stem):
            if candidate in self.images:
                return candidate
        return self._normal_forms.get(_nfc(name)) or self._normal_forms.get(_nfc(stem))

    def image(self, image_id: str) -> Path:
        """The image file of an id.

        Raises:
            UserError: there is none.
        """
        if image_id not in self.images:
            raise UserError(f"{self.image_dir / image_id}.jpg: no such image")
        return self.images[image_id]

    def find_list(self, name: str) -> Path | None:
        """The file of a list given by path or by name ("train_aug"), None if there is none."""
        candidates = [Path(name), self.list_dir / f"{name}_cls.txt", self.list_dir / f"{name}.txt",
                      self.root / f"{name}.txt", self.root / name]
        return next((path for path in candidates if path.is_file()), None)

    def entries(self, name: str, labels: bool = True) -> list[Entry]:
        """The images of a list, with their image-level labels.

        Args:
            name: path of a list, or the name of one of the data set's own. A line is an image id,
                optionally followed by 0-based class indices or class names, or by "-" for none
                of the classes. `train_aug` without a file is every image with a mask that is not
                in `val`.
            labels: whether labels are needed; where a line has none, the XML annotation is read.

        Raises:
            UserError: missing or empty list, malformed line, unknown image, class out of range,
                no labels.
        """
        path = self.find_list(name)
        if path is not None:
            entries = []
            for entry in self.read_list(path):
                if isinstance(entry, UserError):
                    raise entry
                entries.append(entry)
        elif name == "train_aug" and self.mask_dir.is_dir() and self.find_list("val"):
            val = {entry.id for entry in self.entries("val", labels=False)}
            masks = sorted(mask.stem for mask in self.mask_dir.glob("*.png"))
            entries = [Entry(stem, None) for stem in masks if stem not in val]
            log.info("no list train_aug: taken as the %d masks that are not in val", len(entries))
            for entry in entries:
                self.image(entry.id)
        else:
            there = [path.stem for path in self.list_files()]
            raise UserError(f"list {name}: no such file, and no {name}.txt in {self.list_dir} "
                            f"or {self.root}"
                            + (f" (there are {', '.join(there)})" if there else ""))
        if not entries:
            raise UserError(f"list {path or name}: holds no images")
        if labels:
            entries = [entry if entry.labels is not None else
                       Entry(entry.id, self._annotated(entry.id, path or name))
                       for entry in entries]
        return entries

    def list_files(self) -> list[Path]:
        """The data set's own lists: text files in ImageSets/Segmentation and in the root."""
        return sorted(self.list_dir.glob("*.txt")) + sorted(
            path for path in self.root.glob("*.txt") if path.name != "classes.txt")

    def read_list(self, path: Path) -> Iterator[Entry | UserError]:
        """The lines of a list: each as its entry, or as the error that says what is wrong there.

        Raises:
            UserError: the file cannot be read.
        """
        seen: set[str] = set()
        for number, line in enumerate(_read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entry: Entry | UserError = self._read_line(line, f"{path}, line {number}", seen)
            except UserError as error:
                entry = error
            yield entry

    def _read_line(self, line: str, where: str, seen: set[str]) -> Entry:
        """The entry of a line; adds its id to `seen`. Names may hold spaces: the longest part of
        the line that names an image is the id, and commas or tabs may separate the classes."""
        line = line.strip()
        ends = [*(match.start() for match in re.finditer(r"[\s,]+", line)), len(line)]
        for end in reversed(ends):
            image_id = self.find_image(line[:end])
            if image_id is not None:
                break
        else:
            raise UserError(f"{where}: names no image in {self.image_dir}: {line[:80]!r}")
        if image_id in seen:
            raise UserError(f"{where}: {image_id} is listed twice")
        seen.add(image_id)
        words = []
        for part in re.split(r"[\t,]", line[end:]):
            words += [part.strip()] if _nfc(part.strip()) in self.classes else part.split()
        if words == [NO_CLASS]:
            return Entry(image_id, ())
        labels = {self._class_index(_nfc(word), where) for word in words}
        return Entry(image_id, tuple(sorted(labels)) if words else None)

    def _class_index(self, word: str, where: str) -> int:
        if word in self.classes:
            return self.classes.index(word)
        try:
            index = int(word)
        except ValueError:
            raise UserError(f"{where}: {word!r} is neither a class index nor one of the classes "
                            f"({', '.join(self.classes[:5])}"
                            f"{', ...' if len(self.classes) > 5 else ''})") from None
        if not 0 <= index < len(self.classes):
            raise UserError(f"{where}: class index {index}, but there are "
                            f"{len(self.classes)} classes (0 to {len(self.classes) - 1})")
        return index

    def _annotated(self, image_id: str, list_name: str | Path) -> tuple[int, ...]:
        path = self.annotation_dir / f"{image_id}.xml"
        if not path.is_file():
            raise UserError(f"{image_id}: no image-level labels, neither in {list_name} nor as "
                            f"{path}")
        return annotated_classes(path, self.classes)


def annotated_classes(path: Path, classes: Sequence[str]) -> tuple[int, ...]:
    """The classes of the objects in a VOC annotation, as ascending indices into `classes`.

    Raises:
        UserError: malformed XML, or an object of an unknown class.
    """
    if path.stat().st_size > XML_LIMIT:
        raise UserError(f"{path}: too large for an annotation")
    text = _read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path}: document type declarations are not accepted")
    try:
        names = [_nfc((node.findtext("name") or "").strip())
                 for node in ET.fromstring(text).iter("object")]
    except ET.ParseError as error:
        raise UserError(f"{path}: malformed XML ({error})") from error
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UserError(f"{path}: unknown class {unknown[0]!r}")
    return tuple(sorted({classes.index(name) for name in names}))


def _nfc(text: str) -> str:
    """The text with letters and accents composed: equal for names that look equal."""
    return unicodedata.normalize("NFC", text)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 text ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def label_vector(labels: tuple[int, ...] | None, num_classes: int) -> np.ndarray:
    """Classes present -> (num_classes,) float32 of 0 and 1."""
    vector = np.zeros(num_classes, np.float32)
    vector[list(labels or ())] = 1
    return vector
