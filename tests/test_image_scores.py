"""Image-level scores against figures worked out by hand and by counting; the summary of labels."""

from itertools import permutations

import numpy as np
import pytest
import torch

from labelling.image_scores import (
    ImageScorer,
    average_precision,
    random_average_precision,
    verdict,
)
from labelling.labels import IGNORE
from labelling.summary import LabelSummary


class TwoProcesses:
    """A runtime whose other process has collected the same."""

    def gather(self, value):
        return [value, value]


def scored(logits, labels) -> ImageScorer:
    scorer = ImageScorer(len(labels[0]))
    for i in range(0, len(labels), 2):  # in batches
        scorer.update(torch.tensor(logits[i:i + 2]), torch.tensor(labels[i:i + 2]))
    return scorer


def test_average_precision_by_hand():
    present = np.array([1, 0, 1, 0], bool)
    for scores, expected in (([4.0, 3, 2, 1], (1 + 2 / 3) / 2),
                             ([1.0, 3, 2, 4], (1 / 3 + 2 / 4) / 2)):
        assert average_precision(np.array(scores), present) == pytest.approx(expected)
    assert average_precision(np.array([2.0, 1, 2, 1]), present) == 1.0
    # all equal: one threshold, precision is the share of positives, whatever the order
    assert average_precision(np.zeros(4), present) == 0.5
    assert average_precision(np.zeros(4), np.zeros(4, bool)) == 0.0


@pytest.mark.parametrize("positives,images", [(1, 1), (1, 4), (2, 5), (3, 3), (4, 6)])
def test_random_average_precision_is_the_mean_over_all_rankings(positives, images):
    present = np.arange(images) < positives
    every = [average_precision(-np.arange(images, dtype=float), present[list(order)])
             for order in permutations(range(images))]
    assert random_average_precision(positives, images) == pytest.approx(np.mean(every))


def test_scores_of_a_small_set():
    logits = [[2.0, -1.0, -3.0], [1.0, 1.0, -3.0], [-1.0, 2.0, -3.0]]
    labels = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    scores = scored(logits, labels).scores()
    assert scores.class_ap == pytest.approx([(1 + 2 / 3) / 2, 1.0, 0.0])
    assert scores.class_f1 == pytest.approx([2 * 1 / (2 + 2), 1.0, 0.0])
    assert scores.map == pytest.approx((scores.class_ap[0] + 1) / 2)  # the third is in no image
    assert scores.f1 == pytest.approx(0.75)
    assert scores.class_images == [2, 2, 0]
    table = scores.table(["cat", "dog", "unicorn"])
    assert "unicorn" in table and "(in no image)" in table
    assert set(scores.figures()) == {"map", "f1"}


def test_a_class_is_claimed_above_zero():
    scores = scored([[0.1], [-0.1], [0.0]], [[1.0], [0.0], [0.0]]).scores()
    assert scores.f1 == 1.0


def test_batches_processes_and_half_precision_do_not_matter():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 5)), rng.random((40, 5)) < 0.3
    whole, parts = ImageScorer(5), [ImageScorer(5), ImageScorer(5)]
    whole.update(logits, labels)
    for i, part in enumerate(parts):
        part.update(torch.from_numpy(logits[i::2]), torch.from_numpy(labels[i::2]))

    class Runtime:
        def gather(self, _):
            return [part._all() for part in parts]

    parts[0].gather(Runtime())
    assert parts[0].scores().map == pytest.approx(whole.scores().map)
    half = ImageScorer(5)
    half.update(torch.from_numpy(logits).to(torch.bfloat16), torch.from_numpy(labels))
    assert half.scores().map == pytest.approx(whole.scores().map, abs=0.05)


