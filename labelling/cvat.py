"""CVAT's "Segmentation mask 1.1": labels out to be corrected by hand, and back.

In and out: a folder with labelmap.txt (name, colour), ImageSets/Segmentation/default.txt (ids) and
SegmentationClass/ID.png (each pixel in its class's colour); on the way out also SegmentationObject
(a colour per region, without which CVAT takes the background for a class), labels.json (the task's
labels, for CVAT's "Raw" tab) and upload.zip (what to upload). Undecided pixels (255) are the class
`ignored`.
Format: https://docs.cvat.ai/docs/dataset_management/formats/format-smask/
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from labelling.export import Writer
from labelling.labels import IGNORE, colorize
from labelling.regions import regions
from labelling.visualize import save_image
from utils.files import UserError
from utils.logging import get_logger

log = get_logger()
BACKGROUND, IGNORED = "background", "ignored"
LABELMAP, LIST = "labelmap.txt", "ImageSets/Segmentation/default.txt"
MASKS, OBJECTS = "SegmentationClass", "SegmentationObject"
MAX_OBJECTS = 254  # the object colours are VOC's 256, of which 0 is nothing and 255 a border
TEXT_LIMIT = 16 << 20  # bytes of a labelmap or a list
UNDECLARED, FOREIGN = -1, -2  # in a colour table: no such colour; a class that is not ours


class CvatWriter(Writer):
    """See the module.

    Raises:
        UserError: a class name that the format cannot hold.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder)
        for name in classes:
            if name in (BACKGROUND, IGNORED) or ":" in name or name.startswith("#"):
                raise UserError(f"--format cvat: a class cannot be called {name!r} there (no ':', "
                                f"no '#' in front, not {BACKGROUND!r} or {IGNORED!r}): rename it")
        numbers = {BACKGROUND: 0, **{name: i for i, name in enumerate(classes, start=1)},
                   IGNORED: IGNORE}
        colors = {name: colorize(np.array(number)).tolist() for name, number in numbers.items()}
        (folder / LABELMAP).write_text("# label:color_rgb:parts:actions\n" + "".join(
            f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in colors.items()), encoding="utf-8")
        (folder / "labels.json").write_text(json.dumps(
            [{"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color), "type": "mask",
              "attributes": []} for name, color in colors.items() if name != BACKGROUND],
            indent=1, ensure_ascii=False), encoding="utf-8")
        # Stored as they are: PNGs do not get smaller.
        self.zip = self.files.enter_context(zipfile.ZipFile(folder / "upload.zip", "w"))
        self.zip.write(folder / LABELMAP, LABELMAP)
        self.ids = self.new_text(LIST)

    def add(self, image_id: str, photo: str, label: np.ndarray) -> None:
        """Write the two pictures of an image."""
        found = list(regions(label))
        self.regions += len(found)
        objects = np.zeros_like(label)
        if len(found) < MAX_OBJECTS:
            for number, region in enumerate(found, start=1):
                objects[region.window][region.mask] = number
            objects[label == IGNORE] = len(found) + 1  # one object, however many pieces
        else:
            log.warning("%s has %d regions, more than the %d objects that the format can tell "
                        "apart: one object per class there (--min-area leaves out small ones)",
                        image_id, len(found), MAX_OBJECTS - 1)
            numbers = np.union1d(label, [0])  # 0 stays 0, 255 becomes the number after the last
            objects = np.searchsorted(numbers, label).astype(np.uint8)
        for place, picture in ((MASKS, label), (OBJECTS, objects)):
            name = f"{place}/{image_id}.png"
            save_image(self.new_file(name), colorize(picture))
            self.zip.write(self.folder / name, name)
        self.ids.write(f"{image_id}\n")

    def close(self) -> None:
        """Complete the ZIP."""
        self.ids.flush()
        self.zip.write(self.folder / LIST, LIST)
        super().close()


