"""The method once more, in a few lines of Pillow, NumPy and torch: what the scripts must give.

Nothing of the project is in here. Random numbers are drawn as datasets/voc.py, utils/loading.py and
the transforms say they are; everything else is written from the description of the method.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchvision.transforms.v2 import functional as colour

MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
IGNORE = 255
# Trunk convolutions of VGG-16: number in the file, name of its activation, pool in front of it.
TRUNK = ((0, "layer1_relu1", 0), (2, "layer1_relu2", 0), (5, "layer2_relu1", 2),
         (7, "layer2_relu2", 0), (10, "layer3_relu1", 2), (12, "layer3_relu2", 0),
         (14, "layer3_relu3", 0), (17, "layer4_relu1", 2), (19, "layer4_relu2", 0),
         (21, "layer4_relu3", 0), (24, "layer5_relu1", 1), (26, "layer5_relu2", 0),
         (28, "layer5_relu3", 0))
State = dict[str, Tensor]


# Files

def listed(root: Path, name: str) -> list[tuple[str, list[int]]]:
    """(id, classes) of each line of a list."""
    lines = (root / f"ImageSets/Segmentation/{name}.txt").read_text().splitlines()
    return [(line.split()[0], [int(word) for word in line.split()[1:]]) for line in lines]


def photo(root: Path, image_id: str) -> Image.Image:
    return Image.open(root / "JPEGImages" / f"{image_id}.jpg").convert("RGB")


def pixels(path: Path, side: int | None = None) -> np.ndarray:
    """A mask or saliency map (H, W), as it is or resized to a square."""
    with Image.open(path) as image:
        return np.array(image if side is None else image.resize((side, side), NEAREST))


def stored_maps(path: Path) -> np.ndarray:
    """Localization maps (K, h, w) uint8 of the classes in a file's text, ascending."""
    with Image.open(path) as image:
        size, classes = image.info["localization maps"].split(" classes")
        height, width = map(int, size.split("x"))
        return np.array(image).reshape(len(classes.split()), height, width)


def label_vector(classes: Sequence[int], count: int) -> Tensor:
    return torch.tensor([float(number in classes) for number in range(count)])


# The networks, by the names in released files

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
    """Images (B, 3, H, W) -> (B, C, H/8, W/8); `kind` is refine, learnable or fixed."""
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


def calibrated(state: State, maps: Tensor, convs: Sequence[str], mean: float, std: float) -> State:
    """`state` with its last convolutions, `convs`, which are summed, changed so that the maps
    (B, C, h, w) of each class get this mean and deviation."""
    factor = std / maps.std((0, 2, 3))
    offset = mean - factor * maps.mean((0, 2, 3))
    changed = {}
    for conv in convs:
        changed[f"{conv}.weight"] = state[f"{conv}.weight"] * factor[:, None, None, None]
        changed[f"{conv}.bias"] = state[f"{conv}.bias"] * factor + offset / len(convs)
    return state | changed


# From an image to its label

def network_input(image: Image.Image, side: int) -> Tensor:
    """(1, 3, side, side), normalised."""
    array = np.asarray(image.resize((side, side), BILINEAR), np.float32) / 255
    return torch.from_numpy(((array - MEAN) / STD).transpose(2, 0, 1)[None])


def localization_scores(maps_of: Callable[[Tensor], Tensor], cam: bool, images: Tensor,
                        sides: Sequence[int], size: tuple[int, int], classes: Sequence[int]
                        ) -> np.ndarray:
    """All C maps of one image, (C, H, W): maximum over scales and 0, absent classes 0.

    `maps_of`: images -> class maps; `cam`: they are a classifier's.
    """
    scores = 0.0
    for side in sides:
        with torch.no_grad():
            maps = maps_of(F.interpolate(images, (side, side), mode="bilinear",
                                         align_corners=False))
            maps = F.interpolate(maps.clamp(min=0) if cam else maps, size, mode="bilinear",
                                 align_corners=True)[0]
            if cam:
                maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-5)
        scores = np.maximum(scores, maps.numpy())
    return scores * label_vector(classes, len(scores)).numpy()[:, None, None]


def label_of(scores: np.ndarray, background: np.ndarray, alpha: float, ignore: bool = True
             ) -> np.ndarray:
    """Step 3's rule, (C, H, W) and (H, W) -> (H, W) uint8."""
    scores = np.where(scores < np.float32(alpha), np.float32(0), scores)
    everything = np.concatenate((background[None].astype(np.float32), scores))
    label = everything.argmax(0).astype(np.uint8)
    if ignore:
        unclaimed = (background == 0) & (label == 0)
        label[(everything > np.float32(0.9)).sum(0) > 2] = IGNORE
        label[unclaimed] = IGNORE
    return label


