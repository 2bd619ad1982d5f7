"""The fully connected CRF: golden figures, pydensecrf, classes left out, gradient, large images."""

import sys

import numpy as np
import pytest
import torch
from golden_recipe import GOLDEN

from labelling.crf import CRFParams, _cuts, crf_label, crf_labels, dense_crf
from utils.files import UserError


def scene(height: int = 50, width: int = 70, classes: int = 21, seed: int = 0):
    """A square on a ground: its image, and noisy probabilities of three classes of many."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((height, width), dtype=np.int64)
    truth[12:35, 15:50] = 5
    truth[20:45, 45:60] = 9
    image = rng.normal(0, 6, (height, width, 3)) + np.array([60, 120, 200])
    image[truth == 5] += (100, -60, 0)
    image[truth == 9] += (0, 90, -100)
    logits = rng.normal(0, 1, (classes, height, width)) - 9
    for label in (0, 5, 9):
        logits[label] += 9 + 2 * (truth == label)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
    return np.clip(image, 0, 255).astype(np.uint8), probabilities.astype(np.float32), truth


def test_golden_marginals_and_label():
    for negligible in (0.0, CRFParams().negligible):
        # The figures' image is as the lattice saw it: BGR for us.
        marginals = dense_crf(GOLDEN["crf_image"][..., ::-1], GOLDEN["crf_probabilities"],
                              CRFParams(negligible=negligible))
        assert marginals.dtype == np.float32
        np.testing.assert_allclose(marginals, GOLDEN["crf_marginals"], atol=1e-4)
        np.testing.assert_array_equal(marginals.argmax(axis=0), GOLDEN["crf_label"])


def test_negligible_classes_are_left_out_and_change_next_to_nothing():
    image, probabilities, truth = scene()
    taken = probabilities.max(axis=(1, 2)) >= CRFParams().negligible
    assert 3 <= taken.sum() < 21
    full = dense_crf(image, probabilities, CRFParams(negligible=0))
    fast = dense_crf(image, probabilities)
    assert not fast[~taken].any() and full[~taken].any()
    assert (full.argmax(axis=0) == fast.argmax(axis=0)).mean() > 0.999
    np.testing.assert_allclose(fast.sum(axis=0), 1, atol=1e-4)
    before = (probabilities.argmax(axis=0) == truth).mean()
    assert (fast.argmax(axis=0) == truth).mean() > before


def test_inputs_are_not_changed():
    image, probabilities, _ = scene()
    copies = image.copy(), probabilities.copy()
    image.flags.writeable = probabilities.flags.writeable = False
    dense_crf(image, probabilities)
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(probabilities, copies[1])


def test_many_images_come_in_their_order_and_are_read_one_at_a_time():
    read = []

    def items():
        for i in range(5):
            read.append(i)
            image, probabilities, _ = scene(30 + 3 * i, 40, 10 + 4 * (i % 2), seed=i)
            yield i, image, torch.from_numpy(probabilities)

    results = crf_labels(items())
    first, label = next(results)
    assert first == 0 and read == [0] and label.dtype == torch.uint8
    image, probabilities, _ = scene(30, 40, 10, seed=0)
    np.testing.assert_array_equal(label.numpy(), crf_label(image, probabilities))
    assert [key for key, _ in results] == [1, 2, 3, 4]


def test_shapes_that_do_not_match():
    image, probabilities, _ = scene()
    with pytest.raises(ValueError, match="does not belong"):
        list(crf_labels([("bad", image[1:], torch.from_numpy(probabilities))]))


def test_pydensecrf_asked_for_and_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    image, probabilities, _ = scene()
    with pytest.raises(UserError, match="use torch or.*requirements-crf.txt") as error:
        crf_label(image, probabilities, CRFParams(backend="pydensecrf"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="backend other"):
        crf_label(image, probabilities, CRFParams(backend="other"))


# Against pydensecrf, whose results are those of the published figures

def photo_like(kind: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "flat":
        return np.full((height, width, 3), 90, np.uint8)
    noise = rng.normal(0, 40 if kind == "noisy" else 6, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    shade = 120 + 60 * np.sin(rows / 23)[..., None] + 40 * np.sin(columns / 31)[..., None]
    shade = shade + 50 * ((rows // 40 + columns // 55) % 2)[..., None]
    return np.clip(shade + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width", "classes", "kind"), [
    (1, 1, 3, "photo"), (1, 500, 3, "photo"), (73, 97, 2, "photo"), (73, 97, 1, "photo"),
    (73, 97, 21, "noisy"), (73, 97, 21, "flat"), (60, 80, 81, "photo"), (187, 249, 3, "photo"),
    pytest.param(373, 497, 21, "photo", marks=pytest.mark.slow)])
def test_labels_and_marginals_are_those_of_pydensecrf(height, width, classes, kind):
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed: it needs a "
                        "C++ compiler (requirements-crf.txt)")
    rng = np.random.default_rng([height, width, classes])
    image = photo_like(kind, height, width, rng)
    logits = rng.normal(0, 1, (classes, max(1, height // 12), max(1, width // 12)))
    logits = torch.nn.functional.interpolate(torch.from_numpy(logits)[None].float(),
                                             (height, width), mode="bilinear")[0]
    probabilities = (3 * logits + torch.from_numpy(rng.normal(0, 0.7, logits.shape)).float()
                     ).softmax(0).numpy()
    for negligible in (0.0, 0.05):
        ours, theirs = (dense_crf(image, probabilities,
                                  CRFParams(negligible=negligible, backend=backend))
                        for backend in ("torch", "pydensecrf"))
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
        assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.9999


def test_several_images_of_one_size_are_those_of_one_each():
    scenes = [scene(seed=seed)[:2] for seed in range(3)]
    images, probabilities = (torch.from_numpy(np.stack(parts)) for parts in zip(*scenes,
                                                                                strict=True))
    together = dense_crf(images, probabilities)
    for (image, scores), one in zip(scenes, together, strict=True):
        np.testing.assert_allclose(dense_crf(image, scores), one.numpy(), atol=1e-5)


def test_the_same_again():
    image, probabilities, _ = scene()
    np.testing.assert_array_equal(dense_crf(image, probabilities), dense_crf(image, probabilities))


def test_channels_are_taken_as_bgr():
    image, probabilities, _ = scene()
    assert not np.array_equal(dense_crf(image, probabilities),
                              dense_crf(np.ascontiguousarray(image[..., ::-1]), probabilities))


def test_gradient_with_respect_to_the_probabilities():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    scores = torch.from_numpy(rng.normal(0, 1, (3, 5, 6))).softmax(0).requires_grad_()
    params = CRFParams(iterations=3, bilateral_rgb=40.0, bilateral_xy=4.0, negligible=0.0)
    assert torch.autograd.gradcheck(lambda p: dense_crf(image, p, params), (scores,))


def test_a_large_image_in_tiles_is_nearly_that_in_one():
    image, probabilities, _ = scene(150, 200)
    whole = dense_crf(image, probabilities, CRFParams(bilateral_xy=10.0))
    tiled = dense_crf(image, probabilities, CRFParams(bilateral_xy=10.0, max_pixels=9000))
    assert (whole.argmax(0) == tiled.argmax(0)).mean() > 0.995


def test_a_tile_sees_what_decides_about_it_beyond_its_border():
    """A grey image with evidence in its right half only, which decides for 20 pixels around."""
    image, probabilities = np.full((40, 200, 3), 90, np.uint8), np.full((2, 40, 200), 0.52)
    probabilities[:, :, 105:140] = 0.02
    probabilities[1] = 1 - probabilities[0]
    for max_pixels in (4500, 10_000):
        label = crf_label(image, probabilities.astype(np.float32), CRFParams(
            bilateral_xy=20.0, position_weight=0, max_pixels=max_pixels))
        assert label[:, 85:155].all() and not label[:, :50].any()


@pytest.mark.parametrize("length, side, margin", [(1, 1, 0), (10, 10, 3), (100, 30, 5),
                                                  (97, 20, 67), (4000, 1090, 67)])
def test_tiles_cover_the_image_and_see_parts_of_one_size(length, side, margin):
    cuts = list(_cuts(length, side, margin))
    assert [i for kept, _, _ in cuts for i in range(length)[kept]] == list(range(length))
    assert len({seen.stop - seen.start for _, seen, _ in cuts}) == 1
    for kept, seen, inner in cuts:
        assert kept.stop - kept.start <= side
        assert range(length)[seen][inner] == range(length)[kept]
        assert seen.start <= max(0, kept.start - margin)
        assert seen.stop >= min(length, kept.stop + margin)


def test_tiles_in_threads_have_the_callers_modes_and_leave_its_threads():
    image, probabilities, _ = scene(60, 80)
    params = CRFParams(bilateral_xy=5.0, max_pixels=2500, negligible=0)
    pixels, scores = torch.from_numpy(image), torch.from_numpy(probabilities)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.inference_mode():
            plain = dense_crf(pixels, scores, params)
        assert plain.is_inference() and torch.get_num_threads() == 2
        with torch.no_grad():
            assert not dense_crf(pixels, scores.requires_grad_(), params).requires_grad
        traced = dense_crf(pixels, scores, params)
        torch.testing.assert_close(traced.detach(), plain.clone())
        traced[0].sum().backward()
        assert (scores.grad.abs().amax(dim=(1, 2)) > 0).all()
        torch.set_num_threads(1)
        assert torch.equal(dense_crf(pixels, scores.detach(), params), plain)
    finally:
        torch.set_num_threads(threads)


def test_ranges_too_small_for_the_image_are_one_line():
    image = np.zeros((40, 40, 3), np.uint8)
    image[::2] = 255
    with pytest.raises(UserError, match="raise the ranges"):
        dense_crf(image, np.full((2, 40, 40), 0.5, np.float32),
                  CRFParams(bilateral_rgb=1e-4, bilateral_xy=1e-3, position_xy=1e-3))


def test_of_many_classes_the_most_probable_takes_part():
    """Where none is above the share that is negligible."""
    probabilities = np.full((25, 6, 7), 1 / 25, np.float32)
    marginals = dense_crf(np.zeros((6, 7, 3), np.uint8), probabilities)
    np.testing.assert_allclose(marginals.sum(axis=0), 1, rtol=1e-5)
