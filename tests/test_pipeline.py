"""Every stage through its real script, in processes of their own, on a tiny demo data set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import MACHINE, TRAINING, files_below, run_script, run_stage
from PIL import Image

from datasets.layout import DataRoot
from labelling.labels import read_label
from labelling.maps import load_maps
from labelling.metrics import ConfusionMatrix
from utils.checkpoint import read

NAMES = [f"train_{i:06d}.png" for i in range(8)]
NETWORK = (*MACHINE, *TRAINING, "--batch-norm")


@pytest.fixture(scope="module")
def whole(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the whole chain, as run.sh has it."""
    folder = tmp_path_factory.mktemp("whole")
    common = ("--data-root", demo, "--run-dir", folder)
    before = files_below(demo)
    run_script("train_drs.py", *common, *NETWORK, "--list", "single", "--val-list", "none",
               "--drs", "none", "--batch-size", "3", "--output-dir", folder / "pretrain")
    run_script("train_drs.py", *common, *NETWORK, "--init", folder / "pretrain" / "last.pth",
               "--num-workers", "1")
    run_script("make_localization_maps.py", *common, *MACHINE)
    run_script("train_refine.py", *common, *NETWORK, "--init", folder / "pretrain" / "last.pth")
    run_script("make_pseudo_labels.py", *common, *MACHINE, "--save-maps", folder / "refined_maps")
    assert files_below(demo) == before  # nothing is written into the data set
    return folder


@pytest.mark.slow
def test_what_the_stages_leave(whole, demo):
    found = {name for name in files_below(whole) if "tensorboard" not in name}
    expected = {f"{stage}/{name}" for stage in ("pretrain", "classifier", "refine")
                for name in ("best.pth", "last.pth", "metrics.json", "provenance.json")}
    expected |= {f"{stage}/{name}" for stage in ("localization_maps", "pseudo_labels")
                 for name in (*NAMES, "provenance.json")}
    expected |= {f"refined_maps/{name}" for name in (*NAMES, "provenance.json")}
    assert found == expected
    for stage in ("pretrain", "classifier", "refine"):
        assert list((whole / stage / "tensorboard").iterdir())
        history = json.loads((whole / stage / "metrics.json").read_text())
        assert [row["epoch"] for row in history] == [1, 2]
        assert all(np.isfinite(row["loss"]) for row in history)
    recorded = json.loads((whole / "logs" / "classifier.json").read_text())
    assert recorded["options"]["drs"] == "learnable" and "torch" in recorded["versions"]
    log = (whole / "logs" / "localization_maps.log").read_text()
    assert f"reads images: {demo / 'JPEGImages'}" in log
    assert f"writes {whole / 'localization_maps'}" in log


@pytest.mark.slow
def test_what_is_in_the_files(whole, demo):
    root = DataRoot(demo)
    assert read(whole / "classifier" / "best.pth").classes == root.classes
    assert read(whole / "refine" / "last.pth").network["network"] == "refine"
    pretrained, trained = (read(whole / stage / "last.pth").state
                           for stage in ("pretrain", "classifier"))
    assert not torch.equal(pretrained["extra_conv4.weight"], trained["extra_conv4.weight"])
    for entry in root.entries("train_aug"):
        with Image.open(root.image(entry.id)) as image:
            size = (image.height, image.width)
        for folder, expected in (("localization_maps", (32, 32)), ("refined_maps", size)):
            maps, classes = load_maps(whole / folder / f"{entry.id}.png", 3)
            assert classes == list(entry.labels)
            assert maps.shape == (len(classes), *expected)
        label = read_label(whole / "pseudo_labels" / f"{entry.id}.png")
        assert label.shape == size
        assert set(np.unique(label)) <= {0, 255, *(c + 1 for c in entry.labels)}


@pytest.mark.slow
def test_scores_of_labels(whole, demo):
    done = run_script("evaluate.py", "--data-root", demo, "--run-dir", whole, "--labels-dir",
                      whole / "pseudo_labels", "--list", "train_aug", "--name", "ours")
    result = json.loads((whole / "scores" / "ours.json").read_text())
    matrix = ConfusionMatrix(4)
    for name in NAMES:
        matrix.update(read_label(whole / "pseudo_labels" / name),
                      read_label(demo / "SegmentationClassAug" / name))
    scores = matrix.scores()
    assert result["miou"] == scores.miou and result["class_iou"] == scores.class_iou
    assert result["precision"] == scores.precision and result["recall"] == scores.recall
    assert result["pixel_accuracy"] == scores.pixel_accuracy
    assert result["images"] == 8 and result["alpha"] is None
    assert result["labels"] == ["background", *DataRoot(demo).classes]
    assert f"mIoU {100 * scores.miou:.2f}" in done.stdout


@pytest.mark.slow
def test_scores_of_maps_over_alphas(whole, demo, capsys):
    run_stage("evaluate", "--data-root", demo, "--run-dir", whole, "--maps-dir",
              whole / "localization_maps", "--list", "train_aug", "--background", "threshold",
              "--alphas", "0.1", "0.5", "1")
    table = capsys.readouterr().out
    result = json.loads((whole / "scores" / "localization_maps.json").read_text())
    sweep = {row["alpha"]: row["miou"] for row in result["sweep"]}
    assert list(sweep) == [0.1, 0.5, 1]
    assert result["alpha"] == 0.2  # the result is that at --alpha, not the best of the sweep
    assert table.count("\n 0.") + table.count("\n 1.") == 3 and table.count("best") == 1
    # At alpha 1 nothing exceeds the background's score: only background is left.
    assert sweep[1] < 0.3


def test_masks_score_full_marks(demo, tmp_path):
    run_stage("evaluate", "--data-root", demo, "--run-dir", tmp_path, "--labels-dir",
              demo / "SegmentationClassAug", "--list", "train_aug")
    result = json.loads((tmp_path / "scores" / "SegmentationClassAug.json").read_text())
    assert result["miou"] == result["pixel_accuracy"] == result["precision"] == 1
