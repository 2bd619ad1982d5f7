"""What a result was made from, so that an old or foreign one never passes for a new one.

In: the options, checkpoints, folders and image-level labels that a stage reads. Out: a `Record`,
kept as provenance.json in the stage's output folder (a training keeps it in its checkpoints, too;
`utils/outputs.py` compares).
Files count by their contents or, images and maps of a data set, by name and size: neither copying
nor moving a folder makes it stale. `python -m utils.provenance RUN_DIR` prints the chain of a run.
"""

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.files import UserError, write_json

log = logging.getLogger("drs")
RECORD = "provenance.json"
SHOWN = 3  # images that a message names
PER_IMAGE = ("images", "validation")  # the parts of a record that grow with the data set
VALIDATION = "validation "  # in front of what is said of such images
BLOCK = 1 << 20


@dataclass
class Record:
    """What the files of one output folder were made from.

    Attributes:
        stage: the script.
        options: the options that shape the result.
        classes: class names, in the order of their indices.
        inputs: name of a checkpoint or upstream folder -> digest of its content.
        images: image id -> what belongs to it: "labels" (class indices), sizes of files in bytes.
        made: when, by which command and versions; takes no part in comparisons.
        places: where each input was found; for the reader, takes no part in comparisons either.
        validation: as `images`, those by which a training chooses its best checkpoint.
    """

    stage: str
    options: dict[str, Any]
    classes: list[str]
    inputs: dict[str, str] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    validation: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # As JSON would give it back: tuples are lists, paths are text.
        self.options = json.loads(json.dumps(self.options, default=str))

    def digest(self, ids: Iterable[str] | None = None) -> str:
        """A digest of what shapes the files of these images (None: of all)."""
        images = self.images if ids is None else {name: self.images.get(name) for name in ids}
        content = [self.options, self.classes, self.inputs, images]
        if ids is None and self.validation:
            content.append(self.validation)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def differences(self, now: "Record") -> list[str]:
        """In words, how `now` differs; images are compared where both have them."""
        found = [f"{_option(name)} was {_short(before)}, is {_short(after)}"
                 for name, before, after in _changed(self.options, now.options)]
        if self.classes != now.classes:
            found.append(f"the classes were {_short(self.classes)}, are {_short(now.classes)}")
        found += [f"{name} has other content (was {_short(before, 12)}, is {_short(after, 12)})"
                  for name, before, after in _changed(self.inputs, now.inputs)]
        kinds: dict[str, list[str]] = {}
        for group, old, new in (("", self.images, now.images),
                                (VALIDATION, self.validation, now.validation)):
            for name in old.keys() & new.keys():
                for kind, before, after in _changed(old[name], new[name]):
                    if kind == "labels":
                        before, after = (_names(value, classes) for value, classes in
                                         ((before, self.classes), (after, now.classes)))
                    elif kind == "image":
                        before, after = f"{before} bytes", f"{after} bytes"
                    kinds.setdefault(group + kind, []).append(f"{name} was {before}, is {after}")
        found += [f"{kind} of {len(names)} images changed ({'; '.join(sorted(names)[:SHOWN])}"
                  f"{'; ...' if len(names) > SHOWN else ''})" for kind, names in kinds.items()]
        return found

    def list_differences(self, now: "Record") -> list[str]:
        """In words, how the lists of images differ."""
        return [f"{len(names)} {group}images are {how} ({', '.join(sorted(names)[:SHOWN])})"
                for group, old, new in (("", self.images, now.images),
                                        (VALIDATION, self.validation, now.validation))
                for how, names in (("no longer listed", old.keys() - new.keys()),
                                   ("new in the list", new.keys() - old.keys())) if names]

    def write(self, folder: Path) -> None:
        """Keep this record in `folder`, atomically."""
        write_json(folder / RECORD, vars(self))

    def add_file(self, name: str, path: Path) -> None:
        """Note that a file is read, by its content.

        Raises:
            UserError: it cannot be read.
        """
        self.inputs[name], self.places[name] = file_digest(path, name), str(path)

    def announce(self) -> None:
        """Log what is read, and from where."""
        for name, place in self.places.items():
            log.info("reads %s: %s", name, place)

    def packed(self) -> dict[str, Any]:
        """The record as checkpoints hold it: what belongs to images is JSON text, which PyTorch's
        safe reader takes in at once instead of value by value."""
        return vars(self) | {group: json.dumps(getattr(self, group)) for group in PER_IMAGE}

    @classmethod
    def of(cls, value: Any, source: Path) -> "Record":
        """The record that `packed` or a JSON file holds.

        Raises:
            UserError: it is none.
        """
        parts = {"stage": str, "options": dict, "classes": list, "inputs": dict, "images": dict,
                 "made": dict, "places": dict, "validation": dict}
        if isinstance(value, Mapping):
            value = {"validation": {}, **value}  # older records did not have it
            try:
                value.update({group: json.loads(value[group]) for group in PER_IMAGE
                              if isinstance(value.get(group), str)})
            except (ValueError, RecursionError):
                value = None
        if (not isinstance(value, Mapping) or value.keys() != parts.keys()
                or not all(isinstance(value[name], kind) for name, kind in parts.items())
                or not all(isinstance(image, dict) for group in PER_IMAGE
                           for image in value[group].values())):
            raise UserError(f"{source}: no record of what the files were made from; use another "
                            "folder, or --overwrite")
        return cls(**value)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, before.get(name), after.get(name)) for name in sorted({*before, *after})
            if before.get(name) != after.get(name)]


