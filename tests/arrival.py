"""Runs a command in this process and notes all that an option could change, for
test_options_arrive.py: files, weights, pixels, scores, records, and what its consumers were given.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cached_property
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import requests
import torch
from helpers import NETWORK, ROOT, run_stage
from PIL import Image, ImageOps

sys.path.insert(0, str(ROOT / "DeepLab-V2-PyTorch"))

from datasets.synthetic import generate
from labelling import crf
from labelling.labels import read_label, save_label
from utils import checkpoint
from utils.stage import launch

DEEPLAB = """
EXP: {{ID: tiny, OUTPUT_DIR: {folder}/out}}
DATASET: {{ROOT: {demo}, LABEL_DIR: {demo}/SegmentationClassAug}}
SPLIT: {{VAL: train}}
IMAGE: {{CROP: 33, SCALES: [0.75, 1.25]}}
MODEL: {{NAME: small, BLOCKS: [1, 1, 1, 1], WIDTH: 0.0625, ATROUS_RATES: [1, 2], SCALES: [0.5],
         FREEZE_BN: false}}
SOLVER: {{ITER_MAX: 2, ITER_SAVE: 1, ITER_SIZE: 1, BATCH_SIZE: 2, LR: 0.01, LR_DECAY: 1,
          ONLINE_LABEL: off}}