def class_iou(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[int, float]:
    """The IoU of each label in the ground truth, of (prediction, ground truth) over all images."""
    predicted, truth = (np.concatenate([np.ravel(one) for one in side]) for side in
                        zip(*pairs, strict=True))
    predicted, truth = predicted[truth != IGNORE], truth[truth != IGNORE]
    return {int(label): float(((predicted == label) & (truth == label)).sum()
                              / ((predicted == label) | (truth == label)).sum())
            for label in np.unique(truth)}


def mean_iou(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    return float(np.mean(list(class_iou(pairs).values())))


def validation_score(network: nn.Module, cam: bool, root: Path, side: int, alpha: float) -> float:
    """mIoU on the list "train" by the rule without its ignore steps, at one scale."""
    pairs = []
    for name, classes in listed(root, "train"):
        image = network_input(photo(root, name), side)
        scores = localization_scores(network.class_maps, cam, image, [side], (side, side), classes)
        salient = pixels(root / f"saliency_map/{name}.png", side) > 50
        pairs.append((label_of(scores, 1.0 - salient, alpha, ignore=False),
                      pixels(root / f"SegmentationClassAug/{name}.png", side)))
    return mean_iou(pairs)


# Training

def sample_rng(seed: int, number: int, index: int) -> np.random.Generator:
    """Source of the random choices for image `index` in pass `number` (from 0)."""
    return np.random.default_rng((seed, number, index))


def order(seed: int, number: int, length: int) -> list[int]:
    return np.random.default_rng((seed, number)).permutation(length).tolist()


def whole_batches(seed: int, number: int, length: int, batch: int) -> list[list[int]]:
    """Pass `number` in batches, the incomplete last one dropped."""
    shuffled = order(seed, number, length)
    return [shuffled[start:start + batch] for start in range(0, length - batch + 1, batch)]


def mirrored(image: Tensor, rng: np.random.Generator) -> Tensor:
    return image.flip(-1) if rng.random() < 0.5 else image


def jittered(image: Tensor, rng: np.random.Generator) -> Tensor:
    """(3, H, W) in [0, 1]; brightness, contrast, saturation 0.3, hue 0.1, random order."""
    factors = [*(rng.uniform(0.7, 1.3) for _ in range(3)), rng.uniform(-0.1, 0.1)]
    return in_order(image, factors, rng.permutation(4).tolist())


def in_order(image: Tensor, factors: Sequence[float], steps: Sequence[int]) -> Tensor:
    """One image (3, H, W) float, jittered by torchvision."""
    adjust = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation,
              colour.adjust_hue)
    for step in steps:
        image = adjust[step](image, float(factors[step]))
    return image


def resized(image: Image.Image, side: int) -> Tensor:
    """(3, side, side) float in [0, 1]."""
    array = np.asarray(image.resize((side, side), BILINEAR), np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)


def normalised(image: Tensor) -> Tensor:
    return (image - torch.from_numpy(MEAN)[:, None, None]) / torch.from_numpy(STD)[:, None, None]


@contextmanager
def recorded_steps() -> Iterator[list[tuple[float, float]]]:
    """The norms of all gradients and of all weights after each step of any optimizer."""
    steps: list[tuple[float, float]] = []

    def norm(tensors: list[Tensor]) -> float:
        return float(sum(tensor.detach().double().square().sum() for tensor in tensors).sqrt())

    def record(optimizer: Optimizer, *_: object) -> None:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        steps.append((norm([p.grad for p in weights if p.grad is not None]), norm(weights)))

    handle = register_optimizer_step_post_hook(record)
    try:
        yield steps
    finally:
        handle.remove()


def copied(network: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def metrics(folder: Path) -> list[dict]:
    return json.loads((folder / "metrics.json").read_text())


def assert_same_weights(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6,
                                   msg=lambda text, name=name: f"{name}: {text}")


def assert_same_training(folder: Path, expected: list[dict], steps: list, expected_steps: list
                         ) -> None:
    """Every step, every epoch's figures, the last weights and those of the best epoch."""
    np.testing.assert_allclose(steps, expected_steps, rtol=1e-5)
    for row, plain in zip(metrics(folder), expected, strict=True):
        assert row["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert row["lr"] == pytest.approx(plain["lr"], rel=1e-9)
        assert row["miou"] == pytest.approx(plain["miou"], abs=1e-3)
    best = int(np.argmax([plain["miou"] for plain in expected]))
    for name, epoch in (("last", len(expected)), ("best", best + 1)):
        content = torch.load(folder / f"{name}.pth", weights_only=True)
        assert content["epoch"] == epoch
        assert_same_weights(content["model"], expected[epoch - 1]["weights"])


def assert_scores(result: dict, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """The scores in a file, against those of (prediction, ground truth) of all images."""
    iou = class_iou(pairs)
    predicted, truth = (np.concatenate([np.ravel(one) for one in side]) for side in
                        zip(*pairs, strict=True))
    right, counted = predicted == truth, truth != IGNORE
    recall = [right[truth == label].mean() for label in iou]
    shares = [(truth == label).sum() / counted.sum() for label in iou]
    expected = {"miou": np.mean(list(iou.values())), "pixel_accuracy": right[counted].mean(),
                "mean_accuracy": np.mean(recall),
                "frequency_weighted_iou": np.dot(shares, list(iou.values()))}
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert [result["class_iou"][label] for label in iou] == pytest.approx(list(iou.values()))


def step(optimizer: Optimizer, loss: Tensor) -> float:
    """One step of a training; the loss before it."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
