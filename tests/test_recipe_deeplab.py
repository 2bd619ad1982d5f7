"""DeepLab's `train` and `test` against plain loops written from the description of the method."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from golden_recipe import golden_state
from PIL import Image
from test_deeplab_pipeline import run

from libs.deeplab import DeepLabV2, MultiScale

SEED, BATCH, ACCUMULATE, ITERATIONS, SAVE, CROP, LR = 4, 3, 2, 5, 2, 65, 1e-4
DECAY = 0.5  # strong, so that five steps show which biases are spared
SCALES = (0.5, 1.0, 1.5)
MEAN = torch.tensor([104.008, 116.669, 122.675])[:, None, None]
CONFIG = f"""
EXP: {{{{ID: recipe, OUTPUT_DIR: {{folder}}, SEED: {SEED}}}}}
DATASET: {{{{ROOT: {{root}}, LABEL_DIR: {{root}}/SegmentationClassAug}}}}
IMAGE: {{{{CROP: {CROP}, SCALES: {list(SCALES)}}}}}
MODEL: {{{{NAME: small, BLOCKS: [1, 1, 1, 1], WIDTH: 0.125, INIT_MODEL: {{init}}}}}}
SOLVER: {{{{ITER_MAX: {ITERATIONS}, ITER_SAVE: {SAVE}, ITER_SIZE: {ACCUMULATE}, LR: {LR},
          BATCH_SIZE: {BATCH}, LR_DECAY: 2, WEIGHT_DECAY: {DECAY}}}}}
