"""What a result was made from, so that an old or foreign one never passes for a new one.

In: the options, checkpoints, folders and image-level labels that a stage reads. Out: a `Record`,
kept as provenance.json in the stage's output folder (a training keeps it in its checkpoints, too).
Files count by their contents or, images and maps of a data set, by name and size: neither copying
nor moving a folder makes it stale. `python -m utils.provenance RUN_DIR` prints the chain of a run.
"""

import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.files import UserError, write_json

log = logging.getLogger("drs")
RECORD = "provenance.json"
SHOWN = 3  # images that a message names
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
    """

    stage: str
    options: dict[str, Any]
    classes: list[str]
    inputs: dict[str, str] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # As JSON would give it back: tuples are lists, paths are text.
        self.options = json.loads(json.dumps(self.options, default=str))

    def digest(self, ids: Iterable[str] | None = None) -> str:
        """A digest of what shapes the files of these images (None: of all)."""
        images = self.images if ids is None else {name: self.images.get(name) for name in ids}
        content = (self.options, self.classes, self.inputs, images)
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
        for name in self.images.keys() & now.images.keys():
            for kind, before, after in _changed(self.images[name], now.images[name]):
                if kind == "labels":
                    before, after = (_names(value, classes) for value, classes in
                                     ((before, self.classes), (after, now.classes)))
                elif kind == "image":
                    before, after = f"{before} bytes", f"{after} bytes"
                kinds.setdefault(kind, []).append(f"{name} was {before}, is {after}")
        found += [f"{kind} of {len(names)} images changed ({'; '.join(sorted(names)[:SHOWN])}"
                  f"{'; ...' if len(names) > SHOWN else ''})" for kind, names in kinds.items()]
        return found

    def list_differences(self, now: "Record") -> list[str]:
        """In words, how the list of images differs."""
        return [f"{len(names)} images are {how} ({', '.join(sorted(names)[:SHOWN])})"
                for how, names in (("no longer listed", self.images.keys() - now.images.keys()),
                                   ("new in the list", now.images.keys() - self.images.keys()))
                if names]

    def write(self, folder: Path) -> None:
        """Keep this record in `folder`, atomically."""
        write_json(folder / RECORD, asdict(self))

    def plain(self) -> dict[str, Any]:
        """The record as plain values, as checkpoints hold it."""
        return asdict(self)

    @classmethod
    def of(cls, value: Any, source: Path) -> "Record":
        """The record that `plain` or a JSON file holds.

        Raises:
            UserError: it is none.
        """
        parts = {"stage": str, "options": dict, "classes": list, "inputs": dict, "images": dict,
                 "made": dict, "places": dict}
        if (not isinstance(value, Mapping) or value.keys() != parts.keys()
                or not all(isinstance(value[name], kind) for name, kind in parts.items())
                or not all(isinstance(image, dict) for image in value["images"].values())):
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


def now() -> dict[str, Any]:
    """When, by which command and with which versions something is made now."""
    import numpy
    import torch
    import torchvision

    return {"when": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": list(sys.argv), "python": platform.python_version(),
            "torch": str(torch.__version__), "torchvision": str(torchvision.__version__),
            "numpy": numpy.__version__}


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
    with os.scandir(folder) as entries:
        there = {entry.name: entry for entry in entries}
    return {name: there[name + suffix].stat().st_size if name + suffix in there else None
            for name in ids}


def upstream(record: Record, name: str, folder: Path, ids: Sequence[str]) -> None:
    """Note in `record` that ID.png of `folder` are read for the `ids`: their sizes and, where a
    stage made them, what it made them from."""
    theirs = read(folder)
    record.places[name] = str(folder)
    if theirs is not None:
        record.inputs[name] = theirs.digest(())
    for image_id, size in file_sizes(folder, ids).items():
        made = "" if theirs is None else f" from {theirs.digest((image_id,))[:12]}"
        record.images[image_id][name] = f"{size} bytes{made}"


def made_from(args: Any, root: Any, entries: Iterable[Any], precision: str) -> Record:
    """The record of a stage with these options, data set and entries of a list.

    Args:
        args: of a `StageParser`.
        root, entries: a `datasets.layout.DataRoot` and its entries.
        precision: in which the network computes.
    """
    options = {name: getattr(args, name) for name in args.shaping} | {"precision": precision}
    return Record(Path(sys.argv[0]).stem, options, list(root.classes), made=now(),
                  images=image_facts(root, entries), places={"data": str(args.data_root)})


def image_facts(root: Any, entries: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Image id -> its labels, where known, and the size of its file in bytes."""
    return {entry.id: {"labels": None if entry.labels is None else list(entry.labels),
                       "image": root.image(entry.id).stat().st_size} for entry in entries}


def unfinished(outputs: Mapping[Path, Record], args: Any, runtime: Any) -> list[int]:
    """The indices of the images whose ID.png is not in every output folder yet.

    Each folder's record is compared with what its files would be made from now, and renewed; the
    images are those of the first record.

    Raises:
        UserError: files that would stay in a folder were made from something else.
    """
    todo: set[int] = set()
    if runtime.main:
        ids = list(next(iter(outputs.values())).images)
        for folder, record in outputs.items():
            left = _settle(folder, record, args.overwrite, args.dry_run) if folder.is_dir() \
                else set(ids)
            todo |= {i for i, name in enumerate(ids) if name in left}
        if len(todo) < len(ids):
            log.info("%d of %d are there already", len(ids) - len(todo), len(ids))
    return runtime.gather(sorted(todo))[0]


def renew(folder: Path, record: Record, overwrite: bool) -> None:
    """Prepare a folder whose PNGs are all written anew, without skipping finished ones.

    Raises:
        UserError: it holds PNGs that none of our stages made, or files that would stay there were
            made from something else.
    """
    if read(folder) is None and not overwrite and any(folder.glob("[!.]*.png")):
        raise UserError(f"{folder} holds PNGs of unknown origin; use another folder, or "
                        "--overwrite")
    _settle(folder, record, overwrite=True, dry_run=False)


def _settle(folder: Path, record: Record, overwrite: bool, dry_run: bool) -> set[str]:
    """The images of `record` that `folder` lacks, after its record is compared and renewed."""
    sizes = {path.stem: path.stat().st_size for path in folder.glob("[!.]*.png")}
    replaced = sizes.keys() & record.images.keys() if overwrite else set()
    staying = sizes.keys() - replaced
    if staying:
        elsewhere = "use another --output-dir" + ("" if overwrite else ", or --overwrite")
        before = read(folder)
        if before is None:
            raise UserError(f"{folder} holds {len(staying)} PNGs of unknown origin; {elsewhere}")
        before.images = {name: value for name, value in before.images.items() if name in staying}
        if changed := before.differences(record):
            raise UserError(f"{folder} holds {len(staying)} files made from something else: "
                            f"{'; '.join(changed)}; {elsewhere}")
        record = Record(**{**record.plain(), "images": before.images | record.images})
    if not dry_run:
        for name in replaced:
            (folder / f"{name}.png").unlink()
        record.write(folder)
    return {name for name in record.images if name not in staying or not sizes[name]}
