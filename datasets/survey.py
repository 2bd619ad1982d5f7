"""A whole data root looked at: faults, notes, counts, and what each stage says to it.

Faults are files that stop a stage or spoil its result; notes are facts that one should know.
Whether a stage can run is asked of the functions that it calls.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datasets.inspection import companions, inspect, jobs
from datasets.layout import DataRoot
from datasets.lists import Entry
from datasets.voc import require_files, validation_set
from utils.files import UserError
from utils.logging import progress
from utils.options import StageParser, resolve_background
from utils.processes import map_in_processes


class Stage(NamedTuple):
    """Whether a stage can run on a data root, and with what, or what it complains about."""

    name: str
    ready: bool
    text: str


class Survey:
    """Everything that `check` reports.

    Args:
        root: the data set, read tolerantly.
        paths: further list files than the data set's own.
        quick: do not open images, masks and saliency maps.

    Attributes:
        lists: name -> its entries without the faulty lines.
        faults, notes: kind -> messages.
    """

    def __init__(self, root: DataRoot, paths: Sequence[Path], quick: bool, processes: int) -> None:
        self.root, self.lists = root, dict[str, list[Entry]]()
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.notes: dict[str, list[str]] = defaultdict(list)
        look = partial(inspect, classes={name: i for i, name in enumerate(root.classes)},
                       quick=quick)
        self._found = {found.id: found for found in progress(
            map_in_processes(look, jobs(root), processes), "looking at images",
            total=len(root.images), unit="image")}
        for kind, message in [fault for found in self._found.values() for fault in found.faults]:
            self.faults[kind].append(message)
        if root.clashes:
            self.faults["two images of one name"] = list(root.clashes)
        for path in [*root.list_files(), *paths]:
            self._read(path, required=path.parent != root.root or path in paths)
        for name in ("train_aug", "val"):
            if root.find_list(name) is None and root.has_list(name):
                self.lists[f"{name} (worked out)"] = root.entries(name, labels=False)
        self._compare()

    def _read(self, path: Path, required: bool) -> None:
        """Read a list; a text file that names no image is none, unless it is `required`."""
        try:
            lines = list(self.root.read_list(path))
        except UserError as error:
            lines = [error]
        entries = [line for line in lines if isinstance(line, Entry)]
        if entries or required:
            self.lists[path.name if path.name not in self.lists else str(path)] = entries
            for fault in [line for line in lines if isinstance(line, UserError)]:
                self.faults["list lines that name no image, a wrong class or an image twice"
                            ].append(str(fault))

    def _labels(self, entry: Entry) -> tuple[int, ...] | None:
        try:
            return self.root.told(entry.id) if entry.labels is None else entry.labels
        except UserError:
            return None

    def _compare(self) -> None:
        """Notes on what does not go together."""
        root, notes, shown, same = self.root, self.notes, set[int](), defaultdict(list)
        val = {entry.id for name in self.lists if name[:3] == "val" for entry in self.lists[name]}

        def words(labels: tuple[int, ...]) -> str:
            return " ".join(root.classes[index] for index in labels) or "no class"

        for files in companions(root).values():
            for path in (files[name] for name in files.keys() - root.images.keys()):
                notes[f"files in {path.parent.name} without an image"].append(str(path))
        training = [name for name in self.lists if name.startswith("train")] or list(self.lists)
        for name, entry in [(name, entry) for name, part in self.lists.items() for entry in part]:
            labels, where = self._labels(entry), f"{name}: {entry.id}"
            shown.update(labels or () if name in training else ())
            if labels is None:
                notes["list lines without labels, and nothing else tells them"].append(where)
            for what, other in self._found[entry.id].labels.items():
                if entry.labels not in (None, other):
                    notes[f"labels in a list that differ from the {what}"].append(
                        f"{where} has {words(entry.labels)}, its {what} {words(other)}")
            if name.startswith(("train.", "train_")) and entry.id in val:
                notes["images both in val and in a training list"].append(where)
        notes["classes that no training image shows"] = [
            name for index, name in enumerate(root.classes) if training and index not in shown]
        for found in self._found.values():
            same[found.digest].append(found.id)
            if found.salient is False:
                notes["saliency maps without foreground (stored as 0 and 1 instead of 0 and 255?)"
                      ].append(found.id)
        notes["one picture under several names"] = [
            " = ".join(ids) for digest, ids in same.items() if digest and ids[1:]]
        self.notes = {kind: messages for kind, messages in notes.items() if messages}

    def counts(self) -> dict[str, int]:
        """How many files of each kind belong to an image and are good, as far as looked at."""
        counter = Counter(what for found in self._found.values() for what in found.good)
        return {f"{what}s": counter[what] for what in ("image", "annotation", "mask",
                                                       "saliency map")}

    def histogram(self) -> dict[str, list[int]]:
        """Images per class, by annotations, by masks and by each list's labels."""
        labels = {f"{what}s": [found.labels.get(what) for found in self._found.values()]
                  for what in ("annotation", "mask")}
        labels |= {name: [self._labels(entry) for entry in self.lists[name]] for name in self.lists}
        counters = {name: Counter(index for classes in labels[name] for index in classes or ())
                    for name in labels}
        return {name: [counter[index] for index in range(len(self.root.classes))]
                for name, counter in counters.items() if counter}

    def stages(self) -> list[Stage]:
        """What each stage, at its default options, says to this root."""
        root, parser = self.root, StageParser("", images="train_aug", output="", batch_size=1)
        parser.add_training(epochs=1, lr=1, milestones=[], weight_decay=0)
        parser.add_labelling()
        args = parser.parse_args(["--data-root", str(root.root)])
        if not root.has_list(args.list) and self.lists:
            args.list = Path(next(iter(self.lists))).stem

        @contextmanager
        def needing(download: str) -> Iterator[None]:
            try:
                yield
            except UserError as error:
                advice = f" (python download.py {download} --data-root {root.root})"
                raise UserError(f"{error}{advice if root.voc else ''}") from error

        def images() -> str:
            with needing("lists"):
                return f"{len(root.entries(args.list)):,} images of --list {args.list}"

        def train() -> str:
            text, validation = images(), validation_set(root, args)
            if bad := sum("image" not in self._found[entry.id].good
                          for entry in root.entries(args.list)):
                raise UserError(f"{bad:,} images of {args.list} are unreadable")
            return text + (f"; chooses the checkpoint on {args.val_list} ({len(validation):,})"
                           if validation else "; keeps the last checkpoint")

        def label() -> str:
            text = images()
            with needing("saliency"):
                folder = resolve_background(args, root.saliency_dir)
                if folder is not None:
                    require_files(folder, root.entries(args.list))
            return f"{text}; background from {folder or args.background}"

        def score(name: str) -> str:
            with needing("lists"):
                entries = root.entries(name, labels=False)
            with needing("masks"):
                require_files(root.mask_dir, entries)
            return f"{len(entries):,} images of {name} have masks"

        questions: dict[str, Callable[[], str]] = {
            "train_drs": train, "make_localization_maps": images, "train_refine": train,
            "make_pseudo_labels": label, "evaluate": partial(score, "train"),
            "DeepLab train": train, "DeepLab test": partial(score, "val")}
        return [_ask(name, question) for name, question in questions.items()]


def _ask(name: str, question: Callable[[], str]) -> Stage:
    try:
        return Stage(name, True, question())
    except UserError as error:
        return Stage(name, False, str(error))
