"""Labels for other tools, and back from CVAT after they were corrected there by hand.

In: a data root and a folder of label PNGs (pseudo labels, predictions), or what CVAT exported as
"Segmentation mask 1.1". Out: OUTPUT_DIR in the format asked for, or the corrected label PNGs with
list.txt, the list of their images. OUTPUT_DIR appears when it is whole, and not before.

    python export_labels.py --data-root photos --labels-dir runs/photos/pseudo_labels \\
        --format coco --output-dir export
    python export_labels.py --data-root photos --import-cvat task.zip --output-dir corrected
"""

import argparse
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import UserError
from utils.folders import whole_folder
from utils.logging import get_logger, progress
from utils.options import positive_int
from utils.stage import launch

if TYPE_CHECKING:  # they import torch, which takes seconds: not for --help
    import numpy as np

    from datasets.layout import DataRoot

log = get_logger()
FORMATS = ("coco", "cvat", "yolo", "voc")
JPEG_SUFFIXES, JPEG_QUALITY = {".jpg", ".jpeg"}, 95
SHOWN = 3  # names in a message


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR",
                        help="the photos, as for the other scripts")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR",
                        help="what is written; an earlier output of this script is replaced")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace OUTPUT_DIR whatever it holds")
    parser.add_argument("--labels-dir", type=Path, metavar="DIR",
                        help="label PNGs to export; with --import-cvat: labels of the images that "
                             "the CVAT export leaves out, taken over as they are")
    parser.add_argument("--list", metavar="LIST", help="export the images of this list "
                        "(default: every image that has a label)")
    parser.add_argument("--min-area", type=positive_int, default=1, metavar="N",
                        help="make connected regions of fewer pixels background "
                             "(default: %(default)s, none)")
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--format", choices=FORMATS, help="labels out, in this format")
    direction.add_argument("--import-cvat", type=Path, metavar="FOLDER|ZIP",
                           help="labels back from CVAT, as label PNGs")
    args = parser.parse_args(argv)
    if args.format and args.labels_dir is None:
        parser.error("--format needs --labels-dir, the labels to export")
    if args.import_cvat and (args.list or args.min_area > 1):
        parser.error("--list and --min-area are for exports")
    return args


def main(args: argparse.Namespace) -> None:
    """Labels out in the format asked for, or back from CVAT."""
    from datasets.layout import DataRoot

    root = DataRoot(args.data_root)
    inputs = {f"--{name.replace('_', '-')}": path for name in
              ("data_root", "labels_dir", "import_cvat") if (path := getattr(args, name))}
    with whole_folder(args.output_dir, vars(args), overwrite=args.overwrite,
                      inputs=inputs) as folder:
        if args.import_cvat:
            summary = import_cvat(args, root, folder)
        else:
            summary = export(args, root, folder)
    log.info("%s: %s", args.output_dir, summary)


def export(args: argparse.Namespace, root: "DataRoot", folder: Path) -> str:
    """Write the labels in `args.format` to `folder`; returns what was done, in words."""
    from labelling.cvat import CvatWriter
    from labelling.export import CocoWriter, VocWriter, Writer, YoloWriter
    from labelling.regions import without_small_regions

    ids = labelled_images(root, args.labels_dir, args.list)
    writers: dict[str, Callable[[Path, Sequence[str]], Writer]] = {
        "coco": CocoWriter, "cvat": CvatWriter, "yolo": YoloWriter, "voc": VocWriter}
    empty = 0
    with closing(writers[args.format](folder, root.classes)) as writer:
        for image_id in progress(ids, "exporting", unit="image"):
            label, orientation = read_checked(root, args.labels_dir, image_id)
            label = without_small_regions(label, args.min_area)
            path, before = root.image(image_id), writer.regions
            writer.add(image_id, path.relative_to(root.image_dir).as_posix(), label)
            empty += writer.regions == before
            if writer.photos is not None:
                copy_photo(path, orientation, writer.new_file(f"{writer.photos}/{image_id}.jpg"))
    return (f"{len(ids)} images, {writer.regions} regions"
            + (f"; {empty} images have none" if empty else ""))


def labelled_images(root: "DataRoot", labels_dir: Path, name: str | None) -> list[str]:
    """The ids of the images to export: those of a list, or those that have a label.

    Raises:
        UserError: there are none, or labels of the list are missing.
    """
    from datasets.voc import require_files

    if name is not None:
        entries = root.entries(name, labels=False)
        require_files(labels_dir, entries)
        return [entry.id for entry in entries]
    if not labels_dir.is_dir():
        raise UserError(f"--labels-dir {labels_dir}: no such folder")
    labels = {path.relative_to(labels_dir).with_suffix("").as_posix()
              for path in labels_dir.rglob("[!.]*.png")}
    ids = sorted(labels & root.images.keys())
    if not ids:
        raise UserError(f"--labels-dir {labels_dir}: holds no PNG that is named like an image of "
                        f"{root.image_dir}")
    if others := sorted(labels - root.images.keys()):
        log.warning("%d PNGs of %s are named like no image and left out (%s)", len(others),
                    labels_dir, ", ".join(others[:SHOWN]))
    if missing := sorted(root.images.keys() - labels):
        log.warning("%d images have no label and are left out (%s)", len(missing),
                    ", ".join(missing[:SHOWN]))
    return ids


