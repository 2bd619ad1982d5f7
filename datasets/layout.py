"""A data root: where images, labels, masks and saliency lie, what the classes and lists are.

Works for the VOC 2012 layout, for COCO's, and for a folder of photos with whatever says what is in
them (`datasets/sources.py`). Everything read here comes from outside and is checked.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from datasets.lists import Entry, read_list
from datasets.pictures import Pictures, count, some
from datasets.source import MAX_CLASSES, NotThere, Source, class_name
from datasets.sources import Place, annotated_classes, coco_layout, find_source
from utils.files import UserError, read_text

log = logging.getLogger("drs")
VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
               "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep",
               "sofa", "train", "tvmonitor")
VOC_ID = re.compile(r"20\d\d_\d{6}")  # of its photos, such as 2007_000032
CLASSES_LIMIT = 1 << 17  # bytes
MAX_PATH = 4096  # characters; no system takes longer ones
MAX_LIST_NAME = 200  # characters


class DataRoot:
    """The files of one data set.

    Args:
        root: a folder of images in VOC's layout, COCO's or any.
        tolerant: accept two images of one name (the first is taken) instead of raising; they are
            listed in `clashes`.

    Attributes:
        classes: names, in the order of their indices.
        documents: tables, JSON and XML files that may say what is in the images.
        voc: this is PASCAL VOC, as far as one can see: its layout, with lists or with its photos.
        image_dir, mask_dir, saliency_dir, annotation_dir, list_dir: folders; not all need exist.

    Raises:
        UserError: no such folder, no images in it, two of one name, or nothing names the classes.
    """

    def __init__(self, root: str | Path, tolerant: bool = False) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"--data-root {self.root}: " + (
                "is a file; unpack it, or name the folder" if self.root.exists()
                else "no such folder"))
        self.mask_dir = self.root / "SegmentationClassAug"
        self.saliency_dir = self.root / "saliency_map"
        self.annotation_dir = self.root / "Annotations"
        self.list_dir = self.root / "ImageSets" / "Segmentation"
        voc_images, coco = self.root / "JPEGImages", coco_layout(self.root)
        self._voc_layout = voc_images.is_dir()
        self.image_dir = voc_images if self._voc_layout else self.root
        self.pictures = Pictures(*(coco.values() if coco and not self._voc_layout
                                   else [self.image_dir]))
        if not self.images:
            raise UserError(f"--data-root {self.root}: no images in {self.image_dir} "
                            f"({self.pictures.passed_over or 'see docs/own_data.md'})")
        if self.clashes and not tolerant:
            raise UserError(self.clashes[0])
        self.documents = list(coco) or self.pictures.documents
        if self.pictures.skipped:
            log.warning("%s", self.pictures.passed_over)
        self._named = self._read_classes()
        self.voc = self._voc_layout and self._named is None and (
            bool(self.list_files()) or any(map(VOC_ID.fullmatch, self.images)))
        self.classes = self._named or (list(VOC_CLASSES) if self.voc else self._source_classes())
        self._index = {name: index for index, name in enumerate(self.classes)}

    def _read_classes(self) -> list[str] | None:
        """The classes of classes.txt, None if there is no such file."""
        path = self.root / "classes.txt"
        if not path.exists():
            return None
        names = [class_name(line, f"{path}, line {number}") for number, line in
                 enumerate(read_text(path, CLASSES_LIMIT).splitlines(), start=1) if line.strip()]
        if not names or len(set(names)) != len(names) or len(names) > MAX_CLASSES:
            raise UserError(f"{path}: must hold 1 to {MAX_CLASSES} different class names, a name "
                            "a line")
        return names

    def _source_classes(self) -> list[str]:
        try:
            return self.source.classes
        except NotThere as error:
            if self._voc_layout:
                return list(VOC_CLASSES)
            lists = some([path.name for path in self.list_files()])
            raise UserError(f"{error}" + (f"; or, if {lists} lists the images, write classes.txt "
                                          "beside it, a class name a line" if lists else "")
                            ) from error

    @cached_property
    def source(self) -> Source:
        """What says which classes are in the images, apart from image lists.

        Raises:
            NotThere: nothing does.
            UserError: what does is wrong within.
        """
        documents = sorted(self.annotation_dir.glob("*.xml")) if self._voc_layout \
            else self.documents
        source = find_source(Place(self.root, self.pictures, documents, self._named))
        log.info("labels: %d images by %s", len(source.labels), source.found)
        for note in source.notes:
            log.warning("left out: %s", note)
        return source

    @property
    def images(self) -> Mapping[str, Path]:
        """Image id -> file."""
        return self.pictures.by_id

    @property
    def clashes(self) -> Sequence[str]:
        """A message for each image whose id another one has."""
        return self.pictures.clashes

    def image(self, image_id: str) -> Path:
        """The image file of an id.

        Raises:
            UserError: there is none.
        """
        try:
            return self.images[image_id]
        except KeyError:
            raise UserError(f"{self.image_dir / image_id}.jpg: no such image") from None

    def find_list(self, name: str) -> Path | None:
        """The file of a list given by path or by name ("train_aug"), None if there is none."""
        if "\0" in name or len(name) > MAX_PATH:
            return None
        candidates = [Path(name)]
        if Path(name).name == name and len(name) <= MAX_LIST_NAME:
            candidates += [self.list_dir / f"{name}_cls.txt", self.list_dir / f"{name}.txt",
                           self.root / f"{name}.txt", self.root / name]
        try:
            # A list that is no file or cannot be reached is an error, not a reason for another.
            return next((path for path in candidates if path.is_file()
                         or (path.suffix == ".txt" and os.path.lexists(path))), None)
        except OSError:  # a part that is too long for the file system
            return None

    def list_files(self) -> list[Path]:
        """The data set's own lists: text files in ImageSets/Segmentation and in the root."""
        return [path for folder in (self.list_dir, self.root) for path in sorted(
            folder.glob("*.txt")) if path.is_file() and path != self.root / "classes.txt"]

    def has_list(self, name: str) -> bool:
        """Whether `entries` knows a list of this name."""
        try:
            return self.find_list(name) is not None or bool(self._implied(name))
        except NotThere:
            return False

    def entries(self, name: str, labels: bool = True) -> list[Entry]:
        """The images of a list, with their image-level labels.

        Args:
            name: path of a list, or the name of one of the data set's own. Where there is no such
                file, `train_aug` is every image with a mask that is not in `val` (VOC), else every
                image whose classes something tells; `train` is those of `train_aug` that have
                masks, or all of them; further lists are those into which the source divides the
                images, such as COCO's `val`.
            labels: whether labels are needed; where a line has none, the source is asked.

        Raises:
            NotThere: no such list.
            UserError: empty list, malformed line, unknown image, class out of range, no labels.
        """
        path = self.find_list(name)
        if path is None:
            entries = [Entry(image_id, None) for image_id in self._implied(name)]
        else:
            read = list(self.read_list(path))
            entries = [entry for entry in read if isinstance(entry, Entry)]
            if wrong := [entry for entry in read if isinstance(entry, UserError)]:
                raise UserError(f"{wrong[0]}" + (f" (and {len(wrong) - 1:,} more lines)"
                                                 if wrong[1:] else ""))
        if not entries:
            found = f" ({self.source.found})" if "source" in vars(self) and path is None else ""
            raise UserError(f"list {path or name}: holds no images{found}")
        if labels:
            entries = [entry if entry.labels is not None else
                       Entry(entry.id, self._told(entry.id, path or name)) for entry in entries]
        return entries

    def read_list(self, path: Path) -> Iterator[Entry | UserError]:
        """The lines of a list: each as its entry, or as the error that says what is wrong there.

        Raises:
            UserError: the file cannot be read.
        """
        return read_list(path, self.pictures, self._index)

    def _implied(self, name: str) -> Sequence[str]:
        """The image ids of a list that no file holds.

        Raises:
            NotThere: no such list.
        """
        if name == "train_aug" and self.mask_dir.is_dir() and self.find_list("val"):
            val = {entry.id for entry in self.entries("val", labels=False)}
            ids = sorted({mask.stem for mask in self.mask_dir.glob("*.png")} - val)
            log.info("no list train_aug: taken as the %d masks that are not in val", len(ids))
            for image_id in ids:
                self.image(image_id)
            return ids
        try:
            if not self.voc and name in self.source.lists:
                return self.source.lists[name]
            if not self.voc and name == "train_aug":
                return list(self.source.labels)
        except NotThere as error:
            if name == "train_aug" and not self.list_files():
                raise NotThere(f"{error}; or name the images and their classes in train_aug.txt"
                               ) from error
        if not self.voc and name == "train":
            ids = [entry.id for entry in self.entries("train_aug", labels=False)]
            return [image_id for image_id in ids
                    if (self.mask_dir / f"{image_id}.png").is_file()] or ids
        shown = name if len(name) <= MAX_LIST_NAME else f"{name[:MAX_LIST_NAME]}..."
        there = some([path.stem for path in self.list_files()], 5)
        advice = (f" (there are {there}: choose with --list, or rename one)" if there else
                  " (these are VOC's photos, and only its lists tell train from val: python "
                  f"download.py lists --data-root {self.root}; or write one)" if self.voc else "")
        raise NotThere(f"list {shown!r}: no such file, and no {shown[:40]}.txt in {self.list_dir} "
                       f"or {self.root}{advice}")

    def told(self, image_id: str) -> tuple[int, ...] | None:
        """The classes in an image by its XML annotation or by the source; None: nothing tells.

        Raises:
            UserError: what tells is wrong within.
        """
        path = self.annotation_dir / f"{image_id}.xml"
        if path.exists():
            return annotated_classes(path, self._index)
        if self._voc_layout:
            return None
        try:
            names = self.source.labels.get(image_id)
        except NotThere:
            return None
        return None if names is None else tuple(sorted(self._index[name] for name in names))

    def _told(self, image_id: str, list_name: str | Path) -> tuple[int, ...]:
        labels = self.told(image_id)
        if labels is None:
            other = self.annotation_dir / f"{image_id}.xml" if self._voc_layout else \
                self.source.found if "source" in vars(self) else "anything beside the images"
            raise UserError(f"{image_id}: no image-level labels, neither in {list_name} nor in "
                            f"{other}")
        return labels

    def describe(self) -> str:
        """What was found here and what is left out, in a few lines."""
        told, lists = [str(path) for path in [self.find_list("train_aug")] if path], []
        try:
            told += [] if told or self.voc else [self.source.found]
        except UserError as error:
            told = [str(error)]
        for name in ("train_aug", "train", "val"):
            try:
                if self.has_list(name):
                    lists.append(f"{name} {len(self.entries(name, labels=False)):,}")
            except UserError as error:
                lists.append(f"{name} ({error})")
        masks, saliency = (sum(path.stem in self.images for path in folder.glob("*.png"))
                           for folder in (self.mask_dir, self.saliency_dir))
        left = [self.pictures.passed_over] if self.pictures.skipped else []
        left += self.source.notes if "source" in vars(self) else []
        alike = [name for name in self.classes if sum(
            name.lower() == other.lower() for other in self.classes) > 1]
        return "\n".join([
            f"{self.root}: {count(len(self.images), 'image')}, "
            f"{count(len(self.classes), 'class', 'classes')} ({some(self.classes, 5)})",
            *([f"two classes: {', '.join(map(repr, alike[:2]))}: if they are one, write them alike"]
              if alike else []),
            f"labels: {some(told) or 'see the lists'}",
            f"lists: {', '.join(lists) or 'none'}",
            f"masks: {masks or 'none'}, saliency maps: {saliency or 'none'}",
            *(f"left out: {what}" for what in left)])


def label_vector(labels: tuple[int, ...] | None, num_classes: int) -> np.ndarray:
    """Classes present -> (num_classes,) float32 of 0 and 1."""
    vector = np.zeros(num_classes, np.float32)
    vector[list(labels or ())] = 1
    return vector
