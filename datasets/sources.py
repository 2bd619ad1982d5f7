"""Finds out what says which classes are in the images of a folder, and reads it.

In: a data root without an image list of its own. Out: a `Source`; the first of these that is there:
a table (CSV, TSV) in the root; COCO JSON; Label Studio's JSON; LabelMe's JSON files; VOC's XML
files; one subfolder per class. Nothing is written.
"""

import hashlib
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets.documents import (
    COCO,
    LABEL_STUDIO,
    LABELME,
    Document,
    add_documents,
    read_document,
    task_columns,
)
from datasets.lists import NO_CLASS
from datasets.pictures import RESERVED, Pictures, count, nfc, some
from datasets.source import NotThere, Source, list_name
from datasets.tables import is_table, read_table
from utils.files import UserError, open_regular, read_text

XML_LIMIT = 1 << 20  # bytes; VOC's annotations have a few thousand
NO_CLASSES = RESERVED | {"Annotations", "annotations", "ImageSets"}  # folders of other things


@dataclass(frozen=True)
class Place:
    """Where is looked for a source.

    Attributes:
        root: the data root.
        pictures: its images.
        documents: tables, JSON and XML files that may tell about them.
        known: the classes of classes.txt; None: there is no such file.
        passed: grows by what might have been a source, and why it is none.
    """

    root: Path
    pictures: Pictures
    documents: Sequence[Path]
    known: Sequence[str] | None
    passed: list[str] = field(default_factory=list)

    def source(self, found: str) -> Source:
        """A source that has told nothing yet."""
        return Source(found, self.pictures, self.known)

    def files(self, *suffixes: str) -> list[Path]:
        """The documents with one of these suffixes."""
        return [path for path in self.documents if path.suffix.lower() in suffixes]


def find_source(place: Place) -> Source:
    """The image-level labels of a folder.

    Raises:
        NotThere: nothing says what is in the images.
        UserError: what does is wrong within.
    """
    for search in (_tables, _documents, _annotations, _subfolders):
        source = search(place)
        if source is not None:
            source.notes += place.passed
            return source
    why = "; ".join(place.passed + [place.pictures.passed_over] * bool(place.pictures.skipped))
    raise NotThere(f"{place.root}: nothing says which classes are in the images" + (
        f": {why} (docs/own_data.md)" if why else
        "; make one subfolder for each class, or labels.csv with a line 'image,labels' and lines "
        "like 'IMG_1.jpg,cat;dog' (docs/own_data.md has more)"))


def coco_layout(root: Path) -> dict[Path, Path]:
    """annotations/instances_NAME.json -> its folder of images, NAME or images/NAME, of a root laid
    out as COCO's; empty: it is not."""
    found: dict[Path, Path] = {}
    for path in sorted(root.glob("annotations/instances_*.json")):
        name = path.stem.removeprefix("instances_")
        for folder in (root / name, root / "images" / name):
            if folder.is_dir():
                found.setdefault(path, folder)
    return found


def object_names(path: Path) -> list[str]:
    """The names of the objects in a VOC annotation.

    Raises:
        UserError: unreadable, too large, malformed XML, or with a document type.
    """
    text = read_text(path, XML_LIMIT)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path}: document type declarations are not accepted")
    try:
        return [nfc((node.findtext("name") or "").strip())
                for node in ET.fromstring(text).iter("object")]
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed XML ({error})") from error


def annotated_classes(path: Path, classes: Mapping[str, int]) -> tuple[int, ...]:
    """The classes of the objects in a VOC annotation, as ascending indices.

    Args:
        classes: name in composed form -> index.

    Raises:
        UserError: malformed XML, or an object of an unknown class.
    """
    names = object_names(path)
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UserError(f"{path}: unknown class {unknown[0][:80]!r} (the classes are "
                        f"{some(list(classes), 5)})")
    return tuple(sorted({classes[name] for name in names}))


def _tables(place: Place) -> Source | None:
    tables = []
    for path in place.files(".csv", ".tsv"):
        if path.parent == place.root:
            lacks = is_table(path)
            place.passed.extend([lacks] if lacks else [])
            tables += [] if lacks else [path]
    if not tables:
        return None
    source = place.source(f"table {some([path.name for path in tables])}")
    _divide(source, place, {path: read_table(path, source) for path in tables})
    return source