RUN: {{NUM_WORKERS: 0, DEVICE: cpu, AMP: off}}
"""
SCORES = {"miou", "precision", "recall", "pixel_accuracy", "mean_accuracy", "class_iou",
          "frequency_weighted_iou", "foreground_recall", "foreground_precision", "per_image",
          "class_precision", "class_recall", "class_pixels"}


ALTERNATIVES = {"--from-xml": "--from-masks"}  # options that exclude each other


class Command(NamedTuple):
    """A command line of a script, complete; `words` may have {places}, and "name:value" for a
    positional argument."""

    module: str
    words: str
    sub: str = ""
    prepare: str = ""  # a folder of `Places` that is copied to {out}/run first


class Places:
    """The inputs that rows of the table name in braces; each is made when it is first needed."""

    def __init__(self, folder: Path, demo: Path, run: Path) -> None:
        self.folder, self.demo, self.run = folder, demo, run
        self.maps, self.classifier = run / "localization_maps", run / "classifier/best.pth"
        self.refine = run / "refine/best.pth"
        self.saliency, self.masks = (self._turned(demo, folder, name) for name in
                                     ("saliency_map", "SegmentationClassAug"))

    @staticmethod
    def _turned(source: Path, target: Path, name: str) -> Path:
        """A folder of the same pictures, upside down, or mirrored if they are saliency maps."""
        (target / name).mkdir(parents=True)
        for path in (source / name).iterdir():
            with Image.open(path) as image:
                turned = (ImageOps.mirror if name == "saliency_map" else ImageOps.flip)(image)
                turned.save(target / name / path.name)
        return target / name

    def _data(self, name: str) -> Path:
        return Path(shutil.copytree(self.demo, self.folder / name))

    @cached_property
    def other(self) -> Path:
        """The data set with every picture turned."""
        root = self._data("other")
        for name in ("JPEGImages", "saliency_map", "SegmentationClassAug"):
            shutil.rmtree(root / name)
            self._turned(self.demo, root, name)
        return root

    @cached_property
    def bare(self) -> Path:
        """The data set without saliency maps, one image's mask being empty."""
        root = self._data("bare")
        shutil.rmtree(root / "saliency_map")
        mask = root / "SegmentationClassAug/train_000000.png"
        save_label(mask, np.zeros_like(read_label(mask)))
        return root

    @cached_property
    def faulty(self) -> Path:
        """The data set with a damaged picture and a damaged mask."""
        root = self._data("faulty")
        for name in ("JPEGImages/train_000000.jpg", "SegmentationClassAug/train_000000.png"):
            (root / name).write_bytes((root / name).read_bytes()[:300])
        return root

    @cached_property
    def foreign(self) -> Path:
        """A list with an image that is not there."""
        path = self.folder / "foreign.txt"
        path.write_text("nowhere\n")
        return path

    def _stage(self, stage: str, name: str, *words: object) -> Path:
        run_stage(stage, "--data-root", self.demo, "--run-dir", self.folder / "made", "--device",
                  "cpu", "--amp", "off", "--num-workers", "0", "--output-dir", self.folder / name,
                  *words)
        return self.folder / name

    @cached_property
    def without(self) -> Path:
        """A trained classifier without DRS."""
        return self._stage("train_drs", "without", *NETWORK, "--drs", "none", "--epochs", "1",
                           "--batch-size", "2") / "last.pth"

    @cached_property
    def maps2(self) -> Path:
        return self._stage("make_localization_maps", "maps2", "--scales", "0.5", "--checkpoint",
                           self.classifier)

    @cached_property
    def labels(self) -> Path:
        return self._stage("make_pseudo_labels", "labels", "--checkpoint", self.classifier)

    @cached_property
    def labels2(self) -> Path:
        return self._stage("make_pseudo_labels", "labels2", "--checkpoint", self.classifier,
                           "--background", "threshold", "--background-score", "0.5")

    @cached_property
    def official(self) -> Path:
        """A file that tells neither network nor DRS."""
        path = self.folder / "official.pth"
        checkpoint.export(self.refine, path)
        return path

    @cached_property
    def reported(self) -> Path:
        """A run with something for each part of the report."""
        folder = self.folder / "reported"
        shutil.copytree(self.maps, folder / "localization_maps")
        shutil.copytree(self.labels, folder / "pseudo_labels")
        shutil.copytree(self.demo / "SegmentationClassAug", folder / "deeplab_labels")
        return folder

    @cached_property
    def small(self) -> Path:
        """A demo data set of other parameters."""
        generate(self.folder / "small", num_classes=2, train=1, val=1, single=1, size=40)
        return self.folder / "small"

    def _exported(self, labels: Path, name: str) -> Path:
        run_stage("export_labels", "--data-root", self.demo, "--labels-dir", labels, "--format",
                  "cvat", "--output-dir", self.folder / name)
        return self.folder / name

    @cached_property
    def cvat(self) -> Path:
        folder = self._exported(self.labels, "cvat")
        for name in ("ImageSets/Segmentation/default.txt",):  # all but one, for --labels-dir
            lines = (folder / name).read_text().splitlines(keepends=True)
            (folder / name).write_text("".join(lines[1:]))
        return folder

    @cached_property
    def cvat2(self) -> Path:
        return self._exported(self.labels2, "cvat2")

    def _onnx(self, name: str, output: str, side: object) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        importlib.import_module("test_saliency").network(path, ("n", 3, side, side), output=output)
        return path

    @cached_property
    def onnx(self) -> Path:
        return self._onnx("open.onnx", "red", "side")

    @cached_property
    def onnx2(self) -> Path:
        return self._onnx("open2.onnx", "sigmoid", "side")

    @cached_property
    def nets(self) -> Path:
        return self._onnx("nets/u2net.onnx", "red", 16).parent

    @cached_property
    def nets2(self) -> Path:
        return self._onnx("nets2/u2net.onnx", "sigmoid", 16).parent

    @cached_property
    def coco(self) -> Path:
        """A data root whose labels are COCO's, with lists train and val."""
        made: Any = importlib.import_module("test_coco")
        return made.root.__wrapped__(self.folder) if hasattr(made.root, "__wrapped__") \
            else made.root.__pytest_wrapped__.obj(self.folder)

    @cached_property
    def coco2(self) -> Path:
        root = Path(shutil.copytree(self.coco, self.folder / "coco2"))
        path = root / "annotations/instances_val2014.json"
        path.write_text(path.read_text().replace('"category_id": 18', '"category_id": 90'))
        return root

    def _config(self, name: str, *changes: tuple[str, str]) -> Path:
        text = DEEPLAB.format(folder=self.folder, demo=self.demo)
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (self.folder / name).write_text(text)
        return self.folder / name

    @cached_property
    def config(self) -> Path:
        return self._config("config.yaml")

    @cached_property
    def config2(self) -> Path:
        return self._config("config2.yaml", ("LR: 0.01", "LR: 0.02"))

    def _deeplab(self, name: str, *overrides: str) -> Path:
        module = load("DeepLab-V2-PyTorch/main.py")
        launch(module.main, module.parse([
            "train", "-c", str(self.config), f"EXP.OUTPUT_DIR={self.folder / name}", *overrides]))
        return self.folder / name / "models/tiny/small/train_aug/checkpoint_final.pth"

    @cached_property
    def deeplab(self) -> Path:
        return self._deeplab("deeplab", "SOLVER.ITER_MAX=20", "SOLVER.ITER_SAVE=20",
                             "SOLVER.LR=0.1", "SOLVER.ASPP_FACTOR=0.1")

    @cached_property
    def deeplab2(self) -> Path:
        return self._deeplab("deeplab2", "EXP.SEED=1")

    @cached_property
    def plain(self) -> Path:
        """DeepLab's weights in the official format, which says nothing of the network."""
        path = self.folder / "plain.pth"
        checkpoint.export(self.deeplab, path)
        return path


