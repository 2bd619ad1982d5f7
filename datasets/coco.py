"""Masks for scoring, rendered from the instances in COCO files.

In: a data root whose labels come from COCO JSON. Out: label PNGs in a folder of their own: 0
background, class index + 1. Time is linear in the number of images; of an annotation only its place
in the file is kept in memory, so that COCO's own 450 MB take little.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.documents import Id, find_beside
from datasets.images import image_size
from datasets.layout import DataRoot
from datasets.pictures import nfc
from datasets.records import read_at, records
from labelling.labels import save_label
from utils.files import UserError, open_regular, output_folder
from utils.logging import get_logger, progress
from utils.processes import map_in_processes

MAX_AWAY = 2  # polygons may leave the image by so many times its longer side


class Job(NamedTuple):
    """One image to render: its id and file; in a COCO file its (height, width), where told, and
    (label, first byte, end) of each annotation."""

    image_id: str
    image: Path
    source: Path
    size: tuple[Any, Any]
    places: Sequence[tuple[int, int, int]]


def write_masks(root: DataRoot, name: str, folder: Path, processes: int = 0) -> None:
    """Write folder/ID.png for every image of a list: COCO's instances as a label image.

    Smaller instances lie over larger ones; crowds count as their class.

    Args:
        name: of the list, as `DataRoot.entries` takes it.
        processes: that render.

    Raises:
        UserError: pycocotools is missing, an image has no entry in a COCO file, or a segmentation
            is none.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise UserError("masks from COCO files need pycocotools (pip install -r "
                        "requirements-extra.txt)") from error
    wanted = {entry.id for entry in root.entries(name, labels=False)}
    if not root.source.coco:
        raise UserError(f"{root.root}: labels come from {root.source.found}; masks can be rendered "
                        "from COCO files alone")
    output_folder(folder, "--output")
    jobs: dict[str, Job] = {}
    for path in root.source.coco:
        jobs |= {job.image_id: job for job in _jobs(root, path, wanted - jobs.keys())}
    if missing := sorted(wanted - jobs.keys()):
        raise UserError(f"{missing[0]}: in no COCO file"
                        + (f" (and {len(missing) - 1:,} more)" if missing[1:] else ""))
    render = partial(write_mask, folder=folder)
    for _ in progress(map_in_processes(render, jobs.values(), processes), "masks",
                      total=len(jobs), unit="image"):
        pass
    get_logger().info("wrote %d masks to %s", len(jobs), folder)


def _jobs(root: DataRoot, path: Path, wanted: set[str]) -> Iterator[Job]:
    """What is to be rendered of one COCO file, which `root.source` has found to be right."""
    images: dict[Id, tuple[str, Any, Any]] = {}
    categories: dict[Id, str] = {}
    owners: list[Id] = []
    classes: list[Id] = []
    starts, ends = array("q"), array("q")
    for key, _, value, start, end in records(path):
        if key == "images":
            images[value["id"]] = value["file_name"], value.get("height"), value.get("width")
        elif key == "categories":
            categories[value["id"]] = value["name"]
        elif key == "annotations" and value.get("segmentation"):
            owners.append(value["image_id"])
            classes.append(value["category_id"])
            starts.append(start)
            ends.append(end)
    if not owners and images:
        raise UserError(f"{path}: no segmentations to render masks from")
    places: dict[Id, list[int]] = {image: [] for image in images}
    for number, owner in enumerate(owners):
        places[owner].append(number)
    index = {name: label for label, name in enumerate(root.classes, start=1)}
    labels = {category: index.get(nfc(name.strip()), 0) for category, name in categories.items()}
    for image, (name, height, width) in images.items():
        image_id = find_beside(name, path, root.root, root.pictures)
        if image_id in wanted:
            yield Job(image_id, root.image(image_id), path, (height, width), [
                (labels[classes[number]], starts[number], ends[number])
                for number in places[image]])


def write_mask(job: Job, folder: Path) -> None:
    """Render and write the mask of one image.

    Raises:
        UserError: the image cannot be read, has another size than told, or a segmentation is none.
    """
    upright, _ = image_size(job.image)
    height, width = size = upright if job.size == (None, None) else job.size
    if size not in (upright, upright[::-1]):
        raise UserError(f"{job.source}: says that {job.image.name} has {width}x{height} pixels, "
                        f"but it has {upright[1]}x{upright[0]}")
    shapes = []
    with open_regular(job.source) as file:
        for label, start, end in job.places:
            segmentation = read_at(file, start, end)["segmentation"]
            try:
                shapes.append((decode(segmentation, height, width), label))
            except (ValueError, TypeError, OverflowError) as error:
                raise UserError(f"{job.source}, the annotation at byte {start:,}: no segmentation "
                                f"of {job.image.name} ({error})") from error
    mask = np.zeros(size, np.uint8)
    for shape, label in sorted(shapes, key=lambda item: -int(item[0].sum())):
        mask[shape] = label
    save_label(folder / f"{job.image_id}.png", mask)


def decode(segmentation: object, height: int, width: int) -> np.ndarray:
    """Polygons or a run-length code, as COCO has them, as a mask (height, width) bool.

    Raises:
        ValueError, TypeError, OverflowError: it is none, or is not of this image.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, Mapping):
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            counts = run_lengths(counts)
        if segmentation.get("size") != [height, width] or not isinstance(counts, list) \
                or not all(isinstance(run, int) and run >= 0 for run in counts) \
                or sum(counts) != height * width:  # pycocotools would read beyond its memory
            raise ValueError("a run-length code of another size")
        code = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        return coco_mask.decode(code).astype(bool)
    if not isinstance(segmentation, list):
        raise ValueError("neither polygons nor a run-length code")
    polygons = []
    for polygon in segmentation:
        points = np.asarray(polygon, np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2:
            raise ValueError("a polygon needs three points or more")
        # Far away points would take pycocotools minutes; NaN compares as false.
        if not (np.abs(points) <= MAX_AWAY * max(height, width)).all():
            raise ValueError("a polygon far outside the image")
        polygons.append(points.tolist())
    codes = coco_mask.frPyObjects(polygons, height, width)
    return coco_mask.decode(coco_mask.merge(codes)).astype(bool)


def run_lengths(text: str) -> list[int]:
    """The runs of COCO's compressed code: numbers of 5 bits a character, lowest first, each from
    the third on as the difference to the one two places before.

    Raises:
        ValueError: it is none.
    """
    runs: list[int] = []
    number = shift = 0
    for char in text:
        bits = ord(char) - ord("0")
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("no run-length code")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number, whose fifth bit is its sign
            number -= (bits & 16) << (shift - 4)
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return runs
