"""The labelling stages, from JPEG to PNG and score, with other options than their defaults.

The paper's own settings, at full size: tests/test_exact.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from golden_recipe import golden_state
from helpers import MACHINE, run_stage
from PIL import Image

from models.classifier import Classifier
from models.refine import RefineNet

WIDTH, SIDE, SCALES, SIDES = 0.125, 40, (0.79, 1.49), (32, 60)  # sides are rounded
KINDS = ("refine", "learnable")


@pytest.fixture(scope="module")
def weights(ten_images: Path) -> dict[str, reference.State]:
    """Of networks for three classes, whose maps differ; some go from below 0 to above 1."""
    images = torch.cat([reference.network_input(reference.photo(ten_images, name), SIDE)
                        for name, _ in reference.listed(ten_images, "train_aug")])
    result = {}
    for kind in KINDS:
        network = RefineNet(3, width=WIDTH) if kind == "refine" else Classifier(3, width=WIDTH)
        state = golden_state({name: value.shape for name, value in network.state_dict().items()})
        maps = reference.class_maps(state, images, kind)
        result[kind] = reference.calibrated(state, maps, ["extra_conv4"], mean=0.5, std=0.6)
    return result


def scores_of(root: Path, state: reference.State, name: str, classes: list[int],
              size: tuple[int, int] | None = None) -> np.ndarray:
    """(3, H, W), at the image's own size if none is given."""
    image, kind = reference.photo(root, name), KINDS["layer1_relu1.fc.0.weight" in state]
    return reference.localization_scores(
        lambda x: reference.class_maps(state, x, kind), kind == "learnable",
        reference.network_input(image, SIDE), SIDES, size or image.size[::-1], classes)


def label(stage: str, root: Path, folder: Path, state: reference.State, *options: object) -> None:
    """Run a stage with a network in the official format."""
    torch.save({"model": state, "optimizer": {}, "epoch": 1, "iter": 1, "miou": 0.5},
               folder / "official.pth")
    run_stage(stage, "--data-root", root, "--run-dir", folder, *MACHINE, "--image-size", SIDE,
              "--scales", *SCALES, "--checkpoint", folder / "official.pth", "--batch-size", 3,
              "--output-dir", folder / "output", *options)


def assert_stored(path: Path, scores: np.ndarray) -> None:
    """255 times, truncated; where a product is nearly whole, rounding may decide."""
    expected = (np.clip(scores, 0, 1) * 255).astype(np.uint8)
    difference = np.abs(reference.stored_maps(path).astype(int) - expected)
    assert difference.max() <= 1 and (difference == 0).mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_localization_maps(ten_images, weights, tmp_path, kind):
    label("make_localization_maps", ten_images, tmp_path, weights[kind])
    highest = 0.0
    for name, classes in reference.listed(ten_images, "train_aug"):
        scores = scores_of(ten_images, weights[kind], name, classes, (SIDE, SIDE))
        assert_stored(tmp_path / "output" / f"{name}.png", scores[classes])
        highest = max(highest, scores.max())
    assert (highest > 1) == (kind == "refine")  # what does not fit into a byte is cut off


# Network, options, and what they say: alpha, the background's score, and whether pixels may be 255.
CASES = {
    "alpha": ("refine", ("--alpha", "0.45"), 0.45, None, True),
    "classifier": ("learnable", ("--alpha", "0.7"), 0.7, None, True),
    "no-ignore": ("refine", ("--alpha", "0.1", "--no-ignore"), 0.1, None, False),
    "threshold": ("learnable", ("--alpha", "0.3", "--background", "threshold",
                                "--background-score", "0.6"), 0.3, 0.6, True)}


@pytest.mark.parametrize("case", CASES)
def test_pseudo_labels(ten_images, weights, tmp_path, case):
    kind, options, alpha, constant, ignore = CASES[case]
    label("make_pseudo_labels", ten_images, tmp_path, weights[kind], *options,
          "--save-maps", tmp_path / "maps")
    found = set()
    for name, classes in reference.listed(ten_images, "train_aug"):
        scores = scores_of(ten_images, weights[kind], name, classes)
        saliency = reference.pixels(ten_images / f"saliency_map/{name}.png")
        background = np.full(saliency.shape, constant) if constant else 1.0 - (saliency > 50)
        expected = reference.label_of(scores, background, alpha, ignore)
        ours = reference.pixels(tmp_path / "output" / f"{name}.png")
        assert (ours == expected).mean() >= 0.999
        assert_stored(tmp_path / "maps" / f"{name}.png", scores[classes])
        found |= set(np.unique(expected).tolist())
    assert found >= {0, 1, 2, 3} and (255 in found) == (ignore and constant is None)


