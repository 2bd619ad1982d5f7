"""Image-level labels in JSON files: COCO, LabelMe, Label Studio.

In: JSON files that somebody put among the images, told apart by what is in them. Out: a `Source`.
Nothing of a segmentation is kept here, so that COCO's own files take little memory.
"""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from datasets.lists import no_image
from datasets.pictures import Pictures
from datasets.records import Record, records
from datasets.source import Source
from datasets.tables import add_rows, columns
from utils.files import UserError

COCO, LABELME, LABEL_STUDIO = "COCO", "LabelMe", "Label Studio"
Id = int | str


@dataclass
class Document:
    """What a JSON file says about images, as far as labels need it.

    Attributes:
        kind: COCO, LABELME, LABEL_STUDIO or None.
        images: COCO's image ids -> file names.
        categories: COCO's category ids -> names.
        present: COCO's image ids -> category ids of their annotations; equal ones are one object.
        names: LabelMe's shapes and flags.
        image: LabelMe's image.
        rows: Label Studio's tasks.
        problem: the first record that is not as its kind demands.
    """

    path: Path
    kind: str | None = None
    images: dict[Id, str] = field(default_factory=dict)
    categories: dict[Id, str] = field(default_factory=dict)
    present: dict[Id, frozenset[Id]] = field(default_factory=dict)
    shared: dict[frozenset[Id], frozenset[Id]] = field(default_factory=dict)
    names: list[object] = field(default_factory=list)
    image: object = None
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    problem: str | None = None

    def complain(self, record: Record, why: str) -> None:
        """Keep the first complaint about a record."""
        place = f"{record.key or 'entry'}[{record.index}]" if record.index >= 0 else record.key
        self.problem = self.problem or f"{self.path}, {place}: {why}"


def read_document(path: Path) -> Document:
    """Read a JSON file of any of the three kinds.

    Raises:
        UserError: no JSON; or of one of the kinds, but wrong within.
    """
    document, keys = Document(path), set()
    for record in records(path):
        keys.add(record.key)
        _take(document, record)
    if "images" in keys and keys & {"annotations", "categories"}:
        document.kind = COCO
    elif "imagePath" in keys and keys & {"shapes", "flags"}:
        document.kind = LABELME
    elif keys == {""} and document.rows:
        document.kind = LABEL_STUDIO
    if document.kind and document.problem:
        raise UserError(document.problem)
    return document


def _take(document: Document, record: Record) -> None:
    """Keep what labels need of one record."""
    value = record.value
    fields = value if isinstance(value, Mapping) else {}
    match record.key:
        case "images":
            image_id, name = fields.get("id"), fields.get("file_name")
            if not is_id(image_id) or not isinstance(name, str):
                document.complain(record, "needs an id and a file_name")
            elif image_id in document.images:
                document.complain(record, f"another image has the id {str(image_id)[:40]}")
            else:
                document.images[image_id] = name
        case "categories":
            category, name = fields.get("id"), fields.get("name")
            if not is_id(category) or not isinstance(name, str):
                document.complain(record, "needs an id and a name")
            elif category in document.categories:
                document.complain(record, f"another category has the id {str(category)[:40]}")
            else:
                document.categories[category] = name
        case "annotations":
            image_id, category = fields.get("image_id"), fields.get("category_id")
            if is_id(image_id) and is_id(category):
                before = document.present.get(image_id, frozenset())
                if category not in before:
                    both = before | {category}
                    document.present[image_id] = document.shared.setdefault(both, both)
            else:
                document.complain(record, "needs an image_id and a category_id")
        case "shapes":
            document.names.append(fields.get("label"))
        case "flags":
            document.names += [name for name, set_ in fields.items() if set_ is True]
        case "imagePath":
            document.image = value
        case "":
            if isinstance(value, Mapping):
                document.rows.append(_task(value))
            else:
                document.complain(record, "is no object")


