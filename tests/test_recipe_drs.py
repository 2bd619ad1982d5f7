"""train_drs.py against a plain loop written from the description of the method."""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from golden_recipe import golden_state
from helpers import MACHINE, run_stage

from models.classifier import Classifier
from train_drs import parse

SEED, BATCH, SIDE, RESIZE, LR, DECAY, ALPHA, WIDTH = 6, 4, 32, 41, 0.01, 0.01, 0.5, 0.0625
# The three modes with their options, and the epochs at whose start the learning rate falls.
MODES = {"none": ((), (2, 3)), "fixed": (("--delta", "0.4"), (1, 3)), "learnable": ((), (2, 3))}
# Factors on the learning rate, by (trunk?, bias?).
FACTORS = {(True, False): 1, (True, True): 2, (False, False): 10, (False, True): 20}


def new_classifier(drs: str, classes: int = 3) -> Classifier:
    return Classifier(classes, drs=drs, delta=0.4, width=WIDTH)


def trunk_weights(drs: str) -> dict[str, torch.Tensor]:
    """A file of a classifier, of which a training takes the trunk."""
    shapes = {name: value.shape for name, value in new_classifier(drs).state_dict().items()}
    return golden_state(shapes)


def image_of(root: Path, name: str, rng: np.random.Generator) -> torch.Tensor:
    """Resized, mirrored, jittered, cropped, in this order."""
    image = reference.mirrored(reference.resized(reference.photo(root, name), RESIZE), rng)
    image = reference.jittered(image, rng)
    top, left = rng.integers(0, RESIZE - SIDE + 1, 2)
    return reference.normalised(image[:, top:top + SIDE, left:left + SIDE])


def train_plainly(root: Path, drs: str, milestones: tuple[int, ...]) -> list[dict]:
    """Loss, learning rate, score and weights after each of three epochs."""
    torch.manual_seed(SEED)
    network = new_classifier(drs)
    network.load_state_dict({name: value for name, value in trunk_weights(drs).items()
                             if name.startswith("features.")}, strict=False)
    groups = [{"params": [parameter], "factor": FACTORS[name.startswith("features."),
                                                        name.endswith(".bias")]}
              for name, parameter in network.named_parameters()]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True, weight_decay=DECAY)
    images, history = reference.listed(root, "train_aug"), []
    for epoch in (1, 2, 3):
        lr = LR * 0.1 ** sum(milestone <= epoch for milestone in milestones)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        losses = []
        for batch in reference.whole_batches(SEED, epoch - 1, len(images), BATCH):
            inputs = torch.stack([image_of(root, images[index][0],
                                           reference.sample_rng(SEED, epoch - 1, index))
                                  for index in batch])
            labels = torch.stack([reference.label_vector(images[index][1], 3) for index in batch])
            logits = network.class_maps(inputs).mean((2, 3))
            loss = F.multilabel_soft_margin_loss(logits, labels)
            losses.append(reference.step(optimizer, loss))
        history.append({
            "loss": np.mean(losses), "lr": lr, "weights": reference.copied(network),
            "miou": reference.validation_score(network, True, root, SIDE, ALPHA)})
    return history


@pytest.mark.parametrize("drs", MODES)
def test_the_script_trains_as_the_method_says(ten_images, tmp_path, drs):
    options, milestones = MODES[drs]
    torch.save(trunk_weights(drs), tmp_path / "trunk.pth")
    with reference.recorded_steps() as steps:
        run_stage("train_drs", "--data-root", ten_images, "--run-dir", tmp_path, *MACHINE,
                  "--drs", drs, *options, "--init", tmp_path / "trunk.pth", "--width", WIDTH,
                  "--image-size", SIDE, "--resize", RESIZE, "--batch-size", BATCH, "--epochs", 3,
                  "--milestones", *milestones, "--lr", LR, "--weight-decay", DECAY,
                  "--seed", SEED, "--alpha", ALPHA)
    with reference.recorded_steps() as expected_steps:
        expected = train_plainly(ten_images, drs, milestones)
    reference.assert_same_training(tmp_path / "classifier", expected, steps, expected_steps)


def test_the_defaults_are_the_papers():
    args = parse(["--data-root", "VOC2012"])
    assert (args.list, args.val_list, args.init, args.batch_size, args.epochs) == (
        "train_aug", "train", "imagenet", 10, 15)
    assert (args.lr, args.milestones, args.weight_decay) == (1e-3, [5, 10], 5e-4)
    assert (args.resize, args.image_size, args.drs, args.delta, args.alpha, args.width) == (
        384, 320, "learnable", 0.55, 0.2, 1)