def test_what_cannot_be_scored():
    scorer = ImageScorer(3)
    assert scorer.scores().map == 0.0
    assert not verdict(scorer.scores(), held_out=True).learned
    with pytest.raises(ValueError, match="3 classes"):
        scorer.update(np.zeros((2, 4)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="labels"):
        scorer.update(np.zeros((2, 3)), np.zeros((1, 3)))
    scorer.update(np.full((1, 3), np.nan), np.zeros((1, 3)))
    with pytest.raises(FloatingPointError, match="--lr"):
        scorer.scores()


def judged(noise: float, images: int = 400, classes: int = 10, held_out: bool = True):
    rng = np.random.default_rng(1)
    labels = rng.random((images, classes)) < 0.1
    scorer = ImageScorer(classes)
    scorer.update(labels + noise * rng.normal(size=labels.shape), labels)
    scores = scorer.scores()
    return scores, verdict(scores, held_out=held_out)


def test_the_verdict_follows_the_ranking():
    for seed in range(10):  # a random ranking has not learned
        rng = np.random.default_rng(seed)
        labels = rng.random((200, 8)) < 0.15
        scorer = ImageScorer(8)
        scorer.update(rng.normal(size=labels.shape), labels)
        scores = scorer.scores()
        assert abs(scores.skill) < 0.15
        found = verdict(scores, held_out=False)
        assert not found.learned
        assert found.sentence.startswith(f"The classifier has not learned: mAP {scores.map:.2f} ")
        assert "--epochs" in found.sentence and "200 training images" in found.sentence
    scores, found = judged(noise=0.1)
    assert scores.map > 0.99 and scores.skill > 0.99
    assert found.learned
    assert found.sentence.startswith("The classifier has learned: mAP 1.00 on 400 held-out images")
    scores, found = judged(noise=0.7)
    assert 0.2 < scores.skill < 0.5
    assert "learned little" in found.sentence


def test_the_verdict_admits_what_it_cannot_know():
    everywhere = scored([[1.0], [2.0], [3.0]], [[1.0], [1.0], [1.0]]).scores()
    assert everywhere.map == 1.0
    assert everywhere.skill is None
    found = verdict(everywhere, held_out=False)
    assert not found.learned and "add images without the class" in found.sentence
    few = scored([[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]).scores()
    assert "little evidence" in verdict(few, held_out=True).sentence


# Labels

def test_summary_counts_what_is_written(tmp_path):
    summary = LabelSummary(["cat", "dog", "cow"])
    label = np.zeros((10, 10), np.uint8)
    label[:2], label[9] = 1, IGNORE
    summary.add(label, [0, 1])
    summary.add(torch.zeros(10, 10, dtype=torch.uint8), [1])
    summary.skip("were there already", 3)
    summary.skip("failed", 0)
    line = summary.line(tmp_path)
    assert line == (f"{tmp_path}: 2 images labelled; 3 were there already; foreground 10.0%, 255 "
                    "5.0% of the pixels; 1 all background; never seen: dog")
    assert summary.warning() is None  # half is not more than half
    summary.add(np.full((5, 5), IGNORE, np.uint8))  # nothing but undecided is no object either
    assert summary.warning().startswith("2 of 3 images are all background")
    figures = summary.figures()
    assert figures["empty"] == 2 and figures["never"] == ["dog"]
    assert figures["undecided"] == pytest.approx(35 / 225)


def test_summary_without_expectations_or_images(tmp_path):
    summary = LabelSummary([f"class {i}" for i in range(9)])
    assert summary.warning() is None
    summary.skip("were there already", 4)
    assert summary.line(tmp_path) == f"{tmp_path}: 0 images labelled; 4 were there already"
    summary.add(np.full((2, 2), 9, np.uint8))
    assert "class 4 and 3 more" in summary.line(tmp_path)


def test_summary_of_several_processes(tmp_path):
    summary = LabelSummary(["cat"])
    summary.add(np.ones((2, 2), np.uint8), [0])
    summary.skip("failed")
    alone = summary.line(tmp_path)
    summary.gather(TwoProcesses())
    assert summary.line(tmp_path) == alone.replace("1 images", "2 images").replace(
        "1 failed", "2 failed")