def copy_photo(path: Path, orientation: int, copy: Path) -> None:
    """Write a photo as an upright JPEG: the very file, if it is one already."""
    from datasets.images import read_image

    if path.suffix.lower() in JPEG_SUFFIXES and orientation == 1:
        shutil.copyfile(path, copy)
    else:
        read_image(path)[0].save(copy, quality=JPEG_QUALITY)


def read_checked(root: "DataRoot", labels_dir: Path, image_id: str) -> tuple["np.ndarray", int]:
    """Labels (H, W) uint8 as they lie on the upright photo, and the photo's EXIF orientation.

    Raises:
        UserError: one of them cannot be read, they differ in size, or a number is no class.
    """
    from datasets.images import read_companion
    from datasets.scoring import image_size
    from labelling.labels import IGNORE

    path, classes = labels_dir / f"{image_id}.png", len(root.classes)
    size, orientation = image_size(root.image(image_id))
    label = read_companion(path, size, orientation)
    wrong = label[(label > classes) & (label != IGNORE)]
    if wrong.size:
        raise UserError(f"{path}: holds class number {wrong[0]}, but there are {classes} classes")
    return label, orientation


def import_cvat(args: argparse.Namespace, root: "DataRoot", folder: Path) -> str:
    """Write CVAT's labels as label PNGs to `folder`; returns what was done, in words."""
    from labelling.export import list_line
    from labelling.labels import save_label

    with open(folder / "list.txt", "w", encoding="utf-8") as lines:

        def write(image_id: str, label: "np.ndarray") -> None:
            path = folder / f"{image_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_label(path, label)
            lines.write(list_line(image_id, label))

        done: dict[str, str] = {}
        with unpacked(args.import_cvat, folder) as source:
            for image_id, name, label in progress(cvat_labels(args.import_cvat, source, root),
                                                  "importing", unit="image"):
                if image_id in done:
                    raise UserError(f"--import-cvat {args.import_cvat}: {done[image_id]} and "
                                    f"{name} are the same image of {args.data_root}")
                done[image_id] = name
                write(image_id, label)
        others = [] if args.labels_dir is None else [
            image_id for image_id in labelled_images(root, args.labels_dir, None)
            if image_id not in done]
        for image_id in progress(others, "taking over", unit="image"):
            write(image_id, read_checked(root, args.labels_dir, image_id)[0])
    return (f"{len(done)} images from CVAT"
            + (f", {len(others)} labels taken over from {args.labels_dir}" if others else ""))


def cvat_labels(given: Path, source: Path, root: "DataRoot"
                ) -> Iterator[tuple[str, str, "np.ndarray"]]:
    """The image id, CVAT's name and labels (H, W) uint8 of each image in an export of CVAT.

    Args:
        given: what the user named, for messages; `source` is the folder it is unpacked in.

    Raises:
        UserError: it is no such export, or does not fit the data root.
    """
    from datasets.scoring import image_size
    from labelling.cvat import CvatReader, find_image_id

    try:
        reader = CvatReader(source, root.classes)
        names = reader.image_names()
    except UserError as error:
        raise UserError(f"--import-cvat {given}: {error}") from error
    for name in names:
        image_id = find_image_id(name, root.pictures.find)
        if image_id is None:
            raise UserError(f"--import-cvat {given}: {name[:80]!r} is no image of "
                            f"{root.image_dir}")
        size, _ = image_size(root.image(image_id))
        try:
            label = reader.label(name, size)
        except UserError as error:
            raise UserError(f"--import-cvat {given}: {error}") from error
        yield image_id, name, label


@contextmanager
def unpacked(path: Path, scratch: Path) -> Iterator[Path]:
    """The folder with the labelmap in a folder, or in a ZIP that is unpacked below `scratch`.

    Raises:
        UserError: missing, neither of both, damaged, or a ZIP that must not be unpacked.
    """
    from fetching.store import unpack
    from labelling.cvat import LABELMAP

    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        try:
            if zipfile.is_zipfile(path):
                folder = unpack(path, Path(temporary), is_tar=False, holds=LABELMAP)
            elif not path.is_dir():
                raise UserError("neither a folder nor a ZIP" if path.exists() else "not there")
            else:
                found = sorted(path.glob(LABELMAP)) + sorted(path.glob(f"*/{LABELMAP}"))
                if not found:
                    raise UserError(f"it does not hold {LABELMAP}")
                folder = found[0].parent
        except UserError as error:
            raise UserError(f"--import-cvat {path}: {error}; expected an export of CVAT in the "
                            "format \"Segmentation mask 1.1\"") from error
        yield folder


if __name__ == "__main__":
    launch(main, parse())