def test_the_crf_starts_from_the_threshold_of_the_labels(ten_images, weights, tmp_path):
    """Which is the larger of the two: a score below either is background."""
    made = {}
    for alpha, constant in ((0.3, 0.3), (0.3, 0.7), (0.7, 0.3), (0.7, 0.7)):
        folder = tmp_path / f"{alpha} {constant}"
        folder.mkdir()
        label("make_pseudo_labels", ten_images, folder, weights["learnable"], "--no-ignore",
              "--background", "crf", "--alpha", alpha, "--background-score", constant)
        made[alpha, constant] = [reference.pixels(path).tolist()
                                 for path in sorted((folder / "output").glob("*.png"))]
    low, *high = made.values()
    assert len(low) == 10 and low != high[0] and high[0] == high[1] == high[2]


# evaluate.py

@pytest.fixture(scope="module")
def labels_dir(ten_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label PNGs that are right here and there, and open (255) elsewhere."""
    folder, rng = tmp_path_factory.mktemp("labels"), np.random.default_rng(1)
    for name, _ in reference.listed(ten_images, "train_aug"):
        mask = reference.pixels(ten_images / f"SegmentationClassAug/{name}.png")
        wrong = rng.choice(np.uint8((0, 1, 2, 3, 255)), mask.shape)
        drawn = np.where(rng.random(mask.shape) < 0.6, np.where(mask == 255, 1, mask), wrong)
        Image.fromarray(drawn).save(folder / f"{name}.png")
    return folder


def evaluated(root: Path, folder: Path, *options: object) -> dict:
    run_stage("evaluate", "--data-root", root, "--run-dir", folder, "--list", "train_aug",
              "--name", "result", *options)
    return json.loads((folder / "scores" / "result.json").read_text())


@pytest.mark.parametrize("unlabelled", ["miss", "skip"])
def test_scores_of_labels(ten_images, labels_dir, tmp_path, unlabelled):
    result = evaluated(ten_images, tmp_path, "--labels-dir", labels_dir, "--unlabelled", unlabelled)
    pairs = []
    for name, _ in reference.listed(ten_images, "train_aug"):
        drawn = reference.pixels(labels_dir / f"{name}.png")
        mask = reference.pixels(ten_images / f"SegmentationClassAug/{name}.png")
        pairs.append((drawn, np.where(drawn == 255, 255, mask) if unlabelled == "skip" else mask))
    reference.assert_scores(result, pairs)


@pytest.mark.parametrize("constant", [False, True])
def test_scores_of_maps(ten_images, weights, tmp_path, constant):
    """Maps smaller than the images; where there is no saliency, alpha is the background's score."""
    label("make_localization_maps", ten_images, tmp_path, weights["learnable"])
    alphas = (0.35, 0.55)
    result = evaluated(ten_images, tmp_path, "--maps-dir", tmp_path / "output", "--alpha", "0.35",
                       "--alphas", *alphas, *(("--background", "threshold") if constant else ()))
    pairs: dict[float, list] = {alpha: [] for alpha in alphas}
    for name, classes in reference.listed(ten_images, "train_aug"):
        stored = torch.from_numpy(reference.stored_maps(tmp_path / "output" / f"{name}.png"))
        salient = reference.pixels(ten_images / f"saliency_map/{name}.png") > 50
        scores = np.zeros((3, *salient.shape), np.float32)
        scores[classes] = F.interpolate(stored[None].float() / 255, salient.shape, mode="bilinear",
                                        align_corners=True)[0].numpy()
        for alpha in alphas:
            background = np.full(salient.shape, alpha) if constant else 1.0 - salient
            pairs[alpha].append((reference.label_of(scores, background, alpha, ignore=False),
                                 reference.pixels(ten_images / f"SegmentationClassAug/{name}.png")))
    reference.assert_scores(result, pairs[0.35])
    assert [row["alpha"] for row in result["sweep"]] == list(alphas)
    for row in result["sweep"]:
        assert row["miou"] == pytest.approx(reference.mean_iou(pairs[row["alpha"]]), abs=1e-5)
