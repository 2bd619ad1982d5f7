"""From a JPEG to the label, against the method written out again in Pillow, NumPy and torch.

The networks are files in the official format, narrower than the paper's, filled by the golden
recipe. Nothing of ours is in the reference: neither the data set nor the networks nor the rule.
"""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from golden_recipe import golden_state
from helpers import MACHINE, run_stage
from PIL import Image, ImageFilter

from labelling.labels import read_label
from models.classifier import Classifier
from models.refine import RefineNet

AGREEMENT = 0.9995  # of the pixels of every image
WIDTH, SCALES, ALPHA = 0.25, (256, 320, 384), 0.2
PHOTOS = {"2007_000001": ((500, 375), (0, 14)), "2007_000002": ((375, 500), (7,)),
          "2007_000003": ((333, 487), (3, 8, 19)), "2007_000004": ((97, 71), (11,))}
NETWORKS = {"refine": (lambda: RefineNet(width=WIDTH), {}),
            "learnable": (lambda: Classifier(drs="learnable", width=WIDTH), {}),
            "fixed": (lambda: Classifier(drs="fixed", delta=0.55, width=WIDTH),
                      {"network": "classifier", "drs": "fixed", "delta": 0.55})}


def expected_label(state: reference.State, kind: str, root: Path, name: str,
                   classes: tuple[int, ...]) -> np.ndarray:
    """Step 3 of the method, with all 20 classes, as the official code goes about it."""
    image = reference.photo(root, name)
    scores = reference.localization_scores(
        lambda x: reference.class_maps(state, x, kind), kind != "refine",
        reference.network_input(image, 320), SCALES, image.size[::-1], classes)
    salient = reference.pixels(root / f"saliency_map/{name}.png") > 50
    return reference.label_of(scores, 1.0 - salient, ALPHA)


def make_labels(root: Path, network: Path, told: dict, folder: Path) -> None:
    """Label PNGs by make_pseudo_labels.py, in full float32."""
    options = [part for name, value in told.items() for part in (f"--{name}", value)]
    run_stage("make_pseudo_labels", "--data-root", root, "--run-dir", folder.parent, "--output-dir",
              folder, *MACHINE, "--checkpoint", network, *options)


def photo_like(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Shading, edges at several scales and grain: what a resize has to get right."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([128 + 60 * np.sin(rows / rng.uniform(20, 90) + columns /
                                          rng.uniform(20, 90)) for _ in range(3)], -1)
    for _ in range(25):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        inside = ((columns - x) / rng.uniform(4, 80)) ** 2 + \
            ((rows - y) / rng.uniform(4, 80)) ** 2 < 1
        picture[inside] = rng.uniform(0, 255, 3)
    picture += rng.normal(0, 12, picture.shape)
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(0.7))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOC root of JPEGs with saliency maps."""
    root, rng = tmp_path_factory.mktemp("exact") / "VOC2012", np.random.default_rng(5)
    for folder in ("JPEGImages", "saliency_map", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    lines = []
    for name, (size, classes) in PHOTOS.items():
        photo_like(size, rng).save(root / "JPEGImages" / f"{name}.jpg", quality=90)
        blobs = Image.fromarray(rng.integers(0, 101, (5, 7), dtype=np.uint8))
        blobs.resize(size, Image.Resampling.BICUBIC).save(root / "saliency_map" / f"{name}.png")
        lines.append(f"{name} {' '.join(map(str, classes))}\n")
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize("kind", NETWORKS)
def test_labels_from_jpegs_are_those_of_the_method(photos, tmp_path, kind):
    make, told = NETWORKS[kind]
    state = golden_state({name: value.shape for name, value in make().state_dict().items()})
    torch.save({"model": state, "optimizer": {}, "epoch": 30, "iter": 1, "miou": 0.7},
               tmp_path / "official.pth")
    make_labels(photos, tmp_path / "official.pth", told, tmp_path / "run" / "labels")
    for name, (size, classes) in PHOTOS.items():
        expected = expected_label(state, kind, photos, name, classes)
        label = read_label(tmp_path / "run" / "labels" / f"{name}.png")
        assert label.shape == size[::-1]
        # The figure tells something: no label takes nearly all of the picture.
        assert np.unique(expected, return_counts=True)[1].max() < 0.9 * expected.size
        assert (label == expected).mean() >= AGREEMENT, f"{name}: {(label == expected).mean():.6f}"
