"""The fully connected CRF: golden figures, classes left out, processes, what is said without it."""

import sys

import numpy as np
import pytest
from golden_recipe import GOLDEN

from labelling.crf import CRFParams, crf_label, crf_labels, dense_crf
from utils.files import UserError


@pytest.fixture(autouse=True)
def _needs_crf(request):
    if "without" not in request.node.name:
        pytest.importorskip("pydensecrf.densecrf")


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


def test_one_process_and_several_give_the_same_in_the_same_order():
    items = [(f"image {i}", *scene(30 + 3 * i, 40, 10 + 4 * (i % 2), seed=i)[:2])
             for i in range(7)]
    one = list(crf_labels(iter(items), processes=1))
    several = list(crf_labels(iter(items), processes=2))
    assert [key for key, _ in one] == [key for key, _ in several] == [i[0] for i in items]
    for (_, a), (_, b) in zip(one, several, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.uint8


def test_images_are_read_as_the_pool_gets_on():
    read = []

    def items():
        for i in range(30):
            read.append(i)
            yield i, *scene(20, 61, 10)[:2]

    results = crf_labels(items(), processes=2)
    next(results)
    assert len(read) < 10
    results.close()


def test_an_error_in_a_process_arrives():
    image, probabilities, _ = scene()
    with pytest.raises(ValueError, match="does not belong"):
        list(crf_labels([("bad", image[1:], probabilities)], processes=2))


def test_without_pydensecrf_one_line_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    image, probabilities, _ = scene()
    for call in (lambda: crf_label(image, probabilities),
                 lambda: list(crf_labels([("a", image, probabilities)], processes=2))):
        with pytest.raises(UserError, match="pip install.*pydensecrf2") as error:
            call()
        assert "\n" not in str(error.value)
