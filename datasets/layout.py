"""A data root: where images, labels, masks and saliency lie, what the classes and lists are.

Works for the VOC 2012 layout and for a plain folder of images with a `classes.txt`. Everything
read here comes from outside and is checked: names, numbers, XML.
"""

import logging
import xml.etree.ElementTree as ET
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

    Raises:
        UserError: no such folder, no images in it, or a bad `classes.txt`.
    """

    def __init__(self, root: str | Path) -> None:
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
        if not self.images:
            raise UserError(f"--data-root {self.root}: no images in {self.image_dir}; expected "
                            "the VOC2012 layout (JPEGImages/, Annotations/, ...) or a folder of "
                            "images")

    def _read_classes(self) -> list[str]:
        path = self.root / "classes.txt"
        if not path.is_file():
            if self.image_dir == self.root:
                raise UserError(f"{path}: missing; a folder of images needs it, a class name a "
                                "line (only the VOC layout has default classes)")
            return list(VOC_CLASSES)
        names = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
        if not names or len(set(names)) != len(names) or len(names) > 254:
            raise UserError(f"{path}: must hold 1 to 254 different class names, a name a line")
        return names

    @cached_property
    def images(self) -> dict[str, Path]:
        """Image id -> file, from one look at the folder."""
        found: dict[str, Path] = {}
        for path in sorted(self.image_dir.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                if path.stem in found:
                    raise UserError(f"{path} and {found[path.stem].name}: two images of one name")
                found[path.stem] = path
        return found

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
                optionally followed by 0-based class indices or class names. `train_aug` without
                a file is every image with a mask that is not in `val`.
            labels: whether labels are needed; where a line has none, the XML annotation is read.

        Raises:
            UserError: missing or empty list, malformed line, unknown image, class out of range,
                no labels.
        """
        path = self.find_list(name)
        if path is not None:
            entries = self._read_list(path)
        elif name == "train_aug" and self.mask_dir.is_dir() and self.find_list("val"):
            val = {entry.id for entry in self.entries("val", labels=False)}
            masks = sorted(mask.stem for mask in self.mask_dir.glob("*.png"))
            entries = [Entry(stem, None) for stem in masks if stem not in val]
            log.info("no list train_aug: taken as the %d masks that are not in val", len(entries))
            for entry in entries:
                self.image(entry.id)
        else:
            there = sorted(p.stem for p in self.list_dir.glob("*.txt"))
            raise UserError(f"--list {name}: no such file, and {self.list_dir} has no {name}.txt"
                            + (f" (it has {', '.join(there)})" if there else ""))
        if not entries:
            raise UserError(f"--list {path or name}: holds no images")
        if labels:
            entries = [entry if entry.labels is not None else
                       Entry(entry.id, self._annotated(entry.id, path or name))
                       for entry in entries]
        return entries

    def _read_list(self, path: Path) -> list[Entry]:
        entries, seen = [], set()
        for number, line in enumerate(_read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            image_id, words = self._split_line(line, where)
            if image_id in seen:
                raise UserError(f"{where}: {image_id} is listed twice")
            seen.add(image_id)
            labels = {self._class_index(word, where) for word in words}
            entries.append(Entry(image_id, tuple(sorted(labels)) if words else None))
        return entries

    def _split_line(self, line: str, where: str) -> tuple[str, list[str]]:
        """Id and class words of a line. The id may hold spaces: the longest part of the line
        that names an image is taken. A tab ends the id, and commas may separate the classes."""
        if "\t" in line:
            name, _, rest = line.strip("\r\n").partition("\t")
            words = rest.split(",") if "," in rest else rest.split("\t")
            heads = [(name.strip(), [word.strip() for word in words if word.strip()])]
            if heads[0][1] and all(w not in self.classes for w in heads[0][1]):
                heads[0] = (heads[0][0], rest.replace(",", " ").split())
        else:
            parts = line.split()
            heads = [(line.strip(), [])]
            heads += [(line[:_end_of_word(line, k)].strip(),
                       " ".join(parts[k:]).replace(",", " ").split())
                      for k in range(len(parts) - 1, 0, -1)]
        for name, words in heads:
            if name in self.images:
                return name, words
            as_file = Path(name)
            if as_file.suffix.lower() in IMAGE_SUFFIXES and as_file.stem in self.images:
                return as_file.stem, words
        raise UserError(f"{where}: no image of this name in {self.image_dir}: {heads[-1][0]!r}")

    def _class_index(self, word: str, where: str) -> int:
        if word in self.classes:
            return self.classes.index(word)
        try:
            index = int(word)
        except ValueError:
            raise UserError(f"{where}: {word!r} is neither a class index nor one of the classes "
                            f"({', '.join(self.classes[:5])}, ...)") from None
        if not 0 <= index < len(self.classes):
            raise UserError(f"{where}: class index {index}, but there are "
                            f"{len(self.classes)} classes (0 to {len(self.classes) - 1})")
        return index

    def _annotated(self, image_id: str, list_name: str | Path) -> tuple[int, ...]:
        path = self.annotation_dir / f"{image_id}.xml"
        if not path.is_file():
            raise UserError(f"{image_id}: no image-level labels, neither in {list_name} nor as "
                            f"{path}")
        return self.annotated_classes(path)

    def annotated_classes(self, path: Path) -> tuple[int, ...]:
        """The classes of the objects in a VOC annotation.

        Raises:
            UserError: malformed XML, or an object of an unknown class.
        """
        if path.stat().st_size > XML_LIMIT:
            raise UserError(f"{path}: too large for an annotation")
        text = _read_text(path)
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise UserError(f"{path}: document type declarations are not accepted")
        try:
            names = [(node.findtext("name") or "").strip()
                     for node in ET.fromstring(text).iter("object")]
        except ET.ParseError as error:
            raise UserError(f"{path}: malformed XML ({error})") from error
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise UserError(f"{path}: unknown class {unknown[0]!r}")
        return tuple(sorted({self.classes.index(name) for name in names}))


def _end_of_word(line: str, count: int) -> int:
    """Where the first `count` words of `line` end; the spaces between them stay as they are."""
    position = 0
    for word in line.split()[:count]:
        position = line.index(word, position) + len(word)
    return position


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
