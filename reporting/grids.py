"""The pictures of a run: PNG grids of a few images with what each stage made of them.

In: the folders of maps and labels in a run. Out: RUN_DIR/pseudo_labels.png and, if DeepLab has
run, RUN_DIR/deeplab.png.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets.images import read_companion, read_image
from datasets.layout import DataRoot
from labelling.maps import load_maps
from labelling.visualize import overlay_label, overlay_maps, save_grid
from reporting.pictures import choose
from reporting.run import RESULTS
from utils.files import UserError
from utils.logging import get_logger

log = get_logger()
HEIGHT = 240  # pixels a cell
Column = tuple[str, Path, Callable[[Path, np.ndarray, int, int], np.ndarray]]


def write_grids(run: Path, output: Path, root: DataRoot, images: str, val_images: str, count: int
                ) -> None:
    """Write two grids of a run to `output`, each of `count` images of its list and the columns
    that exist."""
    columns = [(result.layer, run / result.folder, draw_maps if result.maps else draw_label)
               for result in RESULTS]
    mask = ("mask", root.mask_dir, draw_label)
    deeplab = sum(result.key.startswith("deeplab") for result in RESULTS)
    grid(root, images, count, output / "pseudo_labels.png", [*columns[:-deeplab], mask])
    grid(root, val_images, count, output / "deeplab.png", [*columns[-deeplab:], mask])


def grid(root: DataRoot, name: str, count: int, path: Path, columns: Sequence[Column]) -> None:
    """Write a grid of `count` images, evenly spaced over a list, with the columns that exist."""
    columns = [column for column in columns if column[1].is_dir()]
    if all(title == "mask" for title, _, _ in columns) or root.find_list(name) is None:
        return
    ids = [entry.id for entry in root.entries(name, labels=False)]
    for _, folder, _ in columns:  # an unfinished run has not written all of them yet
        there = {file.stem for file in folder.glob("[!.]*.png")}
        ids = [image_id for image_id in ids if image_id in there]
    rows = []
    for image_id in choose(ids, count, {}):
        try:
            picture, orientation = read_image(root.image(image_id))
            image = np.asarray(picture)
            cells = [image] + [
                draw(folder / f"{image_id}.png", image, orientation, len(root.classes))
                for _, folder, draw in columns]
        except UserError as error:
            log.warning("left out of %s: %s", path.name, error)
            continue
        width = round(image.shape[1] * HEIGHT / image.shape[0])
        rows.append([cv2.resize(cell, (width, HEIGHT), interpolation=cv2.INTER_AREA)
                     for cell in cells])
    if rows:
        save_grid(path, rows, ["image", *(title for title, _, _ in columns)])
        log.info("wrote %s", path)


def draw_maps(file: Path, image: np.ndarray, _: int, num_classes: int) -> np.ndarray:
    """The strongest of the localization maps in a file, as heat over the image."""
    return overlay_maps(image, load_maps(file, num_classes)[0])


def draw_label(file: Path, image: np.ndarray, orientation: int, _: int) -> np.ndarray:
    """The labels in a file, in their colours over the upright image."""
    return overlay_label(image, read_companion(file, image.shape[:2], orientation))
