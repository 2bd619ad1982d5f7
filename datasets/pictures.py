"""The image files at a place, with an id for each, and what lies there besides.

In: a file or folder. Out: `Pictures`. An id is the path of the image below its folder, without its
suffix and with "__" for each "/" (`cat/beach day.jpg` is `cat__beach day`): it is unique, and
`ID.png` is a good file name for what is made from the image.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from utils.files import UserError
from utils.images import HEIC_SUFFIXES, heic_available

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
                           | (HEIC_SUFFIXES if heic_available() else set()))
# Photos and videos that somebody may expect to be read. Other files are passed over in silence.
UNSUPPORTED = frozenset({
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".gif", ".svg", ".psd", ".tga", ".ico",
    ".eps", ".pdf", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".srw",
    ".pef", ".mov", ".mp4", ".m4v", ".avi", ".mkv", ".webm", ".3gp", ".mts", ".mpg", ".mpeg",
    ".wmv"}) - IMAGE_SUFFIXES
SPREADSHEETS = frozenset({".xlsx", ".xls", ".ods", ".numbers"})
DOCUMENTS = frozenset({".csv", ".tsv", ".json", ".xml"})  # what image-level labels come in
READABLE = IMAGE_SUFFIXES | DOCUMENTS
# Folders of a data root that hold pictures, but no photos.
RESERVED = frozenset({"SegmentationClass", "SegmentationObject", "SegmentationClassAug",
                      "saliency_map", "localization_maps", "refined_pseudo_segmentation_labels"})
NOT_SUPPORTED, NOT_A_FILE = "format not supported; convert it to JPEG", "no regular file"
NO_TABLE = "save it as CSV, if it says what is in the images"
MAX_ID_BYTES = 200  # a file name has 255, of which a temporary name needs some
MAX_PARTS = 32  # folders in a name that is looked up


class Files(Mapping[str, Path]):
    """Image id -> file. Kept as text: to make and to hold a million paths takes a while."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def add(self, image_id: str, place: str) -> str:
        """Take in a file, unless the id has one already; the file that it has."""
        return self._places.setdefault(image_id, place)

    def __getitem__(self, image_id: str) -> Path:
        return Path(self._places[image_id])

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Pictures:
    """What was found in one folder or several.

    Args:
        places: folders, looked into with their subfolders, or single files. Hidden files and
            folders are left out, and the folders in RESERVED.

    Attributes:
        by_id: image id -> file, in the order of the paths.
        skipped: file -> why it is not read; only what has the name of a photo, video or
            spreadsheet.
        documents: the other files that may say what is in the images.
        clashes: a message for each file whose id another one has already.
        where: the places, for messages.

    Raises:
        UserError: a folder cannot be read.
    """

    def __init__(self, *places: Path) -> None:
        self.by_id = Files()
        self.skipped: dict[Path, str] = {}
        self.documents: list[Path] = []
        self.clashes: list[str] = []
        self.where = some(places)
        self._relative: dict[str, str] = {}
        for place in places:
            if place.is_dir():
                for path, relative in files_below(place):
                    self._add(path, relative, os.path.splitext(relative)[1].lower())
            else:  # what is asked for by name may be called anything
                suffix = place.suffix.lower()
                self._add(str(place), place.name, suffix if suffix in UNSUPPORTED else ".jpg")

    def _add(self, path: str, relative: str, suffix: str) -> None:
        if suffix in UNSUPPORTED:
            self.skipped[Path(path)] = NOT_SUPPORTED
        elif suffix in SPREADSHEETS:
            self.skipped[Path(path)] = NO_TABLE
        elif suffix in READABLE and not os.path.isfile(path):
            self.skipped[Path(path)] = NOT_A_FILE
        elif suffix in DOCUMENTS:
            self.documents.append(Path(path))
        elif suffix in IMAGE_SUFFIXES:
            name = make_id(relative)
            first = self.by_id.add(name, path)
            self._relative.setdefault(name, relative)
            if first != path:
                self.clashes.append(f"{Path(path)} and {Path(first).name}: two images of one name")

    def find(self, name: str) -> str | None:
        """The id of the image that somebody else calls `name`; None: there is none.

        It may be the id, the name alone, the path below the folder, or one that ends in this path;
        with or without a suffix, with backslashes, accents composed or apart (a file name from
        macOS often has them apart, a list has not).

        Raises:
            UserError: several images, in different folders, have this name.
        """
        parts = [part for part in nfc(name).replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(max(0, len(parts) - MAX_PARTS), len(parts)):
            tail = "/".join(parts[start:])
            for candidate in (tail, without_suffix(tail)):
                if candidate in self._paths:
                    return self._paths[candidate]
        if len(parts) != 1:
            return None
        called = {found for candidate in (parts[0], without_suffix(parts[0]))
                  for found in self._bare.get(candidate, ())}
        if len(called) > 1:
            raise UserError(f"several images are called {parts[0]!r} ({some(sorted(called))}): "
                            "write their folder before the name")
        return next(iter(called), None)

    @cached_property
    def spaced(self) -> bool:
        """Whether a comma or white space is in the name of any image or folder."""
        return any(re.search(r"[\s,]", relative) for relative in self._relative.values())

    @cached_property
    def _paths(self) -> dict[str, str]:
        """Paths with and without suffix, and ids, -> ids."""
        paths: dict[str, str] = {}
        for image_id, relative in self._relative.items():
            whole = nfc(relative)
            paths[whole] = paths[without_suffix(whole)] = image_id
        paths.update((nfc(image_id), image_id) for image_id in self.by_id)
        return paths

    @cached_property
    def _bare(self) -> dict[str, tuple[str, ...]]:
        """Names without folder, of images in folders -> ids, two at most."""
        names: dict[str, tuple[str, ...]] = {}
        for image_id, relative in self._relative.items():
            base = nfc(relative).rpartition("/")[2]
            if base != relative:
                for name in {base, without_suffix(base)}:
                    names[name] = (*names.get(name, ()), image_id)[:2]
        return names

    @property
    def passed_over(self) -> str:
        """A sentence on the files in `skipped`; empty: there are none."""
        skipped = [f"{path.name}: {why}" for path, why in self.skipped.items()]
        return f"{count(len(skipped), 'file')} passed over; {some(skipped)}" if skipped else ""

    def holds(self, folder: str) -> bool:
        """Whether there are images in a folder, given as a path below its place, or below it."""
        return folder in self._folders

    @cached_property
    def _folders(self) -> set[str]:
        return {parent.as_posix() for folder in
                {PurePosixPath(relative).parent for relative in self._relative.values()}
                for parent in (folder, *folder.parents)}

    def why_not(self, name: str) -> str | None:
        """Why the file called `name` is no image here; None: there is no such file."""
        base = nfc(name).replace("\\", "/").rpartition("/")[2]
        path = self._skipped_names.get(base) or self._skipped_names.get(without_suffix(base))
        return f"{path.name}: {self.skipped[path]}" if path else None

    @cached_property
    def _skipped_names(self) -> dict[str, Path]:
        return {nfc(name): path for path in self.skipped for name in (path.stem, path.name)}


def find_pictures(source: Path) -> Pictures:
    """The image `source`, or those in the folder `source`, for a command that takes any.

    Raises:
        UserError: there are none, or two would have one id.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    found = Pictures(source)
    if not found.by_id:
        first = next((f"{path.name}: {why}" for path, why in found.skipped.items()), "")
        raise UserError(f"{source}: no image there ({', '.join(sorted(IMAGE_SUFFIXES))})"
                        + (f"; {first}" + (f" (and {len(found.skipped) - 1} more)"
                                           if len(found.skipped) > 1 else "") if first else ""))
    if found.clashes:
        raise UserError(f"{found.clashes[0]} (both would become one file)")
    return found


def files_below(folder: Path) -> Iterator[tuple[str, str]]:
    """The files in a folder and its subfolders, each with its path below the folder, with forward
    slashes; sorted; each folder once, links included.

    Raises:
        UserError: a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    start = len(os.path.join(folder, ""))
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above, or to its sister
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders
                            if not name.startswith(".") and name not in RESERVED)
        below = os.path.join(place[start:], "").replace(os.sep, "/")
        yield from ((os.path.join(place, name), below + name) for name in sorted(files)
                    if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def make_id(relative: str) -> str:
    """The id of the image at a path relative to its folder, with forward slashes.

    What no file name should hold becomes "_", what is too long is cut; such an id ends in eight
    digits of the path's hash, so that it stays unique.
    """
    plain = without_suffix(relative).replace("/", "__")
    clean = plain if plain.isascii() and plain.isprintable() else printable(plain)
    data = clean.encode()
    if clean == plain and len(data) <= MAX_ID_BYTES:
        return plain
    digest = hashlib.blake2b(os.fsencode(relative), digest_size=4).hexdigest()
    return data[-MAX_ID_BYTES + 2 * len(digest):].decode(errors="ignore") + f"~{digest}"


def printable(text: str) -> str:
    """The text with "_" for control characters, line breaks and bytes that are no UTF-8."""
    return "".join("_" if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char
                   for char in text)


def without_suffix(name: str) -> str:
    """The name without the suffix of an image, if it has one."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot + suffix.lower() in IMAGE_SUFFIXES else name


def nfc(text: str) -> str:
    """The text with letters and accents composed: equal for names that look equal."""
    return unicodedata.normalize("NFC", text)


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: 1 file, 2,000 files."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def some(items: Sequence[object], show: int = 3) -> str:
    """The first of the items, and how many there are besides."""
    return ", ".join(map(str, items[:show])) + (
        f" and {len(items) - show:,} more" if len(items) > show else "")
