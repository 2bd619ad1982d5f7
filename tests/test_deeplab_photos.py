"""Big photos in `predict`: shrunk for the network, labelled at their own size, in little memory."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "DeepLab-V2-PyTorch"))

from libs import inference
from libs.data import Pictures
from libs.inference import class_probabilities, most_probable, segment
from libs.transforms import Inference, nearest, shrink

MEAN = [104.0, 116.0, 122.0]


def smooth(classes: int, height: int, width: int) -> torch.Tensor:
    """Logits as a network makes them: regions with soft borders."""
    seeds = 5 * torch.randn(1, classes, 4, 5)
    return F.interpolate(seeds, (height, width), mode="bicubic")[0]


@pytest.mark.parametrize("draw", [torch.randn, smooth])
@pytest.mark.parametrize(("classes", "logits", "size"), [
    (21, (13, 12), (100, 95)), (2, (9, 16), (71, 128)), (250, (5, 5), (40, 44)),
    (4, (1, 1), (1, 1)), (4, (1, 1), (9, 7)), (4, (1, 6), (3, 40)), (5, (7, 3), (50, 3)),
    (3, (9, 9), (4, 5)), (21, (3, 2), (16, 500))])
def test_strips_give_the_most_probable_class(draw, classes, logits, size):
    torch.manual_seed(0)
    values = draw(classes, *logits)
    label = most_probable(values, size)
    assert label.dtype == torch.uint8
    assert torch.equal(label.long(), class_probabilities(values, size).argmax(dim=0))


def test_the_first_of_equal_classes_wins_as_in_argmax():
    logits = torch.zeros(5, 4, 4)
    assert most_probable(logits, (30, 30)).eq(0).all()
    logits[0] = -1
    assert most_probable(logits, (30, 30)).eq(1).all()


class Largest(TorchFunctionMode):
    """The bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.bytes = max(self.bytes, made.numel() * made.element_size())
        return made


def test_no_tensor_holds_all_classes_at_full_size():
    logits, size = smooth(21, 12, 16), (372, 496)
    with Largest() as strips:
        most_probable(logits, size)
    with Largest() as whole:
        class_probabilities(logits, size).argmax(dim=0)
    assert whole.bytes == 21 * 4 * size[0] * size[1]
    assert strips.bytes < whole.bytes / 20


@pytest.mark.parametrize(("size", "expected"), [
    ((4032, 3024), (1024, 768)), ((3024, 4032), (768, 1024)), ((1024, 9), (1024, 9)),
    ((500, 375), (500, 375)), ((1025, 1025), (1024, 1024)), ((3000, 1), (1024, 1))])
def test_only_what_is_beyond_the_longest_side_shrinks(size, expected):
    image = Image.new("RGB", size)
    small = shrink(image, 1024)
    assert small.size == expected and (size != expected or small is image)
    assert shrink(image, None) is image


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    rng = np.random.default_rng(0)
    for name, (width, height) in (("big", (300, 200)), ("small", (40, 60))):
        pixels = rng.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(tmp_path / f"{name}.png")
    return [tmp_path / "big.png", tmp_path / "small.png"]


def test_pictures_tell_their_own_size(photos):
    by_id = {path.stem: path for path in photos}
    big, small = (Pictures(by_id, Inference(MEAN), max_side=100)[index] for index in (0, 1))
    assert big["size"] == (200, 300) and big["pixels"].shape == (67, 100, 3)
    assert big["image"].shape == (3, 67, 100) and small["image"].shape == (3, 60, 40)
    with Image.open(photos[0]) as image:
        assert np.array_equal(big["pixels"], np.asarray(shrink(image, 100)))
    as_before = Pictures({path.stem: path for path in photos}, Inference(MEAN))[1]
    assert torch.equal(small["image"], as_before["image"]) and small["size"] == as_before["size"]
    assert np.array_equal(big["image"].permute(1, 2, 0).numpy(), big["pixels"])


def test_labels_have_the_photos_size_with_and_without_crf(photos, monkeypatch):
    sample = Pictures({path.stem: path for path in photos}, Inference(MEAN), max_side=100)[0]
    logits = smooth(5, 9, 13)
    (_, plain), = segment([(sample, logits)])
    assert plain.shape == (200, 300) and plain.dtype == np.uint8

    def maximum(items, params):  # in place of the CRF
        for key, pixels, probabilities in items:
            assert probabilities.shape[1:] == pixels.shape[:2] == (67, 100)
            yield key, probabilities.argmax(dim=0).to(torch.uint8)

    monkeypatch.setattr(inference, "crf_labels", maximum)
    (_, sharpened), = segment([(sample, logits)], object())
    assert sharpened.shape == (200, 300)
    assert (sharpened == plain).mean() > 0.95  # they differ along borders only
    assert np.array_equal(nearest(sharpened, (67, 100)),
                          class_probabilities(logits, (67, 100)).argmax(dim=0).numpy())
