"""Sections of options in YAML, from strangers: a file and overrides in, a checked model out.

First the types that options are declared with, then the reading, then errors as one line.
Every scalar stays text (None where it is empty or null) until pydantic converts it to its declared
type. So `off` is "off", 1e-4 a number and 010 ten, and none of YAML's own conversions can fail.
"""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from utils.files import UserError

FOLDER = r"^[^./\\][^/\\]{0,59}$"
MAX_BYTES, MAX_NAME, MAX_SHOWN = 100_000, 255, 100  # file; part of a path; value in a message
NULLS = ("", "~", "null", "Null", "NULL")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Words for pydantic's kinds of errors (by the start of their type), and within its own words.
WORDS = {"int": "must be a whole number", "float": "must be a number", "list": "must be a list",
         "finite": "must be a finite number", "bool": "must be true or false",
         "string": "must be a name of up to 60 characters without slashes or a dot in front",
         "path": "must be a path", "model": "must hold lines KEY: VALUE"}
PLAIN = {"Input should": "must", "List should": "must", "Value error, ": "",
         " after validation": "", "greater than or equal to": "at least",
         "less than or equal to": "at most"}


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """The path from the folder where it was written down: `info.context`."""
    if any(len(part.encode()) > MAX_NAME for part in path.parts):
        raise ValueError(f"must be a path whose parts have at most {MAX_NAME} bytes")
    return (info.context or Path()) / os.path.expanduser(path)


def list_folder(image_list: str) -> str:
    """The name of a list's output folder: the list's own name, or its file's without suffix."""
    path = Path(image_list)
    name = path.stem if "/" in image_list or path.suffix == ".txt" else image_list
    if not re.match(FOLDER, name):
        raise ValueError("must be the name of a list, or the path of a list file")
    return name


def _image_list(image_list: str, info: ValidationInfo) -> str:
    list_folder(image_list)
    path = _absolute(Path(image_list), info)
    return str(path) if "/" in image_list or os.path.isfile(path) else image_list


Name = Annotated[str, Field(pattern=FOLDER)]  # of a folder
Location = Annotated[Path, AfterValidator(_absolute)]
ImageList = Annotated[str, AfterValidator(_image_list)]  # a name, or an absolute path
Count = Annotated[int, Field(ge=1, le=10**8)]
Few = Annotated[int, Field(ge=1, le=1000)]
FewOrNone = Annotated[int, Field(ge=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1000)]
Range = Annotated[float, Field(ge=0.01, le=10_000)]
Share = Annotated[float, Field(ge=0, lt=1)]
Scale = Annotated[float, Field(ge=0.01, le=16)]
Scales = Annotated[list[Scale], Field(min_length=1, max_length=32)]


class Section(BaseModel):
    """Keys with their types, ranges and defaults; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Sections = TypeVar("Sections", bound=Section)


class _Loader(yaml.BaseLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if event.anchor or getattr(event, "tag", None):  # an alias has the anchor it refers to
            raise _refusal("aliases, anchors and tags are not accepted", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            raise _refusal("a key stands here twice", node)
        return values

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        if CONTROL.search(node.value):
            raise _refusal("control characters are not accepted", node)
        plain = node.style is None
        return None if not node.value or plain and node.value in NULLS else node.value


def _refusal(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def load(model: type[Sections], path: Path, overrides: Sequence[str], base: Path) -> Sections:
    """The sections of a YAML file, then of overrides ("SECTION.KEY=VALUE", VALUE in YAML).

    Args:
        model: its fields are sections.
        base: where relative paths in the file start; those in overrides start where one is.

    Raises:
        UserError: no such file, larger than 100 KB or not acceptable as YAML (aliases are not);
            an unknown key (the likeliest one meant is named); a value of the wrong type, length or
            range. One line, which names the file and the key.
    """
    content = _read(path)
    if isinstance(content, dict):  # a section without keys is empty
        content = {name: {} if keys is None else keys for name, keys in content.items()}
    filed = _check(model, {} if content is None else content, f"{path}: ", base)
    values: dict[str, dict[str, Any]] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.partition(".")
        if not equals:
            raise UserError(f"{override!r}: an override has the form SECTION.KEY=VALUE")
        if not dot:
            raise UserError(_unknown(name, model))
        values.setdefault(section, {})[key] = _parse(text, override)
    typed = _check(model, values, "", Path.cwd())
    return model(**{section: getattr(filed, section).model_copy(
        update=getattr(typed, section).model_dump(exclude_unset=True))
        for section in model.model_fields})


def _read(path: Path) -> Any:
    if not os.path.isfile(path):  # a pipe would never end
        raise UserError(f"configuration {path}: no such file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"configuration {path}: larger than {MAX_BYTES // 1000} KB")
        return _parse(content.decode("utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"configuration {path}: cannot be read ({error})") from error


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}" if mark else source
        reason = ", ".join(filter(None, (error.context, error.problem)))
    except yaml.YAMLError as error:
        where, reason = source, str(error).partition("\n")[0]
    except RecursionError:
        where, reason = source, "brackets in brackets in brackets"
    raise UserError(f"{where}: no acceptable YAML: {reason}")


def _check(model: type[Sections], values: Any, source: str, base: Path) -> Sections:
    try:
        return model.model_validate(values, context=base)
    except ValidationError as errors:
        error = errors.errors(include_url=False)[0]
    place = error["loc"]
    name = ".".join(map(str, place[:2])) or "the configuration"
    if error["type"] == "extra_forbidden":
        raise UserError(source + _unknown(name, model))
    if place[2:] and isinstance(place[2], int):
        name += f"[{place[2]}]"
    words = WORDS.get(error["type"].partition("_")[0], error["msg"])
    for technical, plain in PLAIN.items():
        words = words.replace(technical, plain)
    raise UserError(f"{source}{name} {words}, got {_show(error['input'])}")


def _unknown(name: str, model: type[Section]) -> str:
    keys = {section: list(field.annotation.model_fields)  # type: ignore[union-attr]
            for section, field in model.model_fields.items()}
    section, dot, key = name.partition(".")
    word = (key or section)[:MAX_SHOWN].upper()
    meant = [f"{known}.{word}" for known in keys if word in keys[known]]
    if not meant and section in keys:
        meant = [f"{section}.{close}" for close in
                 difflib.get_close_matches(word, keys[section], n=1, cutoff=0.5)]
    elif not meant:
        meant = difflib.get_close_matches(section[:MAX_SHOWN].upper(), list(keys), n=1)
    return f"unknown {'key' if dot else 'section'} {_show(name)}; " + (
        f"did you mean {meant[0]}?" if meant else f"there are {', '.join(keys.get(section, keys))}")


def _show(value: Any) -> str:
    """A value as it would stand in YAML, on one line and not too long."""
    text = "nothing" if value is None else repr(value).replace("'", "")
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