def load(name: str) -> ModuleType:
    """A module by its dotted name, or by the path of a file that cannot be imported."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("deeplab_main", ROOT / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(*texts: str) -> list[str]:
    """The words of command lines, in which what comes later takes the place of the same option."""
    parts: dict[str, list[str]] = {}
    for text in texts:
        key = ""
        for word in shlex.split(text):
            positional = re.match(r"([a-z]+):(?!//)(.+)", word)
            if word.startswith("-"):
                key = ALTERNATIVES.get(word, word)
                parts[key] = [word]
            elif re.match(r"[A-Z]+\.[A-Z_]+=", word):
                parts[word.partition("=")[0]] = [word]
            elif positional:
                parts = {positional[1]: [positional[2]], **parts}
                parts[positional[1]] = [positional[2]]
            else:
                parts[key].append(word)
    return [word for part in parts.values() for word in part]


@pytest.fixture
def consumers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is handed to those who use it: loaders, the compiler, process pools, the network."""
    lists = ("workers", "batch", "order_seed", "sample_seed", "processes", "asked", "timeout",
             "kept")
    seen: dict[str, Any] = {name: [] for name in lists} | {"compiled": 0, "within": 0}
    mean_field = crf._mean_field

    def filtered(images: torch.Tensor, energies: torch.Tensor, params: crf.CRFParams
                 ) -> torch.Tensor:
        seen["kept"].append(energies.shape[1])
        return mean_field(images, energies, params)

    class Loader(torch.utils.data.DataLoader):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            seen["workers"].append(options["num_workers"])
            seen["batch"].append(len(next(iter(options["batch_sampler"]), ())))
            seen["order_seed"].append(getattr(options["batch_sampler"], "seed", None))
            seen["sample_seed"].append(getattr(self.dataset, "seed", None))

    write = torch.save

    def save(content: Any, *args: Any) -> None:
        seen["within"] += bool(isinstance(content, dict) and content.get("begun"))
        write(content, *args)

    def compile_nothing(function: Any) -> Any:
        seen["compiled"] += 1
        return function

    class Pool:
        def __init__(self, processes: int, **_: Any) -> None:
            seen["processes"].append(processes)

        def map(self, function: Callable, items: Any, chunksize: int) -> Iterator[Any]:
            return map(function, items)

        def shutdown(self) -> None:
            pass

    class Response:
        def __init__(self, url: str) -> None:
            self.content = b"\x80 weights" if url.endswith(".pth") else MASKS
            self.status_code, self.headers = 200, {"Content-Length": str(len(self.content))}

        def __enter__(self) -> "Response":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def iter_content(self, _: int) -> list[bytes]:
            return [self.content]

    def get(url: str, timeout: float, **_: Any) -> Response:
        seen["asked"].append(url)
        seen["timeout"].append(timeout)
        if "broken" in url:
            raise requests.ConnectionError("no one answers")
        return Response(url)

    monkeypatch.setattr("utils.loading.DataLoader", Loader)
    monkeypatch.setattr("utils.processes.ProcessPoolExecutor", Pool)
    monkeypatch.setattr("torch.save", save)
    monkeypatch.setattr("torch.compile", compile_nothing)
    monkeypatch.setattr("shutil.which", lambda *_: "/bin/c++")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    monkeypatch.setattr("requests.get", get)
    monkeypatch.setattr(crf, "_mean_field", filtered)
    monkeypatch.setattr("fetching.transport.BACKOFF", 0.0)
    for module in ("reporting.overview", "reporting.predictions"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=lambda: 0.0))
    return seen