class CvatReader:
    """Corrected labels from a folder of that format; colours and order are CVAT's own.

    Args:
        folder: holds labelmap.txt and SegmentationClass. Everything in it is from outside.
        classes: of the data root.

    Raises:
        UserError: a file is missing, malformed or absurdly large, or names two things alike.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder = folder
        numbers = {BACKGROUND: 0, IGNORED: IGNORE,
                   **{name: i for i, name in enumerate(classes, start=1)}}
        names = self._read_labelmap(folder / LABELMAP)
        # CVAT takes black for the background, whatever its name.
        self.names = [BACKGROUND if color == 0 else name for name, color in names.items()]
        self.by_index = np.array([numbers.get(name, FOREIGN - i)
                                  for i, name in enumerate(self.names)], np.int16)
        self.by_color = np.full(1 << 24, UNDECLARED, np.int16)
        self.by_color[list(names.values())] = self.by_index

    @staticmethod
    def _read_labelmap(path: Path) -> dict[str, int]:
        """Class name -> colour as 0xRRGGBB, in the order of the file."""
        colors: dict[str, int] = {}
        for number, line in enumerate(_lines(path), start=1):
            if not line or line.startswith("#"):
                continue
            where = f"{path.name}, line {number}"
            name, _, rest = line.partition(":")
            parts = rest.partition(":")[0].split(",")
            if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) < 256
                                          for part in parts):
                raise UserError(f"{where}: not NAME:R,G,B:PARTS:ACTIONS with colours of 0 to 255: "
                                f"{line[:80]!r}")
            red, green, blue = map(int, parts)
            color = red << 16 | green << 8 | blue
            if name in colors or color in colors.values():
                raise UserError(f"{where}: a name or colour that was there before: {line[:80]!r}")
            colors[name] = color
        if not colors:
            raise UserError(f"{path.name}: declares no class")
        return colors

    def image_names(self) -> list[str]:
        """What CVAT calls the images, in its order; one without objects has no PNG.

        Raises:
            UserError: there are none.
        """
        if (self.folder / LIST).is_file():
            names = [line for line in _lines(self.folder / LIST) if line]
        else:
            masks = self.folder / MASKS
            names = sorted(path.relative_to(masks).with_suffix("").as_posix()
                           for path in masks.rglob("*.png"))
        if not names:
            raise UserError(f"{LIST}: names no image")
        return list(dict.fromkeys(names))

    def label(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """The labels of one image.

        Args:
            name: from `image_names`.
            size: (height, width) of the upright photo.

        Returns:
            (H, W) uint8; all 0 where CVAT wrote no picture because nothing is drawn.

        Raises:
            UserError: unreadable, of another size, a colour that labelmap.txt does not declare, or
                a class that the data root does not have.
        """
        path = self.folder / MASKS / f"{name}.png"
        if "\0" in name or not path.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"{LIST}: {name[:80]!r} leads out of the folder")
        if not path.is_file():
            return np.zeros(size, np.uint8)
        numbers = self._numbers(path, size)
        low = int(numbers.min())
        if low == UNDECLARED:
            raise UserError(f"{MASKS}/{path.name}: holds a colour that {LABELMAP} does not declare")
        if low <= FOREIGN:
            raise UserError(f"{MASKS}/{path.name}: shows {self.names[FOREIGN - low]!r}, which is "
                            "no class of the data root: rename it in CVAT, or add it there")
        return numbers.astype(np.uint8)

    def _numbers(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """(H, W) int16 class numbers, UNDECLARED or FOREIGN - place in the labelmap."""
        try:
            with Image.open(path, formats=("PNG",)) as image:
                if image.size != size[::-1]:  # before it is decoded: it may be a bomb
                    raise UserError(f"{MASKS}/{path.name}: {image.width}x{image.height} pixels, "
                                    f"but its photo has {size[1]}x{size[0]}")
                if image.mode == "L":  # class numbers in the order of the labelmap
                    index = np.array(image).astype(np.int64)
                    known = index < len(self.by_index)
                    return np.where(known, self.by_index[np.where(known, index, 0)], UNDECLARED)
                pixels = np.asarray(image.convert("RGB"), dtype=np.uint32)
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError,
                Image.DecompressionBombError) as error:
            raise UserError(f"{MASKS}/{path.name}: unreadable image ({error})") from error
        return self.by_color[pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]]


def _lines(path: Path) -> list[str]:
    """The stripped lines of a text file from outside."""
    try:
        if path.stat().st_size > TEXT_LIMIT:
            raise UserError(f"{path.name}: absurdly large")
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name}: no UTF-8 text ({error})") from error
    except OSError as error:
        raise UserError(f"{path.name}: cannot be read ({error.strerror}); expected an export of "
                        "CVAT in the format \"Segmentation mask 1.1\"") from error


def find_image_id(name: str, find: Callable[[str], str | None]) -> str | None:
    """The id of the image that CVAT calls `name`: it may put folders of its own in front.

    Args:
        find: the id that a name stands for in the data root, or None.
    """
    parts = name.split("/")
    return next((found for i in range(len(parts))
                 if (found := find("/".join(parts[i:]))) is not None), None)
