"""The page of a folder of predictions: index.html beside the label PNGs.

In: a folder with NAME.png (labels) and the images they were made of. Out: one HTML file with each
image, the labels over it and alone, and the classes found with their share of the picture.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.images import read_image
from datasets.layout import VOC_CLASSES
from labelling.labels import IGNORE, read_label, voc_palette
from reporting.page import write_page
from reporting.pictures import choose, nearest, numbers_uri, page_size, photo_uri, readable
from utils.files import UserError
from utils.logging import get_logger, progress
from utils.threads import ordered_map

log = get_logger()
SHOWN = 200  # images; of more, so many evenly spaced ones


def write_index(folder: Path, pictures: Mapping[str, Path], classes: Sequence[str] | None) -> Path:
    """Write FOLDER/index.html on the labels there are for `pictures`.

    Args:
        folder: of ID.png; those that are missing are left out.
        pictures: image id -> file.
        classes: names of the foreground classes; None: not known, taken as VOC's.

    Returns:
        The file.
    """
    there = {path.name for path in folder.iterdir()}
    files = {name: path for name, path in pictures.items() if f"{name}.png" in there}
    chosen = choose(list(files), SHOWN, {})
    records = [record for record in progress(
        ordered_map(Predictions(folder, files), chosen), "index.html", len(chosen), "image")
        if record is not None]
    names = ["background", *(classes or VOC_CLASSES)]
    found: dict[int, list[float]] = {}
    for record in records:
        for label, share in record.pop("shares").items():
            found.setdefault(label, []).append(share)
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(-1, 3)
    rows = [{"label": label, "name": names[label] if label < len(names) else f"label {label}",
             "color": "rgb({}, {}, {})".format(*palette[label]), "images": len(shares),
             "share": float(np.mean(shares))}
            for label, shares in sorted(found.items(), key=lambda item: -len(item[1]))]
    path = folder / "index.html"
    write_page(path, {
        "kind": "predictions", "title": readable(folder.resolve().name), "written": time.time(),
        "total": len(files), "images": len(records), "found": rows, "stages": [], "rows": [],
        "facts": {"versions": {}}}, {
        "labels": names, "rows": [], "curves": [], "alpha": 0, "images": records, "lists": [],
        "layers": [{"key": "image", "title": "image", "kind": "image"},
                   {"key": "labels", "title": "labels over the image", "kind": "labels"},
                   {"key": "plain", "title": "labels", "kind": "labels", "source": "labels",
                    "plain": True}]})
    return path


class Predictions:
    """Makes the page's record of an image, with the share of each of its labels."""

    def __init__(self, folder: Path, files: Mapping[str, Path]) -> None:
        self.folder, self.files = folder, files

    def __call__(self, name: str) -> dict[str, Any] | None:
        try:
            image, _ = read_image(self.files[name])
            label = read_label(self.folder / f"{name}.png")
        except UserError as error:
            log.warning("left out: %s", error)
            return None
        size = page_size((image.height, image.width))
        numbers, pixels = np.unique(label, return_counts=True)
        shares = {int(number): count / label.size for number, count in
                  zip(numbers, pixels.tolist(), strict=True) if number not in (0, IGNORE)}
        return {"id": readable(os.fspath(self.files[name].name)), "list": "", "size": size,
                "picture": photo_uri(image, size), "doubt": None, "labels": list(shares),
                "shares": shares, "layers": {"labels": {
                    "numbers": numbers_uri(nearest(label, size)), "labels": list(shares)}}}
