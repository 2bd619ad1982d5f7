"""Every stage killed at its n-th file operation, for all n; then started again: the same bytes.

A stage runs in a forked child. An audit hook there counts what it does to files below the run
folder (open for writing, rename, remove, make a folder) and ends the process just before the n-th
of these, by SIGKILL, SIGINT or SIGTERM. `--every-crash-point` tries all points with all signals;
without it the gentler signals take every fifth, and what is no part of the labelling chain
(DeepLab, saliency, report, export) is killed at some.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.tensorboard  # noqa: F401
import torchvision  # noqa: F401
from helpers import MACHINE, ONNX_MACHINE, ROOT, run_stage

import datasets.command  # noqa: F401
import datasets.plan  # noqa: F401
import datasets.scoring  # noqa: F401
import datasets.voc  # noqa: F401
import labelling.crf  # noqa: F401
import labelling.image_scores  # noqa: F401
import labelling.summary  # noqa: F401
import labelling.validation  # noqa: F401
import labelling.visualize  # noqa: F401
import models  # noqa: F401
import utils.setup  # noqa: F401
import utils.training  # noqa: F401
from utils.files import output_folder
from utils.stage import free, hold_path, launch

DEEPLAB = ROOT / "DeepLab-V2-PyTorch"
sys.path.insert(0, str(DEEPLAB))
spec = importlib.util.spec_from_file_location("deeplab_main", DEEPLAB / "main.py")
deeplab = importlib.util.module_from_spec(spec)
spec.loader.exec_module(deeplab)

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1}  # event: paths it names
NETWORK = ("--width", "0.03", "--image-size", "16", "--init", "none", "--batch-size", "2",
           "--epochs", "2", "--milestones", "2", "--lr", "0.01", "--val-list", "none")
FOUR = ("--list", "four")
STAGES: dict[str, tuple[Any, ...]] = {
    "train_drs": (*FOUR, *NETWORK),
    "make_localization_maps": (*FOUR, "--batch-size", "2"),
    "train_refine": (*FOUR, *NETWORK, "--epochs", "1", "--save-every", "1e-9"),
    "make_pseudo_labels": (*FOUR, "--batch-size", "2", "--save-maps", "RUN/refined_maps"),
    "evaluate": (*FOUR, "--labels-dir", "RUN/pseudo_labels"),
}
CONFIG = """
EXP: {ID: tiny}
SPLIT: {TRAIN: four, VAL: four}
IMAGE: {CROP: 33, SCALES: [1.0]}
MODEL: {NAME: small, BLOCKS: [1, 1, 1, 1], WIDTH: 0.03}
SOLVER: {ITER_MAX: 2, ITER_SAVE: 1, ITER_SIZE: 1, BATCH_SIZE: 2}
RUN: {NUM_WORKERS: 0, DEVICE: cpu, AMP: off}
"""
SCORED = ("--labels-dir", "RUN/deeplab_labels", "--scores", "RUN/scores/deeplab.json")
OTHERS: dict[str, tuple[Any, ...]] = {
    "deeplab train": ("DATASET.LABEL_DIR=RUN/pseudo_labels",),
    "deeplab test": (*SCORED, "--save-logits"),
    "deeplab crf": ("--stored-logits", "--labels-dir", "RUN/deeplab_crf_labels", "--scores",
                    "RUN/scores/deeplab_crf.json"),
    "deeplab predict": ("--input", "ROOT/JPEGImages/val_000000.jpg", "--output-dir",
                        "RUN/predicted"),
    "report": (*FOUR, "--val-list", "four", "--rows", "2"),
    "export_labels": ("--labels-dir", "RUN/pseudo_labels", "--output-dir", "RUN/export",
                      "--format", "yolo"),
}
OTHERS |= {
    "export_labels voc": ("--labels-dir", "RUN/pseudo_labels", "--output-dir", "RUN/voc",
                          "--format", "voc"),
    "export_labels cvat": ("--labels-dir", "RUN/pseudo_labels", "--output-dir", "RUN/cvat",
                           "--format", "cvat"),
    "export_labels back": ("--import-cvat", "RUN/cvat/upload.zip", "--output-dir",
                           "RUN/corrected"),
    "datasets.plan": ("ROOT", "--run-dir", "RUN", "--val-share", "0.25"),
    "datasets.command": ("make-list", "ROOT", "--from-masks", "--num-workers", "0", "--output",
                         "RUN/list.txt"),
}
if importlib.util.find_spec("pycocotools"):
    OTHERS["export_labels coco"] = ("--labels-dir", "RUN/pseudo_labels", "--output-dir",
                                    "RUN/coco", "--format", "coco")
if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
    OTHERS = {"make_saliency": (*FOUR, "--model", "ROOT/net.onnx"), **OTHERS}

TIMES = rb'\d{1,2} [A-Z][a-z]+ 20\d\d, \d\d:\d\d|"written": ?[\d.]+'  # on a page
FREE = {"train_drs": 60_000, "make_pseudo_labels": 30_000, "deeplab test": 30_000,
        "export_labels": 20_000}  # bytes left on the disk
STEP = 11  # points from one kill of those to the next
LIMITS = {"train_drs": 3000, "make_localization_maps": 600, "make_pseudo_labels": 600}  # bytes


@pytest.fixture(scope="module")
def small(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a list of four images."""
    root = Path(shutil.copytree(demo, tmp_path_factory.mktemp("small") / "data"))
    lists = root / "ImageSets" / "Segmentation"
    lines = (lists / "train_aug.txt").read_text().splitlines()[:4]
    (lists / "four.txt").write_text("\n".join(lines) + "\n")
    (root / "deeplab.yaml").write_text(f"{CONFIG}DATASET: {{ROOT: {root}}}\n")
    if "make_saliency" in OTHERS:
        from test_saliency import network  # it skips its file where ONNX is missing

        network(root / "net.onnx", ("n", 3, 16, 16))
    return root


