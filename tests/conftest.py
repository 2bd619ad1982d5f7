"""A tiny demo data set and a tiny run on it, made once a session and only read by the tests."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import MACHINE, TRAINING, run_stage
from hypothesis import settings
from PIL import Image

from datasets.synthetic import generate

# As in the processes that the tests start, so that figures can be compared bit for bit.
torch.set_num_threads(1)
# A shell that starts the tests with & has them, and all they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples each time, however slow the machine.
settings.register_profile("drs", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("drs")


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """The same random numbers whatever ran before in this process, and others with --seed."""
    torch.manual_seed(request.config.option.seed)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root: 3 classes, 8 training images, 2 for evaluation, 3 of single objects."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    generate(folder, num_classes=3, train=8, val=2, single=3, size=48, workers=1)
    return folder


@pytest.fixture(scope="session")
def ten_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of 10 training images, no whole number of batches, and 8 to choose a best epoch
    by, of which 4 are not among them. Saliency is faint here and there."""
    folder = tmp_path_factory.mktemp("ten") / "data"
    generate(folder, num_classes=3, train=10, val=4, single=1, size=64, workers=1)
    lists = folder / "ImageSets" / "Segmentation"
    training, held_out = ((lists / f"{name}.txt").read_text().splitlines(keepends=True)
                          for name in ("train_aug", "val"))
    (lists / "train.txt").write_text("".join([*held_out, *training[-4:]]))
    for path in (folder / "saliency_map").glob("*.png"):
        with Image.open(path) as image:
            saliency = np.array(image)
        saliency[::2] = saliency[::2].clip(min=50)  # faint: no foreground yet
        Image.fromarray(saliency).save(path)
    return folder


@pytest.fixture
def own_demo(demo: Path, tmp_path: Path) -> Path:
    """A copy of the data root that a test may spoil."""
    return Path(shutil.copytree(demo, tmp_path / "data"))


@pytest.fixture(scope="session")
def run(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with classifier/, localization_maps/ and refine/, made on `demo`."""
    folder = tmp_path_factory.mktemp("run")
    common = ("--data-root", demo, "--run-dir", folder, *MACHINE)
    run_stage("train_drs", *common, *TRAINING)
    run_stage("make_localization_maps", *common)
    run_stage("train_refine", *common, *TRAINING)
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    """Other random numbers, and longer versions of the tests that break things."""
    parser.addoption("--mutations", type=int, default=1, metavar="N",
                     help="try N times as many damaged files")
    parser.addoption("--seed", type=int, default=0, help="of each test's random numbers")
    parser.addoption("--every-crash-point", action="store_true",
                     help="interrupt stages at every file operation, with every signal")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Tests on the GPU run one after the other: they would share its memory."""
    return 1 if config.option.markexpr == "cuda" else None
