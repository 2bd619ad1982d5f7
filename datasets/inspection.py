"""What is wrong with one image and the files that belong to it: a `Finding`, never an error."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.images import match_image, read_image
from datasets.layout import DataRoot
from datasets.sources import annotated_classes, file_digest
from labelling.labels import IGNORE, SALIENCY_THRESHOLD, read_label
from utils.files import UserError

Job = tuple[str, Path, dict[str, Path]]  # image id, its file, the files that belong to it by kind


@dataclass
class Finding:
    """What one image and its companions are.

    Attributes:
        faults: (kind of fault, message) of each.
        good: "image", "annotation", "mask", "saliency map", as far as there and without fault.
        labels: "annotation" and "mask" -> the classes in it.
        salient: the saliency map has foreground; None: not looked at.
        digest: of the image file's bytes, to find the same picture under two names.
    """

    id: str
    good: set[str]
    faults: list[tuple[str, str]] = field(default_factory=list)
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    salient: bool | None = None
    digest: bytes | None = None

    @contextmanager
    def judging(self, what: str, fault: str) -> Iterator[None]:
        """Turn an error inside into a fault of `what`."""
        try:
            yield
        except UserError as error:
            self.faults.append((fault, str(error)))
            self.good.discard(what)


def jobs(root: DataRoot) -> list[Job]:
    """What `inspect` is to look at for each image, from one look at each folder."""
    there = companions(root).items()
    return [(image_id, path, {kind: files[image_id] for kind, files in there if image_id in files})
            for image_id, path in root.images.items()]


def companions(root: DataRoot) -> dict[str, dict[str, Path]]:
    """Kind -> name without suffix -> file, of all that may belong to an image."""
    folders = {"annotation": (root.annotation_dir, ".xml"), "mask": (root.mask_dir, ".png"),
               "saliency map": (root.saliency_dir, ".png")}
    return {kind: {path.stem: path for path in sorted(folder.glob(f"[!.]*{suffix}"))}
            for kind, (folder, suffix) in folders.items()}


def inspect(job: Job, classes: Mapping[str, int], quick: bool) -> Finding:
    """Look at one image.

    Args:
        classes: name -> index.
        quick: open annotations only; what is there counts as good.
    """
    image_id, path, files = job
    found, size, orientation = Finding(image_id, {"image", *files}), None, 1
    if "annotation" in files:
        with found.judging("annotation", "unreadable annotation"):
            found.labels["annotation"] = annotated_classes(files["annotation"], classes)
    if quick:
        return found
    with found.judging("image", "unreadable image"):
        image, orientation = read_image(path)
        size, found.digest = (image.height, image.width), file_digest(path)
    for what in files.keys() - {"annotation"}:
        with found.judging(what, f"unreadable {what}"):
            array = read_label(files[what])
        if what not in found.good:
            continue
        with found.judging(what, f"{what} of another size than its image"):
            match_image(array, files[what], size or array.shape, orientation)
        if what == "saliency map":
            found.salient = bool((array > SALIENCY_THRESHOLD).any())
            continue
        with found.judging(what, "mask with other values than classes"):
            found.labels["mask"] = mask_classes(array, files[what], len(classes))
    return found


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
