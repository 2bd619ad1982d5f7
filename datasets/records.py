"""JSON files of any size, read record by record, in memory that does not grow with the file.

In: a file from a stranger. Out: `Record`s: the elements of its lists one by one, its other values
whole. What is no JSON, nested without end or has numbers of thousands of digits is a `UserError`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from utils.files import UserError, open_regular

CHUNK = 1 << 20  # bytes read at once
MAX_RECORD = 1 << 26  # bytes: LabelMe keeps whole photos in a string
BLANKS = " \t\r\n"
BOM = "\xef\xbb\xbf"  # of UTF-8, seen as Latin-1


class Record(NamedTuple):
    """A value in a JSON file.

    Attributes:
        key: of the file's object under which it stands; "" if the file is a list.
        index: its place in the list under that key, -1: it is in no list.
        value: as `json` gives it.
        start, end: the bytes of the file that hold it.
    """

    key: str
    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    value: Any
    start: int
    end: int


def records(path: Path) -> Iterator[Record]:
    """The elements of the lists in a JSON file, and its values that are no lists.

    A file that is a list is as an object with this list under the key "".

    Raises:
        UserError: it cannot be read, or is neither an object nor a list.
    """
    try:
        with open_regular(path) as file:
            yield from _records(_Text(file))
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no JSON that can be read "
                        f"({getattr(error, 'strerror', None) or error})") from error


def read_at(file: BinaryIO, start: int, end: int) -> Any:
    """The value between two bytes of a JSON file, as a `Record` of it tells."""
    file.seek(start)
    return json.loads(file.read(end - start))


class _Text:
    """The file as text of Latin-1 characters, one a byte: what lies between the strings is ASCII,
    and places in it are places in the file. Only as much of it as needed is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.text, self.at, self.before, self.ended = file, "", 0, 0, False
        self.decoder = json.JSONDecoder(parse_constant=_refuse)

    @property
    def place(self) -> int:
        """Bytes of the file before this point."""
        return self.before + self.at

    def more(self, size: int) -> None:
        """Append the next bytes; forget what lies before this point."""
        data = self.file.read(size)
        self.ended = not data
        self.text = self.text[self.at:] + data.decode("latin-1")
        self.before, self.at = self.place, 0

    def peek(self) -> str:
        """The next character that is not blank, "" at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in BLANKS:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more(CHUNK)

    def take(self, expected: str) -> str:
        """Step over one of the `expected` characters; returns it."""
        char = self.peek()
        if not char or char not in expected:
            raise ValueError(f"{char or 'the end'!r} instead of {' or '.join(expected)} at byte "
                             f"{self.place:,}")
        self.at += 1
        return char

    def value(self) -> tuple[Any, int, int]:
        """The value that begins here, and its bytes from and to."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:  # else it may go on: 12 and then 3
                    break
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) - self.at > MAX_RECORD:
                    raise ValueError(f"{error.msg} at byte {self.before + error.pos:,}") from None
            self.more(max(CHUNK, len(self.text) - self.at))
        raw, start = self.text[self.at:end], self.place
        self.at = end
        if not raw.isascii():  # strings were read as Latin-1
            value = json.loads(raw.encode("latin-1"), parse_constant=_refuse)
        return value, start, start + len(raw)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _records(text: _Text) -> Iterator[Record]:
    text.peek()
    if text.text.startswith(BOM):
        text.at += len(BOM)
    if text.peek() == "[":
        yield from _elements("", text)
    else:
        text.take("{")
        if text.peek() == "}":
            text.take("}")
        else:
            yield from _members(text)
    if text.peek():
        raise ValueError(f"something more at byte {text.place:,}")


def _members(text: _Text) -> Iterator[Record]:
    following = ","
    while following == ",":
        key, _, _ = text.value()
        if not isinstance(key, str):
            raise ValueError(f"a key that is no text before byte {text.place:,}")
        text.take(":")
        if text.peek() == "[":
            yield from _elements(key, text)
        else:
            yield Record(key, -1, *text.value())
        following = text.take(",}")


def _elements(key: str, text: _Text) -> Iterator[Record]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    index, following = 0, ","
    while following == ",":
        yield Record(key, index, *text.value())
        index += 1
        following = text.take(",]")
