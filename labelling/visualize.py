"""Pictures of results: maps and labels over images, and grids of them."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from labelling.labels import IGNORE, colorize
from utils.files import atomic_write


def overlay_maps(image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The strongest of the maps (K, h, w) uint8 as heat over the image (H, W, 3) uint8."""
    height, width = image.shape[:2]
    heat = maps.max(axis=0) if len(maps) else np.zeros((height, width), np.uint8)
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    colors = cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(image, 0.4, colors, 0.6, 0)


def overlay_label(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Labels (H, W) in VOC colours over the image; ignored pixels are white, background shows."""
    colors = colorize(label)
    colors[label == IGNORE] = 255
    blended = cv2.addWeighted(image, 0.35, colors, 0.65, 0)
    return np.where((label == 0)[..., None], image, blended)


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an RGB (H, W, 3) or grey (H, W) uint8 picture, atomically."""
    from PIL import Image

    with atomic_write(path) as tmp:
        Image.fromarray(image).save(tmp)


def save_grid(path: Path, rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str],
              side: int = 160) -> None:
    """Write a PNG grid: each row a list of RGB pictures, titled by column.

    Args:
        side: height of a cell in pixels at the picture's own resolution.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    aspect = float(np.mean([cell.shape[1] / cell.shape[0] for row in rows for cell in row]))
    figure, axes = plt.subplots(
        len(rows), len(titles), squeeze=False, dpi=100, layout=ConstrainedLayoutEngine(
            w_pad=0.01, h_pad=0.01, wspace=0, hspace=0),
        figsize=(len(titles) * side * aspect / 100, (len(rows) * side + 30) / 100))
    for row, cells in zip(axes, rows, strict=True):
        for axis, cell in zip(row, cells, strict=True):
            axis.imshow(cell)
            axis.axis("off")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    with atomic_write(path) as tmp:
        figure.savefig(tmp, format="png")
    plt.close(figure)
