"""From a JPEG to the label, against the method written out again in Pillow, NumPy and torch.

The networks are files in the official format, narrower than the paper's, filled by the golden
recipe. Nothing of ours is in the reference: neither the data set nor the networks nor the rule.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_recipe import golden_state
from helpers import MACHINE, run_stage
from PIL import Image, ImageFilter
from torch import Tensor

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
# Trunk convolutions of VGG-16: number in the file, name of its activation, pool in front of it.
TRUNK = ((0, "layer1_relu1", 0), (2, "layer1_relu2", 0), (5, "layer2_relu1", 2),
         (7, "layer2_relu2", 0), (10, "layer3_relu1", 2), (12, "layer3_relu2", 0),
         (14, "layer3_relu3", 0), (17, "layer4_relu1", 2), (19, "layer4_relu2", 0),
         (21, "layer4_relu3", 0), (24, "layer5_relu1", 1), (26, "layer5_relu2", 0),
         (28, "layer5_relu3", 0))
State = dict[str, Tensor]


# The reference

def activation(x: Tensor, state: State, name: str, kind: str) -> Tensor:
    x = x.clamp(min=0)
    if kind == "refine":
        return x
    control: Tensor | float = 0.55
    if kind == "learnable":
        weight = state[f"{name}.fc.0.weight"]
        control = torch.sigmoid(x.mean((2, 3)) @ weight.T)[:, :, None, None]
    return torch.minimum(x, x.flatten(2).max(2).values[:, :, None, None] * control)


def class_maps(state: State, x: Tensor, kind: str) -> Tensor:
    for number, name, pool in TRUNK:
        if pool:
            x = F.max_pool2d(x, 2) if pool == 2 else F.max_pool2d(x, 3, 1, 1)
        dilation = 2 if number >= 24 else 1
        x = F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"],
                     padding=dilation, dilation=dilation)
        x = activation(x, state, name, kind)
    for i in (1, 2, 3):
        x = F.conv2d(x, state[f"extra_conv{i}.weight"], state[f"extra_conv{i}.bias"], padding=1)
        x = activation(x, state, f"extra_relu{i}", kind)
    return F.conv2d(x, state["extra_conv4.weight"], state["extra_conv4.bias"])


def expected_label(state: State, kind: str, photo: Path, saliency: Path,
                   classes: tuple[int, ...]) -> np.ndarray:
    """Step 3 of the method, with all 20 classes, as the official code goes about it."""
    image = Image.open(photo).convert("RGB")
    pixels = np.asarray(image.resize((320, 320), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = (pixels - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1)[None])
    scores = np.zeros((20, image.height, image.width), np.float32)
    for side in SCALES:
        with torch.no_grad():
            scaled = F.interpolate(tensor, (side, side), mode="bilinear", align_corners=False)
            maps = class_maps(state, scaled, kind)
            if kind != "refine":
                maps = F.relu(maps)
            maps = F.interpolate(maps, (image.height, image.width), mode="bilinear",
                                 align_corners=True)[0]
            if kind != "refine":
                maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-5)
        scores = np.maximum(scores, maps.numpy())
    present = np.zeros((20, 1, 1), np.float32)
    present[list(classes)] = 1
    scores *= present
    scores[scores < ALPHA] = 0
    salient = (np.asarray(Image.open(saliency)) > 50).astype(np.float32)
    everything = np.concatenate((1 - salient[None], scores))
    label = everything.argmax(0).astype(np.uint8)
    unclaimed = (salient == 1) & (label == 0)
    label[(everything > 0.9).sum(0) > 2] = 255
    label[unclaimed] = 255
    return label


# The project's

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
        expected = expected_label(state, kind, photos / f"JPEGImages/{name}.jpg",
                                  photos / f"saliency_map/{name}.png", classes)
        label = read_label(tmp_path / "run" / "labels" / f"{name}.png")
        assert label.shape == size[::-1]
        # The figure tells something: no label takes nearly all of the picture.
        assert np.unique(expected, return_counts=True)[1].max() < 0.9 * expected.size
        assert (label == expected).mean() >= AGREEMENT, f"{name}: {(label == expected).mean():.6f}"
