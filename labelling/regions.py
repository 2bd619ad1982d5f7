"""Connected regions of a label image, and their outlines as polygons.

In: labels (H, W) uint8, 0 background, 255 undecided. Out: one `Region` per class and connected
region (8 neighbours), and polygons that a filler such as OpenCV's turns back into exactly it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from labelling.labels import IGNORE


@dataclass(frozen=True)
class Region:
    """One connected region of one class.

    Attributes:
        label: class number.
        top, left: where its bounding box begins, in pixels.
        mask: (h, w) bool, the region in its bounding box.
    """

    label: int
    top: int
    left: int
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    @property
    def window(self) -> tuple[slice, slice]:
        """Where the bounding box lies in the image: image[region.window] has the mask's shape."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def regions(label: np.ndarray, skip: Collection[int] = (0, IGNORE)) -> Iterator[Region]:
    """The regions of a label image (H, W) uint8 but for the numbers in `skip`, class by class."""
    for number in np.unique(label).tolist():
        if number in skip:
            continue
        _, numbered, stats, _ = cv2.connectedComponentsWithStats(
            (label == number).astype(np.uint8), connectivity=8)
        for i, (left, top, width, height) in enumerate(stats[1:, :4].tolist(), start=1):
            crop = numbered[top:top + height, left:left + width]
            yield Region(number, top, left, crop == i)


def without_small_regions(label: np.ndarray, min_area: int) -> np.ndarray:
    """The labels with every region of fewer than `min_area` pixels made background."""
    if min_area <= 1:
        return label
    kept = label.copy()
    for region in regions(label):
        if region.area < min_area:
            kept[region.window][region.mask] = 0
    return kept


def outline(region: Region) -> np.ndarray:
    """The region's outline as one closed polygon through pixel centres.

    A hole is reached from the boundary on its left along a row of the region's own pixels and left
    the same way, so that neither an even-odd fill nor the drawn border adds or loses a pixel.

    Returns:
        (N, 2) int64 of x, y in the image, N >= 3 (points are repeated where the region is one
        pixel or a line).
    """
    contours, hierarchy = cv2.findContours(region.mask.astype(np.uint8), cv2.RETR_CCOMP,
                                           cv2.CHAIN_APPROX_NONE)
    rings = [contour.reshape(-1, 2).astype(np.int64) for contour in contours]
    parents = hierarchy.reshape(-1, 4)[:, 3]
    outer = rings.pop(int(np.flatnonzero(parents < 0)[0]))
    rings.sort(key=lambda ring: ring[:, 0].min())
    points = _corners(_joined([outer, *rings], region.mask) if rings else outer)
    if len(points) < 3:
        points = np.resize(points, (3, 2))
    return points + (region.left, region.top)


def _joined(rings: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """The outer ring with the holes' rings, sorted by their left ends, spliced in."""
    owner: dict[tuple[int, int], tuple[int, int]] = {}
    splices: dict[tuple[int, int], list[int]] = {}
    for number, ring in enumerate(rings):
        if number:
            start = int(ring[:, 0].argmin())
            x, y = ring[start].tolist()
            while x and mask[y, x - 1]:
                x -= 1
            # Background lies to the left of (x, y): that of a hole whose ring begins further
            # left, or that outside. So the pixel is on a ring that came before.
            splices.setdefault(owner[x, y], []).append(number)
            rings[number] = ring = np.roll(ring, -start, axis=0)
        for place, point in enumerate(map(tuple, ring.tolist())):
            owner.setdefault(point, (number, place))
    path: list[np.ndarray] = []
    # Depth first, with a stack of its own: holes can hang on holes in long chains.
    stack = [(0, 0, len(rings[0]))]
    while stack:
        number, first, last = stack.pop()
        ring = rings[number]
        for place in range(first, last):
            path.append(ring[place])
            holes = splices.pop((number, place), None)
            if holes:
                stack.append((number, place + 1, last))
                for hole in holes:  # its ring, its first point again, then back to this point
                    stack += [(number, place, place + 1), (hole, 0, 1), (hole, 0, len(rings[hole]))]
                break
    return np.array(path)


def _corners(points: np.ndarray) -> np.ndarray:
    """A closed polygon without the points at which it goes straight on."""
    before = np.sign(points - np.roll(points, 1, axis=0))
    after = np.sign(np.roll(points, -1, axis=0) - points)
    return points[(before != after).any(axis=1)] if len(points) > 2 else points