def _option(name: str) -> str:
    """The option as it is typed; those of a configuration have their own form."""
    return name if "." in name or name in ("precision", "crf") else f"--{name.replace('_', '-')}"


def _short(value: Any, length: int = 60) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _names(labels: Any, classes: Sequence[str]) -> str:
    if not isinstance(labels, list):
        return "nothing"
    return " ".join(classes[i] if isinstance(i, int) and 0 <= i < len(classes) else str(i)
                    for i in labels) or "no class"


def read(folder: Path) -> Record | None:
    """The record in `folder`, or None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return Record.of(json.loads(path.read_text(encoding="utf-8")), path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); use another folder, or --overwrite"
                        ) from error


def file_digest(path: Path, what: str = "checkpoint") -> str:
    """SHA-256 of a file's content.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        if not path.is_file():
            raise UserError(f"{what} {path}: no such file")
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from error
    return digest.hexdigest()


def file_sizes(folder: Path, ids: Iterable[str], suffix: str = ".png") -> dict[str, int | None]:
    """The size in bytes of ID.png in `folder` for every id; None where there is none."""
    sizes: dict[str, int | None] = dict.fromkeys(ids)
    with os.scandir(folder) as entries:
        for entry in entries:  # one at a time: a DirEntry keeps all that the system said
            name = entry.name.removesuffix(suffix)
            if name != entry.name and name in sizes:
                sizes[name] = entry.stat().st_size
    return sizes


def upstream(record: Record, name: str, folder: Path, ids: Sequence[str]) -> None:
    """Note in `record` that ID.png of `folder` are read for the `ids`: their sizes and, where a
    stage made them, what it made them from. A name that begins with VALIDATION goes there."""
    images, kind = _group(record, name)
    theirs = read(folder)
    record.places[name] = str(folder)
    if theirs is not None:
        record.inputs[name] = theirs.digest(())
    for image_id, size in file_sizes(folder, ids).items():
        made = "" if theirs is None else f" from {theirs.digest((image_id,))[:12]}"
        images[image_id][kind] = f"{size} bytes{made}"


def _group(record: Record, name: str) -> tuple[dict[str, dict[str, Any]], str]:
    """The images for which a folder called `name` is read, and what its files are of them."""
    return (record.validation if name.startswith(VALIDATION) else record.images,
            name.removeprefix(VALIDATION))


def outdated(record: Record) -> list[str]:
    """In words, what has changed since, as far as what was read is still in its place."""
    found = []
    for name, place in record.places.items():
        path, (images, kind) = Path(place), _group(record, name)
        if path.is_file():
            if file_digest(path, name) != record.inputs.get(name):
                found.append(f"{place} has other content")
        elif not path.is_dir():
            found.append(f"{name}: {place} is no longer there, cannot compare")
        elif name == "images":
            sizes = {file.stem: file.stat().st_size for file in path.iterdir() if file.is_file()}
            every = record.validation | record.images
            changed = [image for image in every if image in sizes
                       and sizes[image] != every[image].get("image")]
            found += [f"{len(changed)} images in {place} have changed"] if changed else []
        else:
            empty: list[dict] = [{image: {} for image in images} for _ in range(2)]
            now_there = Record("", {}, [], images=empty[0], validation=empty[1])
            upstream(now_there, name, path, list(images))
            if now_there.inputs.get(name) != record.inputs.get(name) or any(
                    facts[kind] != images[image].get(kind)
                    for image, facts in _group(now_there, name)[0].items()):
                found.append(f"{place} holds other files now")
    return found


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.provenance",
        description="What was made when, from what, by which command, and what is out of date.")
    parser.add_argument("run_dir", type=Path, help="folder of a run")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Print the chain of a run, oldest first."""
    records = {path.parent: read(path.parent) for path in args.run_dir.rglob(RECORD)}
    if not records:
        raise UserError(f"{args.run_dir}: no results whose origin is recorded")
    stale: set[str] = set()
    for folder, record in sorted(records.items(), key=lambda item: str(
            item[1].made.get("when") if item[1] else "")):
        if record is None:
            continue
        changed = outdated(record) + [f"{place} is itself out of date" for place in
                                      record.places.values()
                                      if any(Path(place).resolve().is_relative_to(other)
                                             for other in stale)]
        if changed:
            stale.add(str(folder.resolve()))
        made = dict(record.made)
        print(f"{folder}: {len(record.images)} images, made {made.pop('when', 'at some time')}\n"
              f"    by   {' '.join(map(str, made.pop('command', ['?'])))}\n"
              f"    with {', '.join(f'{name} {value}' for name, value in made.items())}")
        for name, place in record.places.items():
            print(f"    from {name}: {place} {record.inputs.get(name, '')[:12]}".rstrip())
        print("    " + (f"OUT OF DATE: {'; '.join(changed)}" if changed else "up to date"))


if __name__ == "__main__":
    from utils.stage import launch

    launch(main, parse())
