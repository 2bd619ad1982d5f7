"""The released files: what there is, where from and where to, and what each must look like.

In: nothing, or the path of a file. Out: the catalogue `ITEMS`; whether a file has the form that
its name promises; its checksums.
"""

import hashlib
import re
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utils.archives import CHUNK, DAMAGE
from utils.download import ContentError
from utils.logging import get_logger, progress

RELEASE = "https://github.com/qjadud1994/DRS/releases/download/asset"
LISTS = "https://raw.githubusercontent.com/qjadud1994/DRS/main/VOC2012_list"
VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
LIST_LINE = re.compile(r"\S+( \d+)*")


@dataclass(frozen=True)
class Asset:
    """One released file.

    `folder` is where it is kept: under the data root, or None for the checkpoint folder.
    An archive's content is the folder in it where `pattern` matches; it goes to `unpack_to`
    under the data root. `counts`: so many files there tell that this was done by other means.
    """

    source: str
    name: str
    folder: str | None = None
    unpack_to: str | None = None
    pattern: str = "*.png"
    counts: Mapping[str, int] = field(default_factory=dict)
    md5: str | None = None
    lines: int | None = None  # of a list
    made_here: bool = False  # `unpack_to` is also where the pipeline writes: replace nothing

    @property
    def url(self) -> str:
        """Where the official file lies."""
        return f"{self.source}/{self.name}"


def _images(name: str, counts: Mapping[str, int] | None = None, made_here: bool = False) -> Asset:
    return Asset(RELEASE, f"{name}.zip", folder="", unpack_to=name, counts=counts or {},
                 made_here=made_here)


VOC_COUNTS = {"JPEGImages": 17_125, "Annotations": 17_125,
              "ImageSets/Segmentation/train.txt": 1, "ImageSets/Segmentation/val.txt": 1}
ITEMS: dict[str, tuple[str, tuple[Asset, ...]]] = {
    "voc2012": ("PASCAL VOC 2012: images, annotations, splits", (
        Asset(VOC, "VOCtrainval_11-May-2012.tar", folder="", unpack_to="",
              pattern="JPEGImages/*.jpg", counts=VOC_COUNTS,
              md5="6cd6e144f989b92b3379bac3b3de84fd"),)),
    "masks": ("VOC + SBD masks, to measure mIoU and train DeepLab on",
              (_images("SegmentationClassAug", {"SegmentationClassAug": 12_031}),)),
    "saliency": ("saliency maps, the background cue", (_images("saliency_map"),)),
    "lists": ("image lists with class labels", tuple(
        Asset(LISTS, f"{name}.txt", folder="ImageSets/Segmentation", lines=lines)
        for name, lines in (("train_aug_cls", 10_582), ("train_cls", 1_464), ("val_cls", 1_449)))),
    "drs": ("classifier with learnable DRS", (Asset(RELEASE, "DRS_learnable.pth"),)),
    "refine": ("refinement network", (Asset(RELEASE, "Refine_DRS_learnable.pth"),)),
    "pseudo-labels": ("the pseudo labels of the paper", (
        _images("refined_pseudo_segmentation_labels", made_here=True),)),
    "deeplab-init": ("COCO weights from which DeepLab training starts",
                     (Asset(RELEASE, "deeplabv1_resnet101-coco.pth"),)),
    "deeplab": ("DeepLab-V2 trained on the pseudo labels",
                (Asset(RELEASE, "Deeplabv2_pseudo_segmentation_labels.pth"),)),
}


def check_form(path: Path, asset: Asset) -> None:
    """Whether the file at `path` has the form that the asset's name promises, as far as it shows.

    Raises:
        ContentError: it has not; most often it is a web page, or cut short.
    """
    with open(path, "rb") as file:
        head = file.read(512).lstrip()
    suffix = Path(asset.name).suffix
    if not head:
        raise ContentError("it is empty")
    if head.startswith(b"<"):
        raise ContentError("it is a web page (of a log-in or an error?)")
    try:
        if suffix == ".zip":
            zipfile.ZipFile(path).close()  # reads the directory at its end
        elif suffix == ".tar" and not tarfile.is_tarfile(path):
            raise ContentError("it is no tar archive")
        elif suffix == ".pth":
            _check_checkpoint(path, head)
        elif suffix == ".txt":
            _check_list(path, asset)
    except DAMAGE as error:  # a UnicodeDecodeError is a ValueError
        raise ContentError(f"it is damaged or cut short ({error})") from error


def _check_checkpoint(path: Path, head: bytes) -> None:
    if head.startswith(b"PK"):  # PyTorch's zip form; its checksums are checked here or nowhere
        with zipfile.ZipFile(path) as opened:
            if damaged := opened.testzip():
                raise ContentError(f"it is damaged at {damaged}")
    elif not head.startswith(b"\x80"):  # PyTorch's older form, a pickle
        raise ContentError("it is no PyTorch file")


def _check_list(path: Path, asset: Asset) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not LIST_LINE.fullmatch(line.strip()):
            raise ContentError(f"line {number} is not 'ID' or 'ID CLASS ...'")
    if asset.lines not in (None, len(lines)):
        get_logger().warning("%s has %s lines, the official one has %s: is it complete?",
                             asset.name, f"{len(lines):,}", f"{asset.lines:,}")


def digests(path: Path) -> dict[str, str]:
    """MD5 and SHA-256 of a file, in one pass."""
    sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with open(path, "rb") as file:
        chunks = iter(lambda: file.read(CHUNK), b"")
        for chunk in progress(chunks, desc=f"checking {path.name}", unit="MiB",
                              total=path.stat().st_size // CHUNK):
            for value in sums.values():
                value.update(chunk)
    return {name: value.hexdigest() for name, value in sums.items()}
