"""Colour jitter on batches against torchvision, image by image, and the random draws behind it."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from reference import in_order
from torchvision.transforms.v2 import functional as F

from datasets import jitter, transforms
from datasets.voc import collate

ORDERS = list(permutations(range(4)))


def reference(image: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    return in_order(image, drawn[:4].tolist(), drawn[4:].int().tolist())


def colourful(count: int, side: int = 24) -> torch.Tensor:
    """Images with every kind of pixel: any colour, grey, black, white, two channels equal."""
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = images[:, :1, 0]
    images[:, :, 1], images[:, :, 2] = 0, 1
    for row, (one, other) in enumerate(((0, 1), (1, 2), (0, 2)), start=3):
        images[:, one, row] = images[:, other, row]
    images[:, 0, 6] = 1
    images[:, 1:, 6] = 0
    return images


def test_a_batch_equals_torchvision_image_by_image():
    """All orders in one batch, as a GPU computes it, and one by one, as a CPU does."""
    rng = np.random.default_rng(1)
    draws = torch.stack([jitter.draw(rng) for _ in ORDERS])
    draws[:, 4:] = torch.tensor(ORDERS)
    images = colourful(len(ORDERS))
    together = jitter.apply(images.clone(), draws)
    for image, drawn, found in zip(images, draws, together, strict=True):
        expected = reference(image, drawn)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        alone = jitter.apply(image[None].clone(), drawn[None])[0]
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
        assert (expected - image).abs().max() > 0.02


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("end", [-1, 1])
def test_single_steps_at_their_ends(step, end):
    drawn = torch.tensor([1.0, 1.0, 1.0, 0.0, 0, 1, 2, 3])
    drawn[step] += end * (*jitter.STRENGTH, jitter.HUE_STRENGTH)[step]
    images = colourful(1)
    found = jitter.apply(images.clone(), drawn[None])[0]
    torch.testing.assert_close(found, reference(images[0], drawn), atol=1e-5, rtol=0)


def test_draws_are_distributed_as_in_torchvision():
    rng = np.random.default_rng(2)
    draws = torch.stack([jitter.draw(rng) for _ in range(4800)])
    for factors, (low, high) in zip(draws.T, [(0.7, 1.3)] * 3 + [(-0.1, 0.1)], strict=False):
        assert low <= factors.min() and factors.max() <= high
        share = ((factors - low) / (high - low)).numpy()
        steps = np.histogram(share, bins=10, range=(0, 1))[0]
        assert steps.min() > 380 and steps.max() < 580  # 480 expected, 21 the deviation
    assert torch.corrcoef(draws[:, :4].T).fill_diagonal_(0).abs().max() < 0.08
    orders = Counter(tuple(order) for order in draws[:, 4:].int().tolist())
    assert set(orders) == set(ORDERS)
    assert min(orders.values()) > 140 and max(orders.values()) < 260  # 200 expected, 14


def test_crops_and_flips_are_uniform():
    """An image whose pixels tell their own place: rows in green, columns in red."""
    columns, rows = np.meshgrid(np.arange(20), np.arange(20))
    image = Image.fromarray(np.stack((columns, rows, rows), -1).astype(np.uint8))
    transform, tops, lefts, flips = transforms.ClassifierTraining(20, 16), set(), set(), 0
    for index in range(600):
        sample = transform.sample({"image": image}, np.random.default_rng((0, index)))
        tops.add(sample["crop"][0])
        lefts.add(sample["crop"][1])
        flips += int(sample["image"][0, 0, 0] == 19)
    assert tops == lefts == set(range(5))
    assert 240 < flips < 360


def photo(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("transform", [transforms.ClassifierTraining(72, 60),
                                       transforms.RefinementTraining(60)])
def test_training_images_equal_the_steps_one_by_one(transform):
    """Resize by Pillow, flip, jitter of the whole image, crop, normalise."""
    rngs = [np.random.default_rng((4, index)) for index in range(6)]
    samples = [transform.sample({"image": photo(101, 67), "labels": torch.zeros(3)}, rng)
               for rng in rngs]
    batch = transform.batch(collate(samples))
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert set(batch) == {"image", "labels", "errors"}
    side = getattr(transform, "resize", 60)
    resized = np.asarray(photo(101, 67).resize((side, side), Image.Resampling.BILINEAR))
    flips = 0
    for sample, found in zip(samples, batch["image"], strict=True):
        image = torch.from_numpy(resized.copy()).permute(2, 0, 1)
        if not torch.equal(image, sample["image"]):
            image, flips = image.flip(2), flips + 1
        assert torch.equal(image, sample["image"])
        top, left = sample["crop"]
        image = reference(image.float() / 255, sample["jitter"])[:, top:top + 60, left:left + 60]
        expected = F.normalize(image, transforms.MEAN, transforms.STD)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert 0 < flips < 6
