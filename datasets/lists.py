"""Image lists: text files with an image a line, optionally followed by its classes.

In: a file from a stranger. Out: an `Entry` for each line, or the error that says what is wrong
there. The official lists (`2007_000032 0 14`) are of this format.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.pictures import Pictures, nfc, some
from utils.files import UserError, read_text

NO_CLASS = "-"  # in a list or table: none of the classes is in the image
MAX_LIST_BYTES = 1 << 27
MAX_LINE = 1 << 16  # characters: room for 254 classes with names of 250
MAX_NAME = 1 << 10  # characters of a line that may be the name of an image


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a list.

    Attributes:
        id: of the image, see `datasets.pictures`.
        labels: 0-based classes present, ascending; None where they were not asked for.
    """

    id: str
    labels: tuple[int, ...] | None


def read_list(path: Path, pictures: Pictures, classes: Mapping[str, int]
              ) -> Iterator[Entry | UserError]:
    """The lines of a list: each as its entry, or as the error that says what is wrong there.

    Args:
        classes: name in composed form -> index.

    Raises:
        UserError: the file cannot be read.
    """
    seen: set[str] = set()
    for number, line in enumerate(read_text(path, MAX_LIST_BYTES).splitlines(), start=1):
        if line and not line.isspace():
            try:
                yield read_line(line, f"{path}, line {number}", pictures, classes, seen)
            except UserError as error:
                yield error


def read_line(line: str, where: str, pictures: Pictures, classes: Mapping[str, int],
              seen: set[str]) -> Entry:
    """The entry of a line; adds its id to `seen`.

    Names may hold spaces: the longest beginning of the line that names an image is the name.
    Spaces, commas or tabs separate the classes, commas or tabs those whose names hold spaces.

    Raises:
        UserError: no image, an image seen before, an unknown class.
    """
    if len(line) > MAX_LINE:
        raise UserError(f"{where}: has {len(line):,} characters; a line is the name of one image "
                        "and its classes")
    line = line.strip()
    ends = [match.start() for match in re.finditer(r"[\s,]+", line[:MAX_NAME])]
    ends.append(min(len(line), MAX_NAME))
    if not pictures.spaced and "/" not in line and "\\" not in line:
        ends = ends[:1]  # no longer beginning can be a name
    for end in reversed(ends):
        try:
            image_id = pictures.find(line[:end])
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if image_id is not None:
            break
    else:
        raise UserError(f"{where}: {no_image(line, pictures)}")
    if image_id in seen:
        raise UserError(f"{where}: {image_id} is listed twice")
    seen.add(image_id)
    words: list[str] = []
    for part in re.split(r"[\t,]", line[end:]):
        words += [part.strip()] if nfc(part.strip()) in classes else part.split()
    if words == [NO_CLASS]:
        return Entry(image_id, ())
    labels = {class_index(word, classes, where) for word in words}
    return Entry(image_id, tuple(sorted(labels)) if words else None)


def no_image(text: str, pictures: Pictures) -> str:
    """Why no image is called like the beginning of a text."""
    words = text[:MAX_NAME].split()
    for end in range(len(words), 0, -1):
        why = pictures.why_not(" ".join(words[:end]).rstrip(","))
        if why is not None:
            return why
    return f"names no image in {pictures.where}: {text[:80]!r}"


def class_index(word: str, classes: Mapping[str, int], where: str) -> int:
    """The index of a class given by name or by 0-based index.

    Raises:
        UserError: it is neither; the message begins with `where`.
    """
    index = classes.get(nfc(word))
    if index is not None:
        return index
    try:
        index = int(word)
    except ValueError:
        raise UserError(f"{where}: {word[:80]!r} is neither a class index nor one of the classes "
                        f"({some(list(classes), 5)})") from None
    if not 0 <= index < len(classes):
        raise UserError(f"{where}: class index {word[:20]}, but there are {len(classes)} classes "
                        f"(0 to {len(classes) - 1})")
    return index


def split(entries: Sequence[Entry], share: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Divide images into those to train on and those held out.

    An image's place is drawn by its id and the seed, so that more images later hardly move the
    others. No class loses its last image, so that fewer may be held out than asked for.

    Args:
        share: of the images to hold out, from 0 to 1.

    Returns:
        The two parts, each in the order of `entries`.
    """
    left = Counter(label for entry in entries for label in entry.labels or ())
    held: set[str] = set()

    def draw(entry: Entry) -> bytes:
        return hashlib.blake2b(f"{seed}/{entry.id}".encode(errors="surrogateescape"),
                               digest_size=8).digest()

    for entry in sorted(entries, key=draw):
        if len(held) >= round(share * len(entries)) or len(held) >= len(entries) - 1:
            break
        if all(left[label] > 1 for label in entry.labels or ()):
            held.add(entry.id)
            left.subtract(entry.labels or ())
    return ([entry for entry in entries if entry.id not in held],
            [entry for entry in entries if entry.id in held])