@pytest.fixture(scope="module")
def states(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Stage -> (run folder before it, run folder after it), of an unbroken chain."""
    folder = tmp_path_factory.mktemp("states")
    found, before = {}, folder / "start" / "run"  # the name is on the report's page
    before.mkdir(parents=True)
    for stage in (*STAGES, *OTHERS):
        after = Path(shutil.copytree(before, folder / stage / "run"))
        said = folder / f"{stage}.txt"
        assert in_child(lambda s=stage, a=after: run(s, small, a), said) == 0, said.read_text()
        found[stage] = (before, after)
        before = after
    return found


def run(stage: str, root: Path, folder: Path, *more: object) -> None:
    places = {"RUN": str(folder), "ROOT": str(root)}
    options = [*(STAGES | OTHERS)[stage], *more]
    for name, place in places.items():
        options = [str(option).replace(name, place) for option in options]
    name, _, command = stage.partition(" ")
    if name.startswith("datasets."):
        module = importlib.import_module(name)
        return launch(getattr(module, "run", module.main), module.parse(options))
    if name == "deeplab":
        return launch(deeplab.main, deeplab.parse([
            command, "-c", str(root / "deeplab.yaml"), f"EXP.OUTPUT_DIR={folder}", *options]))
    machine = () if name in ("evaluate", "report", "export_labels") else (
        ONNX_MACHINE if name == "make_saliency" else MACHINE)
    run_dir = () if name == "export_labels" else ("--run-dir", folder)
    run_stage(name, "--data-root", root, *run_dir, *machine, *options)


def in_child(function: Callable[[], None], output: Path | None = None) -> int:
    """Run in a forked process; its exit status, negative for the signal that ended it."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout = sys.stderr = open(output or os.devnull, "w", buffering=1)  # noqa: SIM115
        function()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        print(error.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def end_at(point: int, folder: Path, how: signal.Signals) -> None:
    """End this process just before its `point`-th file operation below `folder`."""
    below, seen = str(folder), 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        if event == "open":
            paths = args[:1] if isinstance(args[2], int) and args[2] & WRITING else ()
        else:
            paths = args[:EVENTS.get(event, 0)]
        if any(isinstance(path, str | os.PathLike) and str(path).startswith(below)
               for path in paths):
            seen += 1
            if seen == point:
                os.kill(os.getpid(), how)

    sys.addaudithook(hook)


def contents(folder: Path) -> dict[str, Any]:
    """What a run folder holds, without times and its own place: tensors of checkpoints, bytes of
    others."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or {"logs", "tensorboard"} & set(path.parts):
            continue
        if path.suffix == ".pth":
            found[name] = plain(torch.load(path, weights_only=True))
        elif path.suffix == ".json":
            found[name] = plain(json.loads(path.read_text().replace(str(folder), "RUN")))
        elif path.suffix == ".npz":
            with np.load(path) as arrays:  # the archive holds times
                found[name] = {key: array.tolist() for key, array in arrays.items()}
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:  # as that one
                found[name] = {member: archive.read(member) for member in archive.namelist()}
        else:
            found[name] = re.sub(TIMES, b"", path.read_bytes())
    return found


def plain(value: Any) -> Any:
    """The value with tensors as lists, without times and places."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()
                if k not in ("seconds", "made", "places", "folder")}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def crash_points(stage: str, root: Path, states: dict, tmp_path: Path, how: signal.Signals,
                 step: int) -> int:
    """Try the points 1, 1 + step, ...; returns how many there are."""
    before, after = states[stage]
    expected, point = contents(after), 1
    while True:
        folder = Path(shutil.copytree(before, tmp_path / f"{point}" / "run"))
        said = tmp_path / f"{point}.txt"

        def broken(point: int = point, folder: Path = folder) -> None:
            end_at(point, folder, how)
            run(stage, root, folder)

        status = in_child(broken, said)
        if how != signal.SIGKILL and status:
            assert status == 128 + how, said.read_text()
            left = [path.name for path in folder.rglob(".*") if path.is_file()]
            assert not left, (point, left)
        elif status:
            assert status == -signal.SIGKILL, said.read_text()
        again = in_child(lambda folder=folder: run(stage, root, folder), said)
        assert again == 0, (point, said.read_text())
        assert contents(folder) == expected, point
        assert not list(folder.rglob(".*.tmp*")), point
        shutil.rmtree(folder)
        if not status:
            return point
        point += step


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_anywhere(stage, small, states, tmp_path):
    assert crash_points(stage, small, states, tmp_path, signal.SIGKILL, 1) > 8


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("stage", OTHERS)
def test_others_killed(stage, how, small, states, tmp_path, request):
    every = request.config.getoption("--every-crash-point")
    if how == signal.SIGTERM and not every:
        pytest.skip("with --every-crash-point")
    crash_points(stage, small, states, tmp_path, how, 1 if every else STEP)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("stage", ["train_drs", "make_pseudo_labels"])
def test_interrupted_anywhere(stage, how, small, states, tmp_path, request):
    every = request.config.getoption("--every-crash-point")
    crash_points(stage, small, states, tmp_path, how, 1 if every else 5)


@pytest.mark.parametrize("stage", ["train_drs", "make_localization_maps", "make_pseudo_labels"])
def test_a_full_disk_is_one_line_and_keeps_what_was_there(stage, small, states, tmp_path):
    """A limit on the size of files stands in for the disk: writes fail in the same places."""
    before, after = states[stage]
    folder = Path(shutil.copytree(before, tmp_path / "run"))
    said = tmp_path / "said.txt"

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMITS[stage], hard))
        try:
            run(stage, small, folder)
        except SystemExit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # the error wants to be read
            raise

    # The log may be cut off as well; the stage must not hang or leave a trace.
    assert in_child(full, said) == 1, said.read_text()
    text = said.read_text()
    assert "Traceback" not in text and "cannot write" in text, text
    assert not [path for path in folder.rglob(".*") if path.is_file()]
    assert in_child(lambda: run(stage, small, folder), said) == 0, said.read_text()
    assert contents(folder) == contents(after)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of its own, of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place],
                                      capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train_drs", "make_pseudo_labels", "deeplab test",
                                   "export_labels"])
