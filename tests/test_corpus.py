"""Every bad input of `corpus.CASES` ends in one line, soon, and nothing is written."""

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from corpus import CASES, LIST_NAMES
from helpers import ROOT, soon

from datasets.layout import DataRoot
from utils.stage import launch

HERE = ROOT / "DeepLab-V2-PyTorch"
sys.path.insert(0, str(HERE))
spec = importlib.util.spec_from_file_location("deeplab_main", HERE / "main.py")
deeplab = importlib.util.module_from_spec(spec)
spec.loader.exec_module(deeplab)

CONFIG = """
EXP: {{ID: tiny, OUTPUT_DIR: {run}/deeplab}}
DATASET: {{ROOT: {root}, LABEL_DIR: {root}/SegmentationClassAug}}
SPLIT: {{TRAIN: train, VAL: train}}
IMAGE: {{CROP: 33, SCALES: [1.0]}}
MODEL: {{NAME: small, BLOCKS: [1, 1, 1, 1], WIDTH: 0.03}}
SOLVER: {{ITER_MAX: 1, ITER_SAVE: 1, ITER_SIZE: 1, BATCH_SIZE: 2}}
RUN: {{NUM_WORKERS: 0, DEVICE: cpu, AMP: off}}
"""


def execute(command: tuple[str, ...]) -> None:
    if command[0] == "deeplab":
        return launch(deeplab.main, deeplab.parse([command[3], *command[1:3], *command[4:]]))
    module = importlib.import_module(command[0])
    launch(getattr(module, "run", module.main), module.parse(list(command[1:])))


@pytest.fixture(scope="module")
def whole(demo: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder with DeepLab's training and its stored logits."""
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("whole") / "run"))
    (folder / "deeplab.yaml").write_text(CONFIG.format(run=folder, root=demo))
    for stage in (("train",), ("test", "--save-logits")):
        execute(("deeplab", "-c", str(folder / "deeplab.yaml"), *stage))
    return folder


def files(*folders: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all that is no log."""
    found = {}
    for folder in folders:
        for at, _, names in os.walk(folder):
            if not {"logs", "tensorboard"} & set(Path(at).parts):
                for path in (Path(at) / name for name in names):
                    found[str(path)] = (path.lstat().st_size, path.lstat().st_mtime_ns)
    return found


@pytest.fixture
def place(demo: Path, whole: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The path of a name in the table, in copies that may be spoilt."""
    folders = {"ROOT": tmp_path / "data", "RUN": tmp_path / "run", "TMP": tmp_path / "tmp"}
    shutil.copytree(demo, folders["ROOT"])
    shutil.copytree(whole, folders["RUN"])
    folders["TMP"].mkdir()
    (folders["RUN"] / "deeplab.yaml").write_text(
        CONFIG.format(run=folders["RUN"], root=folders["ROOT"]))

    def of(name: str) -> Path:
        first, _, rest = name.partition("/")
        return folders[first] / rest

    return of


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_line(name, place, capsys):
    case = CASES[name]
    case.spoil(place)
    command = [str(word) for word in case.command]
    for folder in ("ROOT", "RUN", "TMP"):
        command = [word.replace(folder, str(place(folder)), 1) if word.partition("=")[2].startswith(
            folder) or word.startswith(folder) else word for word in command]
    folders = [place(folder) for folder in ("ROOT", "RUN", "TMP")]
    before = files(*folders)
    with soon(60), pytest.raises(SystemExit) as caught:
        execute(tuple(command))
    lines = capsys.readouterr().err.splitlines()
    if case.status == 2:
        assert caught.value.code == 2
        message = lines.pop()
    else:  # a text: the interpreter prints it to stderr and exits with status 1
        message = caught.value.code
        assert isinstance(message, str) and message.startswith("error: "), message
    assert "\n" not in message and len(message) < 2000
    assert all(word in message for word in case.words.split()), message
    assert not [line for line in lines if "error: " in line.lower() or "Traceback" in line]
    assert files(*folders) == before


def test_the_table_is_a_corpus():
    assert len(CASES) >= 120


def test_what_is_no_list_is_not_there(demo):
    assert not [name for name in LIST_NAMES if DataRoot(demo).has_list(name)]
