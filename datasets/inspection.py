"""What is wrong with one image and the files that belong to it, in as many processes as wanted.

In: a data root. Out: one `Finding` per image, which tells faults instead of raising them.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from datasets.images import match_image, read_image
from datasets.layout import DataRoot, annotated_classes
from labelling.labels import IGNORE, SALIENCY_THRESHOLD, read_label
from utils.files import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")
CHUNK = 32  # images handed to a process at once


@dataclass(frozen=True)
class Files:
    """An image and those of its companions that exist."""

    id: str
    image: Path
    annotation: Path | None
    mask: Path | None
    saliency: Path | None


@dataclass
class Finding:
    """What one image and its companions are.

    Attributes:
        faults: (kind, message) of each.
        annotated, masked: the classes in the XML and in the mask; None: no such file, faulty, or
            not looked at.
        mask, saliency: the file is there and, if looked at, good.
        readable: the image can be decoded; None: not looked at.
        salient: it marks anything as foreground; None: not looked at.
        digest: of the image file's bytes, to find the same picture under two names.
    """

    id: str
    faults: list[tuple[str, str]] = field(default_factory=list)
    annotated: tuple[int, ...] | None = None
    masked: tuple[int, ...] | None = None
    mask: bool = False
    readable: bool | None = None
    saliency: bool = False
    salient: bool | None = None
    digest: bytes | None = None

    @property
    def scorable(self) -> bool:
        """Whether labels for this image can be compared with its mask."""
        return self.mask and self.readable is not False

    @contextmanager
    def noting(self, kind: str) -> Iterator[None]:
        """Turn an error inside into a fault of this kind."""
        try:
            yield
        except UserError as error:
            self.faults.append((kind, str(error)))


def files_of(root: DataRoot) -> list[Files]:
    """Every image of a data set with its companions, from one look at each folder."""
    there = {folder: names(folder, suffix) for folder, suffix in (
        (root.annotation_dir, ".xml"), (root.mask_dir, ".png"), (root.saliency_dir, ".png"))}

    def companion(folder: Path, image_id: str) -> Path | None:
        return there[folder].get(image_id)

    return [Files(image_id, path, companion(root.annotation_dir, image_id),
                  companion(root.mask_dir, image_id), companion(root.saliency_dir, image_id))
            for image_id, path in root.images.items()]


def names(folder: Path, suffix: str) -> dict[str, Path]:
    """Name without suffix -> file, of the files in `folder` with `suffix`; empty if it is not."""
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in folder.iterdir()
            if path.suffix == suffix and not path.name.startswith(".")}


def inspect(files: Files, classes: tuple[str, ...], quick: bool) -> Finding:
    """Look at one image and its companions.

    Args:
        quick: open annotations only; masks and saliency maps that exist count as good.
    """
    finding = Finding(files.id, mask=files.mask is not None, saliency=files.saliency is not None)
    if files.annotation is not None:
        with finding.noting("unreadable annotation"):
            finding.annotated = annotated_classes(files.annotation, classes)
    if quick:
        return finding
    size, orientation, finding.readable = None, 1, False
    with finding.noting("unreadable image"):
        image, orientation = read_image(files.image)
        size, finding.readable = (image.height, image.width), True
        finding.digest = hashlib.blake2b(files.image.read_bytes(), digest_size=16).digest()
    if files.mask is not None:
        mask = _companion(finding, "mask", files.mask, size, orientation)
        if mask is not None:
            with finding.noting("mask with other values than classes"):
                finding.masked = mask_classes(mask, files.mask, len(classes))
        finding.mask = finding.masked is not None
    if files.saliency is not None:
        saliency = _companion(finding, "saliency map", files.saliency, size, orientation)
        finding.saliency = saliency is not None
        if saliency is not None:
            finding.salient = bool((saliency > SALIENCY_THRESHOLD).any())
    return finding


def _companion(finding: Finding, what: str, path: Path, size: tuple[int, int] | None,
               orientation: int) -> np.ndarray | None:
    array = None
    with finding.noting(f"unreadable {what}"):
        array = read_label(path)
    if array is None or size is None:
        return array
    with finding.noting(f"{what} of another size than its image"):
        return match_image(array, path, size, orientation)
    return None


def mask_classes(mask: np.ndarray, path: Path, num_classes: int) -> tuple[int, ...]:
    """The 0-based classes in a mask (H, W) uint8, ascending.

    Raises:
        UserError: it has values that are neither background, nor a class, nor 255.
    """
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1))
    strange = values[(values > num_classes) & (values != IGNORE)]
    if len(strange):
        raise UserError(f"{path}: values {', '.join(map(str, strange[:5]))}"
                        f"{', ...' if len(strange) > 5 else ''}, but the {num_classes} classes "
                        f"are 1 to {num_classes}")
    return tuple(int(value) - 1 for value in values if 0 < value <= num_classes)


def inspect_all(root: DataRoot, quick: bool, processes: int) -> Iterator[Finding]:
    """The finding of each image, in the order of `root.images`."""
    work = partial(inspect, classes=tuple(root.classes), quick=quick)
    return map_in_processes(work, files_of(root), processes)


def map_in_processes(function: Callable[[Item], Result], items: Iterable[Item], processes: int
                     ) -> Iterator[Result]:
    """`map` over a pool of processes; in this one if `processes` is 0 or 1."""
    if processes <= 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(function, items, chunksize=CHUNK)
