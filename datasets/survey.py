"""A whole data root looked at: counts, faults, notes, and what each stage can do with it.

In: a `DataRoot`. Out: a `Survey`. Faults are files that stop a stage or spoil its result; notes
are facts that one should know. `datasets/check.py` prints both.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.inspection import Finding, inspect_all, names
from datasets.layout import DataRoot, Entry
from utils.files import UserError
from utils.logging import progress

WORKED_OUT = "train_aug (worked out)"
RELEASED_LABELS = "refined_pseudo_segmentation_labels"


@dataclass(frozen=True)
class Stage:
    """Whether a stage can run on a data root, and with what, or what is missing."""

    name: str
    ready: bool
    text: str


class Survey:
    """Everything that `check` reports.

    Args:
        root: the data set, read tolerantly.
        lists: further list files than the data set's own.
        quick: do not open images, masks and saliency maps.
        processes: that look at files.

    Attributes:
        findings: image id -> what was found.
        lists: file name -> its entries without the faulty lines.
        faults, notes: kind -> messages.
    """

    def __init__(self, root: DataRoot, lists: Sequence[Path], quick: bool, processes: int) -> None:
        self.root, self.quick = root, quick
        self.voc = not (root.root / "classes.txt").is_file()
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.notes: dict[str, list[str]] = defaultdict(list)
        self.faults["two images of one name"] += root.clashes
        found = progress(inspect_all(root, quick, processes), "looking at images",
                         total=len(root.images), unit="image")
        self.findings = {finding.id: finding for finding in found}
        for finding in self.findings.values():
            for kind, message in finding.faults:
                self.faults[kind].append(message)
        self.lists: dict[str, list[Entry]] = {}
        self._paths: dict[Path, str] = {}
        for path in [*root.list_files(), *lists]:
            self._read_list(path, required=path.parent != root.root or path in lists)
        if root.find_list("train_aug") is None and root.mask_dir.is_dir() and self.list_of("val"):
            val = {entry.id for entry in self.list_of("val")}
            self.lists[WORKED_OUT] = [Entry(image_id, None) for image_id in
                                      sorted(names(root.mask_dir, ".png"))
                                      if image_id in root.images and image_id not in val]
        self._compare()
        self.faults = {kind: messages for kind, messages in self.faults.items() if messages}

    def _read_list(self, path: Path, required: bool) -> None:
        """Read a list; a text file that names no image is none, unless it is `required`."""
        entries, errors = [], []
        try:
            for entry in self.root.read_list(path):
                (errors if isinstance(entry, UserError) else entries).append(entry)
        except UserError as error:
            errors.append(error)
        if entries or required:
            name = path.name if path.name not in self.lists else str(path)
            self.lists[name], self._paths[path] = entries, name
            self.faults["list lines that name no image, a wrong class or an image twice"] += [
                str(error) for error in errors]

    def list_of(self, name: str) -> list[Entry] | None:
        """The entries that a stage gets for `--list name`, or None."""
        path = self.root.find_list(name)
        if path is None:
            return self.lists.get(WORKED_OUT) if name == "train_aug" else None
        return self.lists.get(self._paths.get(path, ""))

    def labels(self, entry: Entry) -> tuple[int, ...] | None:
        """The classes that a stage takes for an entry: the list's, else the annotation's."""
        return entry.labels if entry.labels is not None else self.findings[entry.id].annotated

    def _compare(self) -> None:
        """Notes on what does not go together."""
        root, notes = self.root, self.notes
        for folder, suffix in ((root.annotation_dir, ".xml"), (root.mask_dir, ".png"),
                               (root.saliency_dir, ".png")):
            notes[f"files in {folder.name} without an image"] += [
                str(path) for name, path in names(folder, suffix).items()
                if name not in root.images]
        for name, entries in self.lists.items():
            for entry in entries:
                finding = self.findings[entry.id]
                if entry.labels is None and finding.annotated is None:
                    notes["list lines without labels, and no annotation"].append(
                        f"{name}: {entry.id}")
                for other, what in ((finding.annotated, "annotation"), (finding.masked, "mask")):
                    if None not in (entry.labels, other) and entry.labels != other:
                        notes[f"labels in a list that differ from the {what}"].append(
                            f"{name}: {entry.id} has {self._names(entry.labels)}, its {what} "
                            f"{self._names(other)}")
        val = {entry.id for entry in self.list_of("val") or ()}
        for name, entries in self.lists.items():
            if name.startswith("train") and not name.startswith("trainval"):
                notes["images both in val and in a training list"] += [
                    f"{name}: {entry.id}" for entry in entries if entry.id in val]
        training = {index for entry in self.training or () for index in self.labels(entry) or ()}
        if self.training:
            notes["classes that no training image shows"] += [
                name for index, name in enumerate(root.classes) if index not in training]
        same = defaultdict(list)
        for finding in self.findings.values():
            if finding.digest is not None:
                same[finding.digest].append(finding.id)
        notes["one picture under several names"] += [
            " = ".join(ids) for ids in same.values() if len(ids) > 1]
        notes["saliency maps without foreground (stored as 0 and 1 instead of 0 and 255?)"] += [
            finding.id for finding in self.findings.values() if finding.salient is False]
        self.notes = {kind: messages for kind, messages in notes.items() if messages}

    def _names(self, labels: tuple[int, ...]) -> str:
        return " ".join(self.root.classes[index] for index in labels) or "no class"

    @property
    def training(self) -> list[Entry] | None:
        """The images to train on: train_aug, else the data set's first list."""
        return self.list_of("train_aug") or next(iter(self.lists.values()), None)

    @property
    def training_name(self) -> str:
        """The list of `training`, as --list takes it."""
        if self.list_of("train_aug"):
            return "train_aug"
        return Path(next(iter(self.lists), "train_aug")).stem

    def counts(self) -> dict[str, int]:
        """How many files of each kind belong to an image and are good, as far as looked at."""
        found = self.findings.values()
        return {"images": sum(finding.readable is not False for finding in found),
                "annotations": sum(finding.annotated is not None for finding in found),
                "masks": sum(finding.mask for finding in found),
                "saliency maps": sum(finding.saliency for finding in found)}

    def histogram(self) -> dict[str, list[int]]:
        """Images per class, by annotations, by masks and by each list's labels."""
        sources: dict[str, list[tuple[int, ...] | None]] = {
            "annotations": [finding.annotated for finding in self.findings.values()],
            "masks": [finding.masked for finding in self.findings.values()]}
        sources |= {name: [self.labels(entry) for entry in entries]
                    for name, entries in self.lists.items()}
        columns = {}
        for name, labels in sources.items():
            counter = Counter(index for classes in labels for index in classes or ())
            if counter:
                columns[name] = [counter[i] for i in range(len(self.root.classes))]
        return columns

    def lacking(self, entries: Sequence[Entry], good: Callable[[Finding], bool]) -> int:
        """How many of the entries are not `good`."""
        return sum(not good(self.findings[entry.id]) for entry in entries)

    def stages(self) -> list[Stage]:
        """What each stage can do with this root."""
        missing, broken = self._training_fault()
        listed = "" if self.training_name == "train_aug" else f" with --list {self.training_name}"
        images = f"{len(self.training or ()):,} images{listed}"
        able = not (missing or broken)
        drs, refine = (f" (or: python download.py {name})" if self.voc else ""
                       for name in ("drs", "refine"))
        fails = f"; {broken}, they will fail" if broken else ""
        background = self._background()
        return [
            Stage("train_drs", able, missing or broken or images + self._validation()),
            Stage("make_localization_maps", not missing, missing or
                  f"{images}, after train_drs{drs}{fails}"),
            Stage("train_refine", able, missing or broken or
                  f"{images}, after make_localization_maps{self._validation()}"),
            Stage("make_pseudo_labels", not missing, missing or
                  f"{images}, after train_refine{refine}; {background}{fails}"),
            Stage("evaluate", *self._scoring("train")),
            Stage("DeepLab train", able, missing or broken or self._deeplab_labels()),
            Stage("DeepLab test", *self._scoring("val")),
        ]

    def _training_fault(self) -> tuple[str, str]:
        """What keeps the training list from being used at all, and by trainings."""
        if not self.training:
            return ("no list train_aug, nor masks and val to work it out from: python download.py "
                    "lists" if self.voc else "no list: write train_aug.txt, see "
                    "docs/own_data.md"), ""
        unlabelled = sum(self.labels(entry) is None for entry in self.training)
        unreadable = self.lacking(self.training, lambda finding: finding.readable is not False)
        return (f"{unlabelled:,} images of {self.training_name} have no labels: "
                + ("python download.py lists (or voc2012, for Annotations)" if self.voc
                   else "write their classes behind their names") if unlabelled else "",
                f"{unreadable:,} images of {self.training_name} are unreadable"
                if unreadable else "")

    def _validation(self) -> str:
        if not self.root.mask_dir.is_dir() or not self.root.saliency_dir.is_dir():
            return "; keeps the last checkpoint, for lack of masks or saliency maps to choose by"
        entries = self.list_of("train")
        if entries is None:
            return "; needs --val-list none or LIST: there is no list train to choose by"
        lacking = self.lacking(entries, lambda finding: finding.scorable and finding.saliency)
        if lacking:
            return (f"; needs --val-list none: {lacking:,} images of train have no good image, "
                    "mask or saliency map")
        return f"; chooses the checkpoint on train ({len(entries):,})"

    def _background(self) -> str:
        lacking = self.lacking(self.training or (), lambda finding: finding.saliency)
        if not lacking:
            return "background from saliency maps"
        missing = f"{lacking:,} saliency maps are missing or faulty" \
            if self.root.saliency_dir.is_dir() else "no saliency maps"
        return f"{missing}: --background threshold or crf" + (
            ", or python download.py saliency" if self.voc else "")

    def _scoring(self, name: str) -> tuple[bool, str]:
        entries = self.list_of(name)
        if not entries:
            return False, f"no list {name}" + (": python download.py lists" if self.voc else
                                               ", on which to score against masks")
        lacking = self.lacking(entries, lambda finding: finding.scorable)
        if lacking:
            return False, (f"{lacking:,} of {len(entries):,} images of {name} have no good image "
                           "or mask" + (": python download.py masks" if self.voc else ""))
        return True, f"{len(entries):,} images of {name} have masks"

    def _deeplab_labels(self) -> str:
        there = names(self.root.root / RELEASED_LABELS, ".png")
        lacking = sum(entry.id not in there for entry in self.training or ())
        init = "; initial weights: python download.py deeplab-init" if self.voc else ""
        if not lacking:
            return f"on the labels in {RELEASED_LABELS}{init}"
        other = " (or: python download.py pseudo-labels)" if self.voc else ""
        return f"on the labels of make_pseudo_labels{other}{init}"