RUN: {{{{NUM_WORKERS: 0, DEVICE: cpu, AMP: off}}}}
"""


def new_network() -> MultiScale:
    return MultiScale(DeepLabV2(4, blocks=(1, 1, 1, 1), width=0.125), (0.5, 0.75))


def weights() -> dict[str, torch.Tensor]:
    """As in a released file of a trained network."""
    return golden_state({name: value.shape for name, value in new_network().state_dict().items()})


@pytest.fixture
def config(ten_images: Path, tmp_path: Path) -> Path:
    """A configuration, and its initial weights in the form of the released file."""
    initial = {name.removeprefix("base."): value for name, value in weights().items()
               if ".aspp." not in name}
    torch.save(initial | {"fc.weight": torch.ones(2, 2)}, tmp_path / "init.pth")
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, root=ten_images, init=tmp_path / "init.pth"))
    return path


def input_of(root: Path, name: str) -> torch.Tensor:
    """BGR in 0 to 255, minus mean: (3, H, W)."""
    image = torch.from_numpy(np.array(reference.photo(root, name)))
    return image.permute(2, 0, 1).flip(0).float() - MEAN


# train

def sample_of(root: Path, name: str, rng: np.random.Generator
              ) -> tuple[torch.Tensor, torch.Tensor]:
    """A random scale, padding, crop and flip; BGR minus mean, and label."""
    image = input_of(root, name)
    label = reference.pixels(root / f"SegmentationClassAug/{name}.png")
    scale = SCALES[rng.integers(len(SCALES))]
    height, width = (int(side * scale) for side in label.shape)
    image = F.interpolate(image[None], (height, width), mode="bilinear", align_corners=False)[0]
    label = np.array(Image.fromarray(label).resize((width, height), reference.NEAREST))
    both = torch.cat((image, torch.from_numpy(label)[None].float() - 255))
    both = F.pad(both, (0, max(CROP - width, 0), 0, max(CROP - height, 0)))  # by mean and by 255
    top, left = rng.integers(0, (both.shape[1] - CROP + 1, both.shape[2] - CROP + 1))
    both = reference.mirrored(both[:, top:top + CROP, left:left + CROP], rng)
    return both[:3], both[3].long() + 255


def loss_of(maps: list[torch.Tensor], labels: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(())
    for logits in maps:
        size = logits.shape[2:]
        small = torch.stack([torch.from_numpy(np.array(Image.fromarray(label).resize(
            (size[1], size[0]), reference.NEAREST))) for label in labels.byte().numpy()]).long()
        online = (logits.detach() * present[:, :, None, None]).argmax(1)
        total = total + F.cross_entropy(logits, small, ignore_index=255) \
            + F.cross_entropy(logits, online)
    return total


def train_plainly(root: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses of the batches, learning rates of the iterations, and the last weights."""
    torch.manual_seed(SEED)
    network = new_network().train()
    network.load_state_dict({name: value for name, value in weights().items()
                             if ".aspp." not in name}, strict=False)
    groups = []
    for name, parameter in network.named_parameters():
        if ".aspp." in name:
            bias = name.endswith(".bias")
            groups.append({"params": [parameter], "factor": 20 if bias else 10,
                           "weight_decay": 0 if bias else DECAY})
        elif name.endswith(".conv.weight"):
            groups.append({"params": [parameter], "factor": 1, "weight_decay": DECAY})
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9)
    images, losses, rates = reference.listed(root, "train_aug"), [], []
    endless = ((number, index) for number in range(99)
               for index in reference.order(SEED, number, len(images)))
    for iteration in range(ITERATIONS):
        rates.append(LR * (1 - iteration // 2 * 2 / ITERATIONS) ** 0.9)
        for group in optimizer.param_groups:
            group["lr"] = rates[-1] * group["factor"]
        optimizer.zero_grad()
        for _ in range(ACCUMULATE):
            keys = list(islice(endless, BATCH))
            inputs, labels = (torch.stack(part) for part in zip(*(sample_of(
                root, images[index][0], reference.sample_rng(SEED, number, index))
                for number, index in keys), strict=True))
            present = torch.stack([reference.label_vector(
                [0, *(number + 1 for number in images[index][1])], 4) for _, index in keys])
            loss = loss_of(network(inputs), labels, present)
            (loss / ACCUMULATE).backward()
            losses.append(loss.item())
        optimizer.step()
    return losses, rates, reference.copied(network)


def test_the_script_trains_as_the_method_says(ten_images, config, tmp_path):
    with reference.recorded_steps() as steps:
        run("train", config)
    with reference.recorded_steps() as expected_steps:
        losses, rates, expected = train_plainly(ten_images)
    folder = tmp_path / "models/recipe/small/train_aug"
    np.testing.assert_allclose(steps, expected_steps, rtol=1e-5)
    for number, row in enumerate(reference.metrics(folder)):
        stretch = slice(number * SAVE * ACCUMULATE, (number + 1) * SAVE * ACCUMULATE)
        assert row["loss"] == pytest.approx(np.mean(losses[stretch]), rel=1e-5)
        assert row["lr"] == pytest.approx(rates[number * SAVE], rel=1e-9)
    for name in ("last", "checkpoint_final"):
        content = torch.load(folder / f"{name}.pth", weights_only=True)
        assert content["step"] == ITERATIONS
        reference.assert_same_weights(content["model"], expected)


# test

def trained_weights(root: Path) -> dict[str, torch.Tensor]:
    """Of a network in which every label wins somewhere."""
    network, state = new_network().eval(), weights()
    network.load_state_dict(state)
    images = [F.interpolate(input_of(root, name)[None], (64, 64))
              for name, _ in reference.listed(root, "val")]
    with torch.no_grad():
        maps = network(torch.cat(images))
    return reference.calibrated(state, maps, [f"base.aspp.c{i}" for i in range(4)], 0, 1)


def test_the_script_scores_as_the_method_says(ten_images, config, tmp_path):
    state = trained_weights(ten_images)
    torch.save(state, tmp_path / "released.pth")
    run("test", config, "-m", tmp_path / "released.pth", "--labels-dir", tmp_path / "labels",
        "--scores", tmp_path / "scores.json")
    network = new_network().eval()
    network.load_state_dict(state)
    pairs = []
    for name, _ in reference.listed(ten_images, "val"):
        mask = reference.pixels(ten_images / f"SegmentationClassAug/{name}.png")
        with torch.no_grad():
            logits = network(input_of(ten_images, name)[None])
        logits = F.interpolate(logits, mask.shape, mode="bilinear", align_corners=False)[0]
        expected = logits.softmax(0).argmax(0).numpy()
        # The figure tells something: no label takes nearly all of the picture.
        assert np.unique(expected, return_counts=True)[1].max() < 0.9 * expected.size
        label = reference.pixels(tmp_path / "labels" / f"{name}.png")
        assert (label == expected).mean() >= 0.9995
        pairs.append((label, mask))
    reference.assert_scores(json.loads((tmp_path / "scores.json").read_text()), pairs)