def masks_zip() -> bytes:
    """The archive of an item of download.py."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("SegmentationClassAug/a.png", b"png")
    return buffer.getvalue()


MASKS = masks_zip()


def outcome(command: Command, places: Places, out: Path, seen: dict[str, Any], *texts: str
            ) -> dict[str, Any]:
    """Run the command with further words; all that it left and did, by name of the aspect."""
    if command.prepare:
        for name in ("run", "elsewhere"):
            shutil.copytree(getattr(places, command.prepare), out / name)
    (out / "strange").mkdir(parents=True)
    Image.new("L", (8, 8)).save(out / "strange" / "train_000000.png")  # of no command
    module = load(command.module)
    main = module.run if command.module == "datasets.command" else module.main

    def run(*texts: str) -> tuple[str, str | None]:
        words = [word.format_map(Braces(places, out)) for word in arguments(command.words, *texts)]
        seen["compiled"] = seen["within"] = 0
        for value in seen.values():
            if isinstance(value, list):  # of the making of places
                value.clear()
        torch.manual_seed(987)
        printed, status = StringIO(), None
        with redirect_stdout(printed):
            try:
                launch(main, module.parse([command.sub, *words] if command.sub else words))
            except SystemExit as error:
                status = str(error.code).replace(str(out), "OUT")
        return printed.getvalue().replace(str(out), "OUT"), status

    again = any("AGAIN" in text for text in texts)
    texts = tuple(text.replace("AGAIN", "") for text in texts)
    if again:
        run(texts[0])
        for path in files(out):
            os.utime(path, (0, 0))
    before = {path: path.stat().st_mtime_ns for path in files(out)}
    printed, status = run(*texts)
    rewritten = {path.relative_to(out).as_posix() for path in before
                 if not path.exists() or path.stat().st_mtime_ns != before[path]} if again else ()
    found = look_at(out, {} if again else before)
    consumers = {name: tuple(value) if isinstance(value, list) else value
                 for name, value in seen.items()}
    return found | consumers | {"printed": printed, "error": status, "rewritten": rewritten,
                                "generator": torch.initial_seed()}


class Braces(dict):
    """The names in braces."""

    def __init__(self, places: Places, out: Path) -> None:
        super().__init__(out=out)
        self.places = places

    def __missing__(self, name: str) -> object:
        return getattr(self.places, name)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*")
                  if path.is_file() and "tensorboard" not in path.parts)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def look_at(out: Path, before: dict[Path, int]) -> dict[str, Any]:
    """What files say, those from `before` left out."""
    seen: dict[str, Any] = {"contents": {}, "pixels": {}, "files": set()}
    for path in files(out):
        name = path.relative_to(out).as_posix()
        if before.get(path) == path.stat().st_mtime_ns:
            continue
        if "logs" in path.parts:
            if path.suffix == ".json":
                log = json.loads(path.read_text().replace(str(out), "OUT"))
                seen |= {f"log.{key}": value for key, value in log["options"].items()}
            continue
        seen["files"].add(name)
        if path.name in READERS:
            READERS[path.name](path, seen)
        elif path.suffix in (".png", ".jpg") and (image := picture(path)) is not None:
            kind = "pixels" if path.suffix == ".png" else "overlays"
            seen.setdefault(kind, {})[f"{image.mode}/{path.name}"] = digest(
                np.asarray(image).tobytes())
        elif path.suffix == ".json" and '"miou"' in (text := path.read_text()):
            result = json.loads(text.replace(str(out), "OUT"))
            seen["scores"] = {key: result.pop(key) for key in SCORES & result.keys()}
            seen["sweep"] = result.pop("sweep", None)
            seen |= {f"said.{key}": value for key, value in result.items()}
        elif path.suffix == ".html":
            seen["page"] = digest(path.read_bytes())
        elif path.suffix not in (".pth", ".npz", ".zip") and not path.name.startswith("."):
            seen["contents"][path.name] = digest(path.read_bytes().replace(bytes(out), b"OUT"))
    return seen


def picture(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except OSError:
        return None


def read_weights(path: Path, seen: dict[str, Any]) -> None:
    state = checkpoint.read(path).state
    seen["weights"] = digest(b"".join(name.encode() + value.numpy().tobytes()
                                      for name, value in sorted(state.items())))


def read_metrics(path: Path, seen: dict[str, Any]) -> None:
    rows = {row["epoch"]: row for row in json.loads(path.read_text())}
    seen["epochs"] = len(rows)
    for aspect, names in (("loss", ("loss", "map", "f1")), ("lr", ("lr",)),
                          ("scores", ("miou", "precision", "recall"))):
        seen[aspect] = {epoch: [row.get(name) for name in names] for epoch, row in rows.items()}


def read_record(path: Path, seen: dict[str, Any]) -> None:
    record, also = json.loads(path.read_text()), "also." * ("images" in seen)  # a second folder's
    for group in ("options", "inputs"):
        seen |= {f"{also}{group}.{key.replace(' ', '-')}": value
                 for key, value in record[group].items()}
    seen |= {also + key: json.dumps(record[key]) for key in ("images", "validation", "classes")}


READERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "last.pth": read_weights, "metrics.json": read_metrics, "provenance.json": read_record}


def changed(base: dict[str, Any], now: dict[str, Any]) -> set[str]:
    """The aspects that differ. Of files that only one of the two has, "files" speaks."""
    found = set()
    for name in base.keys() | now.keys():
        if name.removeprefix("also.").startswith(("options.", "inputs.")):
            # An option that one record has and the other has not; without a record, neither.
            old, new = base.get(name), now.get(name)
            if isinstance(old, dict) and isinstance(new, dict):
                found |= {f"{name}.{key}" for key in old if old[key] != new[key]}
                continue
            record = "also.images" if name.startswith("also.") else "images"
            differs = record in base.keys() & now.keys() and old != new
        elif name not in base or name not in now:
            continue
        elif isinstance(base[name], dict):
            differs = any(base[name][key] != now[name][key]
                          for key in base[name].keys() & now[name].keys())
        else:
            differs = base[name] != now[name]
        if differs:
            found.add(name)
    return found
