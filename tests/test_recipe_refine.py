"""train_refine.py against a plain loop written from the description of the method."""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from golden_recipe import golden_state
from helpers import MACHINE, run_stage
from PIL import Image

from labelling.maps import save_maps
from models.refine import RefineNet
from train_refine import parse

SEED, BATCH, SIDE, LR, ALPHA, WIDTH, MILESTONES = 5, 4, 32, 1e-4, 0.05, 0.0625, (2, 3)


@pytest.fixture(scope="module")
def maps_dir(ten_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Localization maps of few levels, so that classes are equally strong here and there."""
    folder, rng = tmp_path_factory.mktemp("maps"), np.random.default_rng(0)
    for name, classes in reference.listed(ten_images, "train_aug"):
        coarse = rng.integers(0, 5, (len(classes), 9, 9)).astype(np.uint8) * 60
        save_maps(folder / f"{name}.png", np.stack([np.asarray(
            Image.fromarray(one).resize((SIDE, SIDE), reference.NEAREST)) for one in coarse]),
            classes)
    return folder


def trunk_weights() -> dict[str, torch.Tensor]:
    """Of a file; a hundred times as strong, so that the small head has scores to begin with."""
    state = golden_state({name: value.shape
                          for name, value in RefineNet(3, width=WIDTH).state_dict().items()})
    state["features.28.weight"] *= 100
    state["features.28.bias"] *= 100
    return state


def sample_of(root: Path, maps_dir: Path, name: str, classes: list[int],
              rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Image resized and jittered, then mirrored with its maps; the target (3, side, side)."""
    image = reference.jittered(reference.resized(reference.photo(root, name), SIDE), rng)
    maps = torch.zeros(3, SIDE, SIDE)
    maps[classes] = torch.from_numpy(reference.stored_maps(maps_dir / f"{name}.png")).float() / 255
    both = reference.mirrored(torch.cat((image, maps)), rng)
    image, maps = both[:3], both[3:]
    return reference.normalised(image), maps * (maps == maps.amax(0))


def train_plainly(root: Path, maps_dir: Path) -> list[dict]:
    """Loss, learning rate, score and weights after each of three epochs."""
    torch.manual_seed(SEED)
    network = RefineNet(3, width=WIDTH)
    network.load_state_dict({name: value for name, value in trunk_weights().items()
                             if name.startswith("features.")}, strict=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    images, history = reference.listed(root, "train_aug"), []
    for epoch in (1, 2, 3):
        lr = LR * 0.1 ** sum(milestone <= epoch for milestone in MILESTONES)
        optimizer.param_groups[0]["lr"] = lr
        losses = []
        for batch in reference.whole_batches(SEED, epoch - 1, len(images), BATCH):
            samples = [sample_of(root, maps_dir, *images[index],
                                 reference.sample_rng(SEED, epoch - 1, index)) for index in batch]
            inputs, targets = (torch.stack(part) for part in zip(*samples, strict=True))
            maps = F.interpolate(network.class_maps(inputs), (SIDE, SIDE), mode="bilinear",
                                 align_corners=True)
            loss = (maps - targets).square().mean()
            losses.append(reference.step(optimizer, loss))
        history.append({
            "loss": np.mean(losses), "lr": lr, "weights": reference.copied(network),
            "miou": reference.validation_score(network, False, root, SIDE, ALPHA)})
    return history


def test_the_script_trains_as_the_method_says(ten_images, maps_dir, tmp_path):
    torch.save(trunk_weights(), tmp_path / "trunk.pth")
    with reference.recorded_steps() as steps:
        run_stage("train_refine", "--data-root", ten_images, "--run-dir", tmp_path, *MACHINE,
                  "--maps-dir", maps_dir, "--init", tmp_path / "trunk.pth", "--width", WIDTH,
                  "--image-size", SIDE, "--batch-size", BATCH, "--epochs", 3,
                  "--milestones", *MILESTONES, "--seed", SEED, "--alpha", ALPHA)
    with reference.recorded_steps() as expected_steps:
        expected = train_plainly(ten_images, maps_dir)
    reference.assert_same_training(tmp_path / "refine", expected, steps, expected_steps)


def test_the_defaults_are_the_papers():
    args = parse(["--data-root", "VOC2012"])
    assert (args.list, args.val_list, args.init, args.batch_size, args.epochs) == (
        "train_aug", "train", "imagenet", 10, 30)
    assert (args.lr, args.milestones, args.weight_decay) == (1e-4, [10, 20], 0)
    assert (args.image_size, args.alpha, args.width) == (320, 0.2, 1)
