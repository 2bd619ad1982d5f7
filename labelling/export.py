"""Label images in the formats that other tools read: COCO, YOLO segmentation, VOC; CVAT is cvat.py.

In: one image after the other, as its id, the name of its photo and its labels (H, W) uint8. Out: a
folder in the format. Memory does not grow with the number of images.

| format | regions | 255 (undecided) | photos |
| --- | --- | --- | --- |
| coco | RLE, exact | no annotation: reads as background | named, not copied |
| yolo | polygons, exact; holes kept by a cut | no annotation: background | copied |
| voc | palette PNG, exact | 255 | copied |
| cvat | colours, exact | class `ignored` | are in CVAT already |
"""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import yaml

from labelling.labels import IGNORE, save_label
from labelling.regions import Region, outline, regions
from utils.extras import require

INSIDE = 0.25  # pixels: readers multiply by the size, then some cut to whole pixels, some round


class Writer(ABC):
    """One export into a folder.

    Attributes:
        photos: folder in it for JPEGs of the photos, ID.jpg; None: they stay where they are.
        regions: how many regions have been written.
    """

    photos: str | None = None

    def __init__(self, folder: Path) -> None:
        self.folder, self.regions = folder, 0
        self.files = ExitStack()

    def new_file(self, name: str) -> Path:
        """The path of a file; its own folder is made: ids may hold slashes."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def new_text(self, name: str) -> TextIO:
        """A text file that stays open until the end."""
        return self.files.enter_context(open(self.new_file(name), "w", encoding="utf-8"))

    @abstractmethod
    def add(self, image_id: str, photo: str, label: np.ndarray) -> None:
        """Write the labels (H, W) uint8 of the upright photo called `photo`."""

    def close(self) -> None:
        """Write what comes last."""
        self.files.close()


class CocoWriter(Writer):
    """annotations/instances_default.json: one annotation per class and connected region.

    Category ids are the label numbers, 1 and on; `file_name` is relative to the photos' folder.
    Format: https://cocodataset.org/#format-data, "segmentation" as compressed RLE.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder)
        self.rle: Any = require("pycocotools.mask", "--format coco")
        self.images = 0
        self.file = self.new_text("annotations/instances_default.json")
        # Images and annotations come in turns, but each list is written in one piece.
        self.entries = self.new_text("images.tmp")
        categories = [{"id": number, "name": name, "supercategory": ""}
                      for number, name in enumerate(classes, start=1)]
        self.file.write(f'{{"info": {{}}, "licenses": [],\n"categories": '
                        f'{json.dumps(categories)},\n"annotations": [')

    def add(self, image_id: str, photo: str, label: np.ndarray) -> None:
        """Write an image and its annotations."""
        height, width = label.shape
        self.images += 1
        self.entries.write(self._item(self.images, {
            "id": self.images, "file_name": photo, "height": height, "width": width}))
        mask = np.zeros(label.shape, np.uint8, order="F")
        for region in regions(label):
            self.regions += 1
            self.file.write(self._item(self.regions, {
                "id": self.regions, "image_id": self.images, "category_id": region.label,
                "iscrowd": 0, **self._shape(region, mask)}))

    def _shape(self, region: Region, mask: np.ndarray) -> dict[str, Any]:
        """What COCO says of a region; `mask` is all 0, before and after."""
        mask[region.window] = region.mask
        encoded = self.rle.encode(mask)
        mask[region.window] = 0
        height, width = region.mask.shape
        return {"area": region.area, "bbox": [region.left, region.top, width, height],
                "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode()}}

    @staticmethod
    def _item(number: int, item: dict[str, Any]) -> str:
        return f"{',' if number > 1 else ''}\n{json.dumps(item)}"

    def close(self) -> None:
        """Add the list of images behind the annotations."""
        self.file.write('\n],\n"images": [')
        self.entries.close()
        with open(self.entries.name, encoding="utf-8") as entries:
            shutil.copyfileobj(entries, self.file)
        Path(self.entries.name).unlink()
        self.file.write("\n]}\n")
        super().close()


class YoloWriter(Writer):
    """data.yaml, images/train/ID.jpg, labels/train/ID.txt: a line per class and connected region.

    A line is the class index and the outline, x and y in turns, as shares of width and height.
    Brought back to whole pixels and filled with OpenCV's fillPoly, as the format's readers do, the
    outlines give the labels back exactly. YOLO knows no holes: an outline goes into each hole along
    a row of pixels and back the same way.
    Format: https://docs.ultralytics.com/datasets/segment/
    """

    photos = "images/train"

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder)
        # There is no held-out part to name; the format wants a "val" all the same.
        description = {"train": self.photos, "val": self.photos, "names": dict(enumerate(classes))}
        (folder / "data.yaml").write_text(
            yaml.safe_dump(description, allow_unicode=True, sort_keys=False), encoding="utf-8")

    def add(self, image_id: str, photo: str, label: np.ndarray) -> None:
        """Write a label file; it is empty where there are no regions."""
        height, width = label.shape
        with open(self.new_file(f"labels/train/{image_id}.txt"), "w", encoding="utf-8") as file:
            for region in regions(label):
                self.regions += 1
                shares = (outline(region) + INSIDE) / (width, height)
                numbers = " ".join(f"{value:.7g}" for value in shares.ravel().tolist())
                file.write(f"{region.label - 1} {numbers}\n")


class VocWriter(Writer):
    """A data root in VOC layout, to train on here or elsewhere.

    JPEGImages/ID.jpg, SegmentationClass/ID.png, classes.txt, ImageSets/Segmentation/train.txt
    (ids), and train_aug_cls.txt (ids and the classes that the labels show, from 0).
    """

    photos = "JPEGImages"

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes),
                                            encoding="utf-8")
        self.ids = self.new_text("ImageSets/Segmentation/train.txt")
        self.labels = self.new_text("ImageSets/Segmentation/train_aug_cls.txt")

    def add(self, image_id: str, photo: str, label: np.ndarray) -> None:
        """Write a mask and a line of each list."""
        self.regions += sum(1 for _ in regions(label))
        save_label(self.new_file(f"SegmentationClass/{image_id}.png"), label)
        self.ids.write(f"{image_id}\n")
        self.labels.write(list_line(image_id, label))


def list_line(image_id: str, label: np.ndarray) -> str:
    """A line of an image list, with the classes (from 0) that the labels show, or "-"."""
    shown = [str(number - 1) for number in np.unique(label).tolist() if number not in (0, IGNORE)]
    return f"{image_id}\t{' '.join(shown) or '-'}\n"
