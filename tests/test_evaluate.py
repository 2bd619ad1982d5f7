"""Scoring: the sweep equals the rule at each alpha, threads and sizes change nothing."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from helpers import ENVIRONMENT, ROOT, run_stage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.images import read_image
from datasets.layout import DataRoot
from datasets.scoring import MapCounter, image_size, resized_scores
from labelling.labels import read_label
from labelling.maps import load_maps, save_maps
from labelling.metrics import ConfusionMatrix, Scores, mean_iou
from labelling.rule import background_scores, fuse
from labelling.sweep import ALPHAS, claims, sweep_counts
from utils.threads import ordered_map

SIZE = (9, 11)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.sets(st.integers(0, 4)),
       saliency=st.booleans(), exact=st.booleans())
def test_the_sweep_is_the_rule_at_each_alpha(seed, classes, saliency, exact):
    rng = np.random.default_rng(seed)
    classes = sorted(classes)
    # Multiples of 1/20 hit the alphas themselves, 1 and each other.
    levels = rng.integers(0, 21, (len(classes), *SIZE)) / 20 if exact else \
        rng.random((len(classes), *SIZE))
    scores = torch.from_numpy(levels.astype(np.float32))
    salient = rng.random(SIZE) > 0.4 if saliency else None
    mask = rng.choice([0, 1, 2, 3, 4, 5, 255], SIZE).astype(np.uint8)
    alphas = [0.0, 0.05, 0.2, 0.25, 0.6, 1.0]
    label, level = claims(scores, classes, salient, alphas)
    counts = sweep_counts((label, level), mask, 6, len(alphas))
    for i, alpha in enumerate(alphas):
        background = background_scores(
            SIZE, None if salient is None else torch.from_numpy(salient), alpha)
        expected = fuse(scores, classes, background, alpha=alpha, ignore=False).numpy()
        assert np.array_equal(np.where(level > i, label, 0), expected)
        matrix = ConfusionMatrix(6)
        matrix.update(expected, mask)
        assert np.array_equal(counts[i], matrix.counts.numpy())


def test_the_mask_is_checked_in_a_sweep_too():
    claimed = claims(torch.zeros(1, *SIZE), [0], None, [0.2])
    with pytest.raises(ValueError, match="ground truth holds label 7"):
        sweep_counts(claimed, np.full(SIZE, 7, np.uint8), 3, 1)
    with pytest.raises(ValueError, match="99 pixels, ground truth 4"):
        sweep_counts(claimed, np.zeros((2, 2), np.uint8), 3, 1)


def test_many_classes_do_not_overflow():
    scores = torch.ones(1, *SIZE)
    counts = sweep_counts(claims(scores, [253], None, ALPHAS), np.full(SIZE, 254, np.uint8), 255,
                          len(ALPHAS))
    assert (counts[:, 254, 254] == 99).all() and counts.sum() == 99 * len(ALPHAS)


def test_vocs_classes_do_not_overflow():
    """21 labels at 13 alphas and none: 294 codes, with label 255 more than fit into 16 bits."""
    rng = np.random.default_rng(0)
    mask = rng.choice([*range(21), 255], SIZE).astype(np.uint8)
    label = rng.integers(0, 21, SIZE, dtype=np.uint8)
    level = rng.integers(0, 14, SIZE, dtype=np.uint8)
    counts = sweep_counts((label, level), mask, 21, 13)
    for i in range(13):
        matrix = ConfusionMatrix(21)
        matrix.update(np.where(level > i, label, 0), mask)
        assert np.array_equal(counts[i], matrix.counts.numpy())


def test_stored_maps_are_resized_as_the_network_resizes():
    maps = np.array([[[0, 100], [200, 255]]], np.uint8)
    scores = resized_scores(maps, (3, 5))
    assert torch.allclose(scores[0, ::2, ::4] * 255, torch.from_numpy(maps[0]).float())
    assert torch.allclose(scores[0, 0] * 255, torch.tensor([0.0, 25, 50, 75, 100]))


def test_scores_of_maps(demo, run, tmp_path):
    """The stage, from files to JSON, against the plain rule; maps smaller than the images."""
    run_stage("evaluate", "--data-root", demo, "--run-dir", tmp_path, "--maps-dir",
              run / "localization_maps", "--list", "train_aug", "--name", "drs", "--alpha", "0.13")
    result = json.loads((tmp_path / "scores" / "drs.json").read_text())
    root = DataRoot(demo)
    matrices = {alpha: ConfusionMatrix(4) for alpha in (0.13, *ALPHAS)}
    for entry in root.entries("train_aug"):
        name = f"{entry.id}.png"
        maps, classes = load_maps(run / "localization_maps" / name, 3)
        mask = read_label(demo / "SegmentationClassAug" / name)
        saliency = torch.from_numpy(read_label(demo / "saliency_map" / name) > 50)
        for alpha, matrix in matrices.items():
            label = fuse(resized_scores(maps, mask.shape), classes,
                         background_scores(mask.shape, saliency, 1), alpha=alpha, ignore=False)
            alone = matrix.update(label, mask)
            if alpha == 0.13:
                assert result["per_image"][entry.id] == pytest.approx(alone, abs=1e-4)
    assert result["alpha"] == 0.13 and result["miou"] == matrices[0.13].scores().miou
    assert [row["alpha"] for row in result["sweep"]] == list(ALPHAS)
    for row in result["sweep"]:
        scores = matrices[row["alpha"]].scores()
        assert (row["miou"], row["precision"], row["recall"]) == (
            scores.miou, scores.precision, scores.recall)


def test_an_image_without_ground_truth_has_no_score_of_its_own():
    assert np.isnan(mean_iou(np.zeros((3, 4), np.int64)))
    assert Scores.of(np.zeros((3, 4), np.int64)).miou == 0


def test_an_image_without_classes(demo, tmp_path):
    entry = DataRoot(demo).entries("train_aug")[0]
    save_maps(tmp_path / f"{entry.id}.png", np.zeros((0, 8, 8), np.uint8), [])
    counts = MapCounter(DataRoot(demo), tmp_path, demo / "SegmentationClassAug", None,
                        [0.0, 0.5])(entry.id)
    known = int((read_label(demo / "SegmentationClassAug" / f"{entry.id}.png") != 255).sum())
    assert (counts[:, :, 0].sum(axis=1) == known).all() and counts.sum() == 2 * known


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_decoded_image(tmp_path, orientation):
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif)
    decoded, found = read_image(tmp_path / "a.jpg")
    assert image_size(tmp_path / "a.jpg") == ((decoded.height, decoded.width), found)


def test_ordered_map_keeps_order_and_bounds():
    running, most, lock = 0, 0, threading.Lock()
    drawn = []

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return number

    def numbers():
        for number in range(60):
            drawn.append(number)
            yield number

    results = ordered_map(work, numbers(), threads=3)
    assert next(results) == 0 and len(drawn) <= 13
    assert list(results) == list(range(1, 60)) and most == 3


def test_ordered_map_ends_with_the_first_error():
    def work(number: int) -> int:
        if number in (5, 9):
            raise ValueError(str(number))
        return number

    done = []
    with pytest.raises(ValueError, match="5"):
        done.extend(ordered_map(work, range(1000), threads=2))
    for thread in threading.enumerate():
        if "ordered_map" in thread.name:
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize("script", ["evaluate.py", "report.py"])
def test_help_does_not_wait_for_torch(script):
    code = (f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
            f"try: runpy.run_path('{script}', run_name='__main__')\n"
            "except SystemExit as end: assert not end.code\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, check=True,
                   stdout=subprocess.DEVNULL, timeout=60)