def test_a_disk_that_is_really_full(stage, small, states, disk, tmp_path):
    before, after = states[stage]
    folder, said = disk / "run", tmp_path / "said.txt"
    size = sum(path.stat().st_size // 4096 * 4096 + 8192 for path in before.rglob("*"))
    remount(disk, size + 4_000_000)
    shutil.copytree(before, folder)
    room = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(bytes(room - FREE[stage]))
    held = contents(folder)
    assert in_child(lambda: run(stage, small, folder), said) == 1, said.read_text()
    text = said.read_text()
    assert "Traceback" not in text and text.splitlines()[-1].startswith("error: "), text
    assert "No space left" in text.splitlines()[-1], text
    left = [path.name for path in folder.rglob(".*") if path.is_file()]
    assert not left, left
    now = contents(folder)
    assert all(now[name] == value for name, value in held.items() if name.endswith(".png"))
    (disk / "ballast").unlink()
    assert in_child(lambda: run(stage, small, folder), said) == 0, said.read_text()
    assert contents(folder) == contents(after)


def remount(place: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)


def without_privileges() -> None:
    """Let root's processes heed permissions as others do (Linux)."""
    if os.geteuid() == 0:
        libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
        sets = (ctypes.c_uint32 * 6)()
        if libc.capget(header, sets):
            sys.exit(77)
        sets[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if libc.capset(header, sets):
            sys.exit(77)


def read_only(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="permissions of root")
@pytest.mark.parametrize("stage", [*STAGES, *OTHERS])
def test_a_read_only_run_folder_is_one_line(stage, small, states, tmp_path):
    """Before the work, not after it; and the data root is never written to."""
    before, _ = states[stage]
    folder, said = Path(shutil.copytree(before, tmp_path / "run")), tmp_path / "said.txt"
    data = Path(shutil.copytree(small, tmp_path / "data"))
    (data / "deeplab.yaml").write_text(f"{CONFIG}DATASET: {{ROOT: {data}}}\n")
    read_only(folder)
    read_only(data)
    held, hidden = contents(folder), set(folder.rglob(".*"))

    def unprivileged() -> None:
        without_privileges()
        run(stage, data, folder)

    status = in_child(unprivileged, said)
    if status == 77:
        pytest.skip("privileges cannot be given up here")
    text = said.read_text()
    assert status == 1 and "Traceback" not in text, text
    last = text.splitlines()[-1]
    assert last.startswith("error: ") and str(folder) in last and "Permission denied" in last, text
    assert contents(folder) == held
    assert set(folder.rglob(".*")) == hidden


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="permissions of root")
def test_a_read_only_data_root_is_all_that_is_needed(small, states, tmp_path):
    data = Path(shutil.copytree(small, tmp_path / "data"))
    (data / "deeplab.yaml").write_text(f"{CONFIG}DATASET: {{ROOT: {data}}}\n")
    read_only(data)
    for stage in ("make_pseudo_labels", "deeplab train"):
        folder = Path(shutil.copytree(states[stage][0], tmp_path / stage / "run"))
        said = tmp_path / "said.txt"

        def unprivileged(stage: str = stage, folder: Path = folder) -> None:
            without_privileges()
            run(stage, data, folder)

        assert in_child(unprivileged, said) in (0, 77), said.read_text()


LOCKS = [  # stage, a lock that it holds, whether it sweeps the folder of the lock
    ("train_drs", "classifier/.lock", True),
    ("make_localization_maps", "localization_maps/.lock", True),
    ("train_refine", "refine/.lock", True), ("make_pseudo_labels", "pseudo_labels/.lock", True),
    ("make_pseudo_labels", "refined_maps/.lock", True), ("evaluate", "scores/.lock", True),
    ("make_saliency", "saliency/.lock", True), ("report", ".lock", True),
    ("deeplab train", "models/tiny/small/four/.lock", True),
    ("deeplab test", "scores/tiny/small/four/.lock", True),
    ("deeplab test", "deeplab_labels/.lock", True),
    ("deeplab test", "features/tiny/small/four/logits/.lock", True),
    ("deeplab crf", "scores/tiny/small/four/.lock", True),
    ("deeplab crf", "deeplab_crf_labels/.lock", True), ("deeplab predict", "predicted/.lock", True),
    ("export_labels", ".export.lock", False), ("export_labels voc", ".voc.lock", False),
    ("export_labels cvat", ".cvat.lock", False), ("export_labels coco", ".coco.lock", False),
    ("export_labels back", ".corrected.lock", False)]


@pytest.mark.parametrize(("stage", "lock", "sweeps"), LOCKS, ids=lambda value: str(value))
def test_two_at_once_are_told_apart(stage, lock, sweeps, small, states, tmp_path):
    if stage not in states:
        pytest.skip("a package is not installed")
    before, _ = states[stage]
    folder = Path(shutil.copytree(before, tmp_path / "run"))
    output_folder((folder / lock).parent)
    held = hold_path(folder / lock, "test")
    said = tmp_path / "said.txt"
    live = (folder / lock).with_name(".last.1-1.tmp.pth")
    live.write_bytes(b"being written by the first")
    there = {path: path.lstat() for path in folder.rglob("*") if "logs" not in path.parts}
    assert in_child(lambda: run(stage, small, folder), said) == 1
    assert f"in use by process {os.getpid()} on " in said.read_text().splitlines()[-1]
    now = {path: path.lstat() for path in folder.rglob("*") if "logs" not in path.parts}
    assert {path for path in now.keys() - there.keys() if path.is_file()} == set()
    assert all(now[path].st_mtime_ns == stat.st_mtime_ns for path, stat in there.items()
               if path.is_file())
    free(held)
    assert in_child(lambda: run(stage, small, folder), said) == 0, said.read_text()
    assert live.exists() != sweeps


def test_two_that_make_the_demo_data_are_told_apart(tmp_path):
    import datasets.synthetic as synthetic

    said, held = tmp_path / "said.txt", hold_path(tmp_path / ".demo.lock", "test")
    args = synthetic.parse([str(tmp_path / "demo"), "--train", "1", "--val", "1", "--single", "1"])
    assert in_child(lambda: launch(synthetic.main, args), said) == 1
    assert f"in use by process {os.getpid()} on " in said.read_text().splitlines()[-1]
    assert not (tmp_path / "demo").exists()
    free(held)


def test_a_lock_falls_with_its_process(tmp_path):
    def take_and_die() -> None:
        hold_path(tmp_path / ".lock", "test")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(take_and_die) == -signal.SIGKILL
    free(hold_path(tmp_path / ".lock", "test"))
    assert not list(tmp_path.iterdir())
