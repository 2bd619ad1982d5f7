"""Image-level labels in tables: CSV and TSV files, and Label Studio's exports.

In: a table with a header that has a column for the image and one for its classes; several classes
in a cell are separated by ";" or ",", or are the JSON that Label Studio writes. Out: a `Source`.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from datasets.lists import NO_CLASS
from datasets.pictures import count, printable
from datasets.source import Source
from utils.files import UserError, read_text

MAX_TABLE_BYTES = 1 << 27
# Names of columns, in lower case; the first that is there counts.
IMAGE_COLUMNS = ("image", "image_path", "filename", "file_name", "file", "path", "filepath",
                 "image_name", "img", "photo", "picture", "name")
LABEL_COLUMNS = ("labels", "label", "classes", "class", "choices", "choice", "categories",
                 "category", "tags", "tag")
# What Label Studio writes besides: not the classes, though they may be called by any name.
OTHER_COLUMNS = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time",
                 "was_cancelled", "agreement"}
UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")  # before the names of files uploaded to Label Studio
DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
Row = Mapping[str, Any]


def read_table(path: Path, source: Source) -> list[str]:
    """Add the labels in a CSV or TSV file to `source`; returns the ids of its images.

    Raises:
        UserError: no text, a missing column, an unknown image or class; with the line.
    """
    text = read_text(path, MAX_TABLE_BYTES)
    delimiter, header = _header(path, text)
    image, label = columns(header, str(path))
    return add_rows(_rows(path, text, delimiter, header), image, label, source)


def is_table(path: Path) -> str | None:
    """None if a CSV or TSV file has the columns of a table of labels, else what it lacks.

    Raises:
        UserError: it cannot be read.
    """
    _, header = _header(path, read_text(path, MAX_TABLE_BYTES))
    try:
        columns(header, str(path))
    except UserError as error:
        return str(error)
    return None


def columns(names: Iterable[str], where: str) -> tuple[str, str]:
    """The names of the columns of the image and of its classes.

    Raises:
        UserError: one of them is missing.
    """
    by_lower = {name.strip().lower(): name for name in names}
    listed = printable(", ".join(by_lower))[:200]
    if not listed:
        raise UserError(f"{where}: is empty")
    image = next((by_lower[name] for name in IMAGE_COLUMNS if name in by_lower), None)
    if image is None:
        raise UserError(f"{where}: no column for the image (called {', '.join(IMAGE_COLUMNS[:5])} "
                        f"or the like) among {listed}")
    label = next((by_lower[name] for name in LABEL_COLUMNS if name in by_lower), None)
    others = [name for lower, name in by_lower.items()
              if name != image and lower and lower not in OTHER_COLUMNS]
    if label is None and len(others) == 1:
        label = others[0]
    if label is None:
        raise UserError(f"{where}: no column for the classes (called {', '.join(LABEL_COLUMNS[:4])}"
                        f" or the like) among {listed}")
    return image, label


def add_rows(rows: Iterable[tuple[str, Row]], image: str, label: str, source: Source) -> list[str]:
    """Add rows, each with where it stands, to `source`; returns the ids of the images."""
    ids: dict[str, None] = {}
    unlabelled = 0
    for where, row in rows:
        image_id = find_image(row.get(image), where, source)
        names = class_names(row.get(label), where, source.known or ())
        if names is None:
            unlabelled += 1
        else:
            ids[image_id] = None
            source.add(image_id, names, where)
    if unlabelled:
        source.notes.append(f"{count(unlabelled, 'row')} without a class ({NO_CLASS} would say "
                            "that the image shows none of them)")
    return list(ids)


def find_image(name: object, where: str, source: Source) -> str:
    """The id of an image that a table calls by name, path or the address it has in Label Studio.

    Raises:
        UserError: there is none.
    """
    if isinstance(name, str) and source.pictures.find(name) is None:
        parts = urlsplit(name) if "://" in name or name.startswith("/data/") else None
        local = unquote(parse_qs(parts.query).get("d", [parts.path])[0]) if parts else name
        folder, slash, base = local.rpartition("/")
        for candidate in (local, folder + slash + UPLOAD_PREFIX.sub("", base, count=1)):
            if source.pictures.find(candidate) is not None:
                return source.find(candidate, where)
    return source.find(name, where)


def class_names(value: object, where: str, known: Iterable[str]) -> list[object] | None:
    """The class names in a cell, or None if it is empty.

    Args:
        known: classes whose names may hold separators; a cell that is one of them is one name.

    Raises:
        UserError: it is neither text nor the JSON that Label Studio writes.
    """
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith(("{", "[")):
            if text == NO_CLASS:
                return []
            names: list[object] = [text] if text in known else [
                part.strip() for part in re.split("[;,]", text) if part.strip()]
            return names or None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: {text[:80]!r} is neither class names nor JSON") from error
    return list(choices(value)) or None


def choices(value: object) -> Iterator[object]:
    """The names in what Label Studio keeps of one answer: text, a list, {"choices": [...]},
    regions with {"rectanglelabels": [...]} and the like."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "choices" or key.endswith("labels"):
                yield from choices(inner)
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, list):  # no export nests lists: refused as a name
                yield inner
            else:
                yield from choices(inner)
    elif value is not None:
        yield value


def _header(path: Path, text: str) -> tuple[str, list[str]]:
    """The delimiter that makes the most of the first line, and the columns that it names."""
    best = max(DELIMITERS[path.suffix.lower()], key=lambda char: len(_first(text, char)))
    return best, _first(text, best)


def _first(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    except csv.Error:
        return []


def _rows(path: Path, text: str, delimiter: str, header: Sequence[str]
          ) -> Iterator[tuple[str, Row]]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        next(reader)
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise UserError(f"{where}: {len(cells)} cells, but {len(header)} columns "
                                '(several classes of an image: "cat;dog" in one cell)')
            yield where, {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