def _task(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """A task of Label Studio's full export as it would stand in the short one (JSON-MIN)."""
    data, answers = task.get("data"), task.get("annotations")
    if not isinstance(data, Mapping) or not isinstance(answers, list):
        return task
    given = [answer for answer in answers
             if isinstance(answer, Mapping) and not answer.get("was_cancelled")]
    regions = given[-1].get("result") if given else []
    return {**data, "choice": [region.get("value") for region in regions
                               if isinstance(region, Mapping)] if isinstance(regions, list) else []}


def is_id(value: object) -> TypeGuard[int | str]:
    """Whether a value may be an id in a COCO file."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def add_documents(documents: Sequence[Document], root: Path, source: Source
                  ) -> dict[Path, list[str]]:
    """Add documents of one kind to `source`; returns the ids of the images of each.

    Raises:
        UserError: a name of an image or class that is none, with the place.
    """
    add = {COCO: _add_coco, LABELME: _add_labelme, LABEL_STUDIO: _add_label_studio}
    made = {document.path: add[str(document.kind)](document, root, source)
            for document in documents}
    if documents[0].kind == COCO:
        source.coco = list(made)
    if documents[0].kind == COCO and source.known is None:
        # By id, as in the papers; two files may number the same names differently.
        order = {name: category for document in reversed(documents)
                 for category, name in document.categories.items()}
        source.order = [source.name(name, source.found) for name in sorted(
            order, key=lambda name: (isinstance(order[name], str), order[name], name))]
        if len(set(source.order)) < len(source.order):
            raise UserError(f"{source.found}: two categories of one name")
    return made


def _add_coco(document: Document, root: Path, source: Source) -> list[str]:
    ids, missing = {}, []
    for place, (image_id, name) in enumerate(document.images.items()):
        try:
            ids[image_id] = _find(name, document, root, source, f", images[{place}]")
        except UserError as error:
            missing.append(str(error))
    if missing and not ids:
        raise UserError(f"{missing[0]}" + (f" (and {len(missing) - 1:,} more; none is there)"
                                           if missing[1:] else ""))
    if missing:
        source.notes.append(f"{len(missing):,} images of {document.path} are not there "
                            f"({missing[0]})")
    for image_id, categories in document.present.items():
        if image_id not in document.images:
            raise UserError(f"{document.path}, annotations: image_id {str(image_id)[:40]} is no "
                            "image's id")
        for category in categories - document.categories.keys():
            raise UserError(f"{document.path}, annotations: category_id {str(category)[:40]} is no "
                            "category's id")
        if image_id in ids:
            source.add(ids[image_id], [document.categories[category] for category in categories],
                       f"{document.path}, categories")
    for found in ids.values():
        source.add(found, (), "")
    return list(ids.values())


def _add_labelme(document: Document, root: Path, source: Source) -> list[str]:
    if not isinstance(document.image, str):
        raise UserError(f"{document.path}, imagePath: names no image")
    try:
        image_id = _find(document.image, document, root, source, ", imagePath")
    except UserError:  # renamed together with its photo, LabelMe's file keeps the old name
        found = source.pictures.find(_normal(document.path.stem, _folder(document.path, root)))
        if found is None:
            raise
        image_id = found
    if not document.names:
        return []
    source.add(image_id, document.names, str(document.path))
    return [image_id]


def _add_label_studio(document: Document, root: Path, source: Source) -> list[str]:
    def rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for place, row in enumerate(document.rows):
            yield f"{document.path}, entry {place}", row

    return add_rows(rows(), *task_columns(document), source)


def task_columns(document: Document) -> tuple[str, str]:
    """What the image and its classes are called in Label Studio's tasks.

    Raises:
        UserError: there is no such name: the JSON is of something else.
    """
    return columns(dict.fromkeys(name for row in document.rows for name in row),
                   str(document.path))


def _folder(document: Path, root: Path) -> str:
    return document.parent.relative_to(root).as_posix()


def find_beside(name: str, document: Path, root: Path, pictures: Pictures) -> str | None:
    """The id of the image that a document calls `name`: as seen from the document's folder or,
    where that holds no images, by what it is called in the whole data root.

    Raises:
        UserError: several images are called so.
    """
    seen_from = _folder(document, root)
    found = pictures.find(_normal(name, seen_from))
    return found if found or pictures.holds(seen_from) else pictures.find(_normal(name, "."))


def _find(name: str, document: Document, root: Path, source: Source, place: str) -> str:
    where = f"{document.path}{place}"
    try:
        found = find_beside(name, document.path, root, source.pictures)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if found is None:
        raise UserError(f"{where}: {no_image(name, source.pictures)}")
    return found


def _normal(name: str, folder: str) -> str:
    """A path as seen from the data root: LabelMe writes "..\\images\\cat.jpg"."""
    path = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
    return str(PurePosixPath(*(part for part in PurePosixPath(path).parts if part != "..")))
