"""The end of a run: one table of all scores, and pictures that show why.

In: RUN_DIR/scores/*.json and the folders of maps and labels. Out: the table on the terminal and in
RUN_DIR/table.md; RUN_DIR/pseudo_labels.png and, if DeepLab has run, RUN_DIR/deeplab.png.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from datasets.images import read_image
from datasets.layout import DataRoot, Entry
from labelling.labels import read_label
from labelling.maps import load_maps
from labelling.visualize import overlay_label, overlay_maps, save_grid
from utils import options
from utils.files import UserError, atomic_write
from utils.logging import get_logger
from utils.stage import begin, launch

log = get_logger()
# Name of the result (RUN_DIR/scores/NAME.json) and its row in the table, in the order of the data.
RESULTS = {"cam": "plain CAM (no DRS)", "drs": "DRS", "refined": "DRS + refinement",
           "pseudo_labels": "pseudo labels", "deeplab": "DeepLab-V2",
           "deeplab_crf": "DeepLab-V2 + CRF"}
PICTURE_HEIGHT = 240  # pixels a cell


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = options.stage_parser(__doc__, images="train", output="", batch_size=None)
    parser.add_argument("--val-list", default="val", help="images of DeepLab's picture")
    parser.add_argument("--rows", type=options.positive_int, default=6, help="images a picture")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    options.resolve_folders(args)
    root, run = DataRoot(args.data_root), args.run_dir
    if not run.is_dir():
        raise UserError(f"--run-dir {run}: no such folder")
    begin(args, {"scores": run / "scores"})

    def maps(folder: str) -> Callable[[Entry, np.ndarray], np.ndarray]:
        return lambda entry, image: overlay_maps(
            image, load_maps(run / folder / f"{entry.id}.png", len(root.classes))[0])

    def label(folder: Path) -> Callable[[Entry, np.ndarray], np.ndarray]:
        return lambda entry, image: overlay_label(image, read_label(folder / f"{entry.id}.png"))

    picture(root, args.list, args.rows, run / "pseudo_labels.png", [
        ("CAM without DRS", run / "cam_maps", maps("cam_maps")),
        ("CAM with DRS", run / "localization_maps", maps("localization_maps")),
        ("refined map", run / "refined_maps", maps("refined_maps")),
        ("pseudo label", run / "pseudo_labels", label(run / "pseudo_labels")),
        ("mask", root.mask_dir, label(root.mask_dir))])
    picture(root, args.val_list, args.rows, run / "deeplab.png", [
        ("DeepLab-V2", run / "deeplab_labels", label(run / "deeplab_labels")),
        ("DeepLab-V2 + CRF", run / "deeplab_crf_labels", label(run / "deeplab_crf_labels")),
        ("mask", root.mask_dir, label(root.mask_dir))])
    table = score_table(run / "scores")
    with atomic_write(run / "table.md") as tmp:
        tmp.write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n")


def picture(root: DataRoot, name: str, count: int, path: Path,
            columns: list[tuple[str, Path, Callable[[Entry, np.ndarray], np.ndarray]]]) -> None:
    """Write a grid of `count` images, evenly spaced over a list, with the columns that exist."""
    columns = [column for column in columns if column[1].is_dir()]
    if len(columns) < 2 or root.find_list(name) is None:
        return
    entries = root.entries(name, labels=False)
    # Evenly spaced: a picture of chosen images would prove nothing.
    chosen = [entries[i] for i in np.linspace(0, len(entries) - 1, min(count, len(entries)),
                                              dtype=int)]
    rows = []
    for entry in chosen:
        image = np.asarray(read_image(root.image(entry.id))[0])
        cells = [image] + [draw(entry, image) for _, _, draw in columns]
        width = round(image.shape[1] * PICTURE_HEIGHT / image.shape[0])
        rows.append([cv2.resize(cell, (width, PICTURE_HEIGHT), interpolation=cv2.INTER_AREA)
                     for cell in cells])
    save_grid(path, rows, ["image", *(title for title, _, _ in columns)])
    log.info("wrote %s", path)


def score_table(folder: Path) -> str:
    """The scores in `folder` as a Markdown table.

    Raises:
        UserError: there are none.
    """
    lines = ["| result | images | mIoU | precision | recall | pixel accuracy |",
             "| --- | --- | ---: | ---: | ---: | ---: |"]
    for name, title in RESULTS.items():
        path = folder / f"{name}.json"
        if path.is_file():
            scores = json.loads(path.read_text(encoding="utf-8"))
            numbers = " | ".join(f"{100 * scores[key]:.1f}" for key in
                                 ("miou", "precision", "recall", "pixel_accuracy"))
            lines.append(f"| {title} | {scores['images']} of {scores['list']} | {numbers} |")
    if len(lines) == 2:
        raise UserError(f"{folder}: no scores of {', '.join(RESULTS)}; run evaluate.py first")
    return "\n".join(lines)


if __name__ == "__main__":
    launch(main, parse())