def _documents(place: Place) -> Source | None:
    documents = [read_document(path) for path in place.files(".json")]
    for document in documents:
        if document.kind == LABEL_STUDIO and (lacks := _lacks(document)):
            place.passed.append(lacks)
            documents = [other for other in documents if other is not document]
    for kind in (COCO, LABEL_STUDIO, LABELME):
        chosen = [document for document in documents if document.kind == kind]
        if chosen:
            files = some([document.path.name for document in chosen])
            source = place.source(f"{kind} file{'s' if chosen[1:] else ''} {files}")
            _divide(source, place, add_documents(chosen, place.root, source))
            if kind == COCO:  # what nobody annotated can be scored, but teaches nothing
                ids = source.lists["train_aug"]
                source.lists["train_aug"] = [name for name in ids if source.labels[name]]
                bare = len(ids) - len(source.lists["train_aug"])
                source.notes += [f"{count(bare, 'image')} without annotation"] if bare else []
            return source
    others = [document.path for document in documents]
    if others:
        place.passed.append(f"{some(others)}: neither COCO nor LabelMe nor Label Studio")
    return None


def _lacks(document: Document) -> str:
    """Why a list of objects is no export of Label Studio; empty: it is one."""
    try:
        task_columns(document)
    except UserError as error:
        return str(error)
    return ""


def _annotations(place: Place) -> Source | None:
    files = place.files(".xml")
    source = place.source(f"{len(files):,} XML files")
    strange = []
    for path in files:
        names = object_names(path)
        within = path.relative_to(place.root).with_suffix("").as_posix()
        image_id = place.pictures.find(within) or place.pictures.find(path.stem)
        if image_id is None:
            strange.append(path)
        elif names:
            source.add(image_id, names, str(path))
    if strange:
        place.passed.append(f"{some(strange)}: of no image")
    return source if source.labels else None


def _subfolders(place: Place) -> Source | None:
    pictures, root = place.pictures, place.root
    parts = {image_id: path.relative_to(root).parts for image_id, path in pictures.by_id.items()}
    tops = {folders[0] for folders in parts.values() if len(folders) > 1}
    depth = 1 if tops and all(map(list_name, tops)) else 0  # train/cat/1.jpg
    by_class: dict[str, list[str]] = defaultdict(list)
    for image_id, folders in parts.items():
        if len(folders) > depth + 1:
            by_class[nfc(folders[depth])].append(image_id)
    if len(by_class) < 2:
        place.passed.extend(f"{root / name}: one subfolder alone tells no classes apart; put "
                            f"photos without it into a subfolder called {NO_CLASS}"
                            for name in by_class)
        return None
    source = place.source(f"{len(by_class)} subfolders")
    strange = [] if place.known is None else sorted(by_class.keys() - {*place.known, NO_CLASS})
    by_class = {name: ids for name, ids in by_class.items() if name not in strange}
    original = _first_of_each({pictures.by_id[image_id]: image_id for ids in by_class.values()
                               for image_id in ids})
    for name, ids in by_class.items():
        for image_id in ids:
            source.add(original[image_id], () if name == NO_CLASS else (name,),
                       str(pictures.by_id[image_id]))
    loose = sum(len(folders) <= depth + 1 for folders in parts.values())
    copies = sum(image_id != first for image_id, first in original.items())
    empty = sorted(path.name for path in root.iterdir() if path.is_dir() and not (
        path.name.startswith(".") or path.name in NO_CLASSES or pictures.holds(path.name)))
    source.notes += [note for there, note in (
        (strange, f"subfolders that classes.txt does not name: {some(strange)}"),
        (empty, f"subfolders without images: {some(empty)}"),
        (loose, f"{count(loose, 'image')} in no subfolder"),
        (copies, f"{count(copies, 'copy of another image', 'copies of other images')} (an image "
                 "counts once, with the classes of all its copies)")) if there]
    if depth:
        _divide(source, place, {root / top: [image_id for image_id in source.labels
                                             if parts[image_id][0] == top] for top in sorted(tops)})
    return source


def _divide(source: Source, place: Place, parts: dict[Path, list[str]]) -> None:
    """Make lists of the images of files or folders; those called train or val, or in a folder
    called so, become such lists."""
    called = {path: next(filter(None, map(list_name, reversed(path.relative_to(place.root).parts))),
                         None) for path in parts}
    if "train_aug" not in called.values():
        called = dict.fromkeys(parts, "train_aug")
    for name in ("train_aug", "val"):
        ids = [image_id for path in parts if called[path] == name for image_id in parts[path]]
        if ids:
            source.lists[name] = list(dict.fromkeys(ids))
    left = [path for path in parts if parts[path] and called[path] not in source.lists]
    if left:
        source.notes.append(f"neither for training nor for validation: {some(left)}")


def _first_of_each(images: Mapping[Path, str]) -> dict[str, str]:
    """Id -> the id of the first image with the same bytes."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(images):
        by_size[path.stat().st_size].append(path)
    first: dict[str, str] = {}
    for group in by_size.values():
        seen: dict[bytes, str] = {}
        for path in group:
            first[images[path]] = seen.setdefault(file_digest(path), images[path]) if group[1:] \
                else images[path]
    return first


def file_digest(path: Path) -> bytes:
    """A digest of a file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.digest()
