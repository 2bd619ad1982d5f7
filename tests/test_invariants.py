"""What must hold for every input, by search (hypothesis): the label rule, maps on disk, lists and
tables, scores, geometry, the order of images, regions.

The sweep over alphas against the rule, by search as well, is in test_evaluate.py.
"""

import csv
import io
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(ROOT / "DeepLab-V2-PyTorch"))

from datasets.coco import run_lengths
from datasets.lists import Entry, read_list, split
from datasets.pictures import Pictures
from datasets.plan import write_list
from datasets.source import Source
from datasets.tables import read_table
from datasets.transforms import ClassifierTraining, Evaluation, ImageOnly, RefinementTraining
from datasets.voc import collate
from labelling.labels import IGNORE, read_label, save_label
from labelling.maps import load_maps, save_maps, to_bytes
from labelling.metrics import ConfusionMatrix, count_labels, mean_iou
from labelling.regions import outline, regions, without_small_regions
from labelling.rule import CONFLICT_COUNT, CONFLICT_SCORE, fuse
from labelling.sweep import claims
from libs.transforms import Training, nearest, shrink
from utils.files import UserError
from utils.loading import ShuffledBatches, inference_batches, of_shard, training_batches

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 9)
FEW = settings(max_examples=25)  # where files are written


def draw_scores(seed: int, count: int, size: tuple[int, int], exact: bool) -> torch.Tensor:
    """Scores (count, *size); `exact`: of few values, so that they meet each other and the bounds,
    else no two alike."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 21, (count, *size)) / 20 if exact else \
        (rng.permutation(count * size[0] * size[1]) + 0.5).reshape(count, *size) / max(
            1, count * size[0] * size[1])
    return torch.from_numpy(values.astype(np.float32))


# The label rule

@st.composite
def rules(draw: Any) -> tuple[torch.Tensor, list[int], torch.Tensor, float]:
    """Scores, classes, background and alpha."""
    size = draw(st.tuples(SIDES, SIDES))
    classes = sorted(draw(st.sets(st.integers(0, 19), max_size=5)))
    scores = draw_scores(draw(SEEDS), len(classes), size, draw(st.booleans()))
    rng = np.random.default_rng(draw(SEEDS))
    background = draw(st.sampled_from([None, 0.2, 0.5, 0.95]))
    cue = torch.from_numpy((rng.random(size) > 0.5).astype(np.float32)) if background is None \
        else torch.full(size, background)
    return scores, classes, cue, draw(st.sampled_from([0, 0.05, 0.2, 0.5, 0.9, 1]))


@given(rules(), st.booleans())
def test_the_rule_is_the_one_of_each_pixel(rule, ignore):
    scores, classes, background, alpha = rule
    label = fuse(scores, classes, background, alpha=alpha, ignore=ignore)
    alpha = torch.tensor(alpha, dtype=torch.float32)
    for y, x in np.ndindex(*background.shape):
        kept = [background[y, x], *(s if s >= alpha else torch.zeros(()) for s in scores[:, y, x])]
        strongest = max(range(len(kept)), key=lambda i: (kept[i], -i))  # the first of equal ones
        expected = 0 if strongest == 0 else classes[strongest - 1] + 1
        certain = sum(float(score) > CONFLICT_SCORE for score in kept)
        if ignore and (certain > CONFLICT_COUNT or background[y, x] == 0 and expected == 0):
            expected = IGNORE
        assert label[y, x] == expected


@given(rules(), st.booleans())
def test_labels_are_of_present_classes(rule, ignore):
    scores, classes, background, alpha = rule
    label = fuse(scores, classes, background, alpha=alpha, ignore=ignore)
    assert label.dtype == torch.uint8 and label.shape == background.shape
    assert set(label.unique().tolist()) <= {0, *(c + 1 for c in classes)} | (
        {IGNORE} if ignore else set())


@given(rules(), st.sampled_from([0, 0.05, 0.2, 0.5, 0.9, 1]))
def test_a_higher_alpha_only_takes_pixels_away(rule, other):
    scores, classes, background, alpha = rule
    low, high = (fuse(scores, classes, background, alpha=a, ignore=False)
                 for a in sorted((alpha, other)))
    assert ((high == low) | (high == 0)).all()


@given(rules())
def test_ignoring_leaves_the_other_pixels(rule):
    scores, classes, background, alpha = rule
    with_ignore, without = (fuse(scores, classes, background, alpha=alpha, ignore=ignore)
                            for ignore in (True, False))
    assert ((with_ignore == without) | (with_ignore == IGNORE)).all()


@given(seed=SEEDS, size=st.tuples(SIDES, SIDES), order=st.permutations(range(4)),
       alpha=st.floats(0, 1))
def test_the_rule_does_not_know_the_classes_numbers(seed, size, order, alpha):
    """Which number a class has changes nothing but the label's, where no two scores are equal."""
    scores, background = draw_scores(seed, 4, size, False), torch.full(size, 0.3)
    label = fuse(scores, range(4), background, alpha=alpha)
    other = fuse(scores[list(order)], range(4), background, alpha=alpha)
    number = torch.tensor([0, *(c + 1 for c in order), *[IGNORE] * 251])
    assert torch.equal(number[other.long()].to(torch.uint8), label)


@given(rules(), st.integers(0, 19))
def test_a_class_without_a_score_changes_nothing(rule, extra):
    scores, classes, background, alpha = rule
    assume(extra not in classes)
    place = sum(c < extra for c in classes)
    more = torch.cat((scores[:place], torch.zeros(1, *background.shape), scores[place:]))
    for ignore in (True, False):
        assert torch.equal(
            fuse(more, sorted([*classes, extra]), background, alpha=alpha, ignore=ignore),
            fuse(scores, classes, background, alpha=alpha, ignore=ignore))


@given(rules(), st.sets(st.sampled_from([0, 0.1, 0.3, 0.5, 0.7, 1]), min_size=1))
def test_the_sweeps_levels_fall_with_alpha(rule, alphas):
    scores, classes, background, _ = rule
    salient = (background == 0).numpy()
    label, level = claims(scores, classes, salient, sorted(alphas))
    for count in range(1, len(alphas)):  # fewer alphas: the level, cut
        fewer = claims(scores, classes, salient, sorted(alphas)[:count])
        assert np.array_equal(fewer[0], label)
        assert np.array_equal(fewer[1], np.minimum(level, count))


# Maps on disk

@FEW
@given(seed=SEEDS, size=st.tuples(SIDES, SIDES), classes=st.sets(st.integers(0, 19)),
       exact=st.booleans())
def test_maps_come_back(scratch, seed, size, classes, exact):
    path, present = scratch / "maps.png", sorted(classes)
    scores = draw_scores(seed, len(present), size, exact)
    save_maps(path, to_bytes(scores), present)
    maps, found = load_maps(path, 20)
    assert found == present and maps.dtype == np.uint8 and maps.shape == (len(present), *size)
    error = scores.numpy() * 255 - maps  # truncated, not rounded
    assert (error > -1e-4).all() and (error < 1).all()
    if present:
        with pytest.raises(UserError, match="but the data set has"):
            load_maps(path, present[-1])


@FEW
@given(seed=SEEDS, size=st.tuples(SIDES, SIDES))
def test_labels_come_back(scratch, seed, size):
    label = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    save_label(scratch / "label.png", label)
    assert np.array_equal(read_label(scratch / "label.png"), label)


# Lists and tables

NAMES = ("cat", "cat 1", "beach day", "a,b", "é", "day.1", "sub/cat", "sub/dog 2", "7", "-x", "x;y")
CLASSES = {"cat": 0, "traffic light": 1, "dog": 2, "9": 3}
LABELS = st.sets(st.integers(0, len(CLASSES) - 1)).map(lambda labels: tuple(sorted(labels)))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    folder = tmp_path_factory.mktemp("pictures")
    for name in NAMES:
        path = folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (1, 1)).save(path)
    found = Pictures(folder)
    assert len(found.by_id) == len(NAMES)
    return found


def entries_of(pictures: Pictures, labels: dict[int, tuple[int, ...]]) -> list[Entry]:
    ids = list(pictures.by_id)
    return [Entry(ids[number], found) for number, found in labels.items()]


CHOSEN = st.lists(st.tuples(st.integers(0, len(NAMES) - 1), LABELS),
                  unique_by=lambda pair: pair[0]).map(dict)


@FEW
@given(labels=CHOSEN, mark=st.booleans(), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans(),
       blank=st.sampled_from(["", "  ", "\t"]), before=st.sampled_from(["", " ", "\t"]))
def test_lists_come_back(scratch, pictures, labels, mark, end, last, blank, before):
    path, entries = scratch / "list.txt", entries_of(pictures, labels)
    write_list(path, entries)
    assert list(read_list(path, pictures, CLASSES)) == entries  # in their order
    lines = path.read_text().splitlines()
    text = end.join(f"{before}{line}{before}{end}{blank}" for line in lines) + end * last
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
    assert list(read_list(path, pictures, CLASSES)) == entries


@FEW
@given(labels=CHOSEN, by=st.sampled_from(["name", "index", "mixed"]),
       gap=st.sampled_from([",", ", ", "\t"]))
def test_classes_by_name_are_those_by_index(scratch, pictures, labels, by, gap):
    path, entries, by_index = scratch / "list.txt", entries_of(pictures, labels), list(CLASSES)
    lines = []
    for entry in entries:
        words = [by_index[label] if by == "name" or by == "mixed" and label % 2 else str(label)
                 for label in entry.labels]
        # A tab ends a name that holds spaces, commas or digits.
        lines.append(f"{entry.id}\t{gap.join(words) or '-'}")
    path.write_text("\n".join(lines))
    assert list(read_list(path, pictures, CLASSES)) == entries


@FEW
@given(labels=CHOSEN, again=st.integers(0, 10))
def test_an_image_listed_twice_is_an_error_and_the_first_counts(scratch, pictures, labels, again):
    assume(labels)
    path, entries = scratch / "list.txt", entries_of(pictures, labels)
    write_list(path, [*entries, entries[again % len(entries)]])
    *found, error = read_list(path, pictures, CLASSES)
    assert found == entries
    assert f"line {len(entries) + 1}: {entries[again % len(entries)].id} is listed twice" in str(
        error)


@FEW
@given(labels=CHOSEN, mark=st.booleans(), suffix=st.sampled_from([".csv", ".tsv"]),
       delimiter=st.sampled_from(",;\t"), separator=st.sampled_from([";", ",", " ; "]),
       end=st.sampled_from(["\n", "\r\n"]), halves=st.booleans())
def test_tables_come_back(scratch, pictures, labels, mark, suffix, delimiter, separator, end,
                          halves):
    """`halves`: each image has a row for each of its classes; they add up."""
    delimiter = "\t" if suffix == ".tsv" else delimiter
    path, entries, names = scratch / f"table{suffix}", entries_of(pictures, labels), list(CLASSES)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerow(["Image", "split", "labels"])
    for entry in entries:
        cells = [names[label] for label in entry.labels]
        for cell in (cells if halves and cells else [separator.join(cells) or "-"]):
            writer.writerow([f" {entry.id}.png", "", f"{cell} "])
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.getvalue().encode())
    source = Source("a table", pictures, list(CLASSES))
    assert read_table(path, source) == [entry.id for entry in entries]
    assert source.labels == {entry.id: frozenset(names[label] for label in entry.labels)
                             for entry in entries}


@given(labels=st.lists(LABELS, max_size=40), share=st.floats(0, 1), seed=SEEDS)
def test_splits_are_complete_and_leave_every_class(labels, share, seed):
    entries = [Entry(f"image {number}", found) for number, found in enumerate(labels)]
    train, held = split(entries, share, seed)
    assert sorted([*train, *held], key=entries.index) == entries
    assert train == sorted(train, key=entries.index) and held == sorted(held, key=entries.index)
    assert len(held) <= round(share * len(entries)) and (train or not entries)
    assert {label for entry in entries for label in entry.labels} == {
        label for entry in train for label in entry.labels}
    assert split(entries[::-1], share, seed)[1] == held[::-1]  # drawn by id, not by place


# Scores

@st.composite
def scored(draw: Any) -> tuple[list[tuple[np.ndarray, np.ndarray]], int, str]:
    """(prediction, mask) of some images, the number of labels, what a predicted 255 is."""
    rng, labels = np.random.default_rng(draw(SEEDS)), draw(st.integers(1, 6))
    values = [*range(labels), IGNORE]
    images = [tuple(rng.choice(values, draw(st.tuples(SIDES, SIDES))).astype(np.uint8)
                    for _ in range(2)) for _ in range(draw(st.integers(0, 4)))]
    images = [(a, np.resize(b, a.shape)) for a, b in images]
    return images, labels, draw(st.sampled_from(["miss", "skip"]))


def matrix_of(images: list, labels: int, unlabelled: str) -> ConfusionMatrix:
    matrix = ConfusionMatrix(labels, unlabelled)
    for prediction, mask in images:
        matrix.update(prediction, mask)
    return matrix


@given(scored())
def test_scores_are_those_of_a_plain_count(data):
    images, labels, unlabelled = data
    scores = matrix_of(images, labels, unlabelled).scores()
    flat = [np.concatenate([image[i].ravel() for image in images] or [np.zeros(0, np.uint8)])
            for i in range(2)]
    keep = (flat[1] != IGNORE) & ((flat[0] != IGNORE) | (unlabelled == "miss"))
    guess, truth = flat[0][keep], flat[1][keep]
    present = [label for label in range(labels) if (truth == label).any()]

    def ratio(part: np.ndarray, whole: np.ndarray) -> float:
        return part.sum() / whole.sum() if whole.any() else 0.0

    hits = {label: (guess == label) & (truth == label) for label in range(labels)}
    iou = [ratio(hits[n], (guess == n) | (truth == n)) for n in range(labels)]
    precision = [ratio(hits[n], guess == n) for n in range(labels)]
    recall = [ratio(hits[n], truth == n) for n in range(labels)]
    assert np.allclose(scores.class_iou, iou) and np.allclose(scores.class_precision, precision)
    assert np.allclose(scores.class_recall, recall)
    assert scores.class_pixels == [(truth == n).sum() for n in range(labels)]

    def mean(values: list[float], numbers: list[int]) -> float:
        return float(np.mean([values[n] for n in numbers])) if numbers else 0.0

    foreground = [n for n in present if n]
    for found, expected in (
            (scores.miou, mean(iou, present)), (scores.precision, mean(precision, present)),
            (scores.recall, mean(recall, present)), (scores.mean_accuracy, mean(recall, present)),
            (scores.foreground_recall, mean(recall, foreground)),
            (scores.foreground_precision, mean(precision, foreground)),
            (scores.pixel_accuracy, float((guess == truth).mean()) if truth.size else 0.0),
            (scores.frequency_weighted_iou,
             sum((truth == n).mean() * iou[n] for n in present) if truth.size else 0.0)):
        assert 0 <= found <= 1 + 1e-12 and found == pytest.approx(expected)


@given(scored(), st.integers(0, 4))
def test_parts_add_up_to_the_whole(data, cut):
    images, *how = data
    parts = matrix_of(images[:cut], *how).counts + matrix_of(images[cut:], *how).counts
    assert torch.equal(parts, matrix_of(images, *how).counts)
    assert torch.equal(parts, matrix_of(images[::-1], *how).counts)


@given(scored(), st.randoms(use_true_random=False))
def test_scores_do_not_know_the_labels_numbers(data, random):
    images, labels, unlabelled = data
    order = random.sample(range(labels), labels)
    table = np.array([*order, *range(labels, 256)], np.uint8)
    before, after = (matrix_of(some, labels, unlabelled).scores() for some in
                     (images, [(table[a], table[b]) for a, b in images]))
    assert [after.class_iou[n] for n in order] == before.class_iou
    assert after.miou == pytest.approx(before.miou)
    assert after.pixel_accuracy == before.pixel_accuracy


@given(scored())
def test_what_the_mask_ignores_does_not_count(data):
    images, labels, unlabelled = data
    for prediction, mask in images:
        counts = count_labels(prediction, mask, labels, unlabelled)
        assert counts.sum() == ((mask != IGNORE) & (
            (prediction != IGNORE) | (unlabelled == "miss"))).sum()
        other = np.where(mask == IGNORE, 0, prediction).astype(np.uint8)
        assert np.array_equal(count_labels(other, mask, labels, unlabelled), counts)
        perfect = count_labels(mask, mask, labels, unlabelled)
        assert np.isnan(mean_iou(perfect)) if (mask == IGNORE).all() else mean_iou(perfect) == 1


# Sizes, crops, padding

def sample_of(seed: int, size: tuple[int, int], classes: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    labels = torch.zeros(20)
    labels[:classes] = 1
    return {"id": "a", "size": size, "labels": labels,
            "image": Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)),
            "mask": rng.choice([0, 1, 2, 3, IGNORE], size).astype(np.uint8),
            "saliency": rng.integers(0, 2, size, dtype=np.uint8),
            "maps": rng.integers(0, 256, (classes, *size), dtype=np.uint8),
            "map_class": torch.arange(classes)}


@given(seed=SEEDS, size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
       side=st.integers(8, 24), more=st.integers(0, 8), count=st.integers(0, 3))
def test_companions_have_the_images_size_and_their_own_values(seed, size, side, more, count):
    rng = np.random.default_rng(seed)
    for transform, kept in ((Evaluation(side), False), (RefinementTraining(side), False),
                            (ClassifierTraining(side + more, side), False),
                            (ImageOnly(side, keep_pixels=True), True)):
        before = sample_of(seed, size, count)
        sample = transform.sample(dict(before), rng)
        batch = transform.batch(collate([sample]))
        assert batch["image"].shape == (1, 3, side, side) and batch["image"].isfinite().all()
        for name in ("mask", "saliency"):
            assert sample[name].shape == (size if kept else (side, side))
            assert set(sample[name].unique().tolist()) <= set(np.unique(before[name]).tolist())
        assert len(batch["maps"]) == count and batch["map_class"].tolist() == list(range(count))
        if kept:
            assert np.array_equal(sample["pixels"], before["image"])
            assert np.array_equal(sample["mask"], before["mask"])


@given(seed=SEEDS, size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
       crop=st.integers(1, 40), scale=st.sampled_from([0.5, 0.75, 1.0, 1.5]))
def test_crops_of_deeplab_hold_the_image_and_padding(seed, size, crop, scale):
    mean = (1.5, 2.5, 3.5)
    given_, rng = sample_of(seed, size), np.random.default_rng(seed)
    sample = Training(mean, [scale], crop).sample(dict(given_), rng)
    image, mask = sample["image"].permute(1, 2, 0).numpy(), sample["mask"].numpy()
    assert image.shape == (crop, crop, 3) and mask.shape == (crop, crop)
    height, width = (min(crop, max(1, int(side * scale))) for side in size)
    inside = np.zeros((crop, crop), bool)
    inside[:height, :width] = True
    assert any(np.array_equal(image[~way], np.broadcast_to(mean[::-1], image[~way].shape))
               and (mask[~way] == IGNORE).all() for way in (inside, inside[:, ::-1]))
    if scale == 1:  # a window of the very pixels, perhaps mirrored
        found = False
        pixels = np.asarray(given_["image"], np.float32)
        for flip in (False, True):
            seen, label = (array[:, ::-1] if flip else array for array in (image, mask))
            found |= any(
                np.array_equal(seen[:height, :width], pixels[y:y + height, x:x + width])
                and np.array_equal(label[:height, :width],
                                   given_["mask"][y:y + height, x:x + width])
                for y in range(size[0] - height + 1) for x in range(size[1] - width + 1))
        assert found


@given(seed=SEEDS, size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
       most=st.integers(8, 60))
def test_shrunk_images_keep_their_shape(seed, size, most):
    image = sample_of(seed, size)["image"]
    small = shrink(image, most)
    assert shrink(image, None) is image and max(small.size) == min(most, max(image.size))
    factor = max(small.size) / max(image.size)
    for before, after in zip(image.size, small.size, strict=True):
        assert after >= 1 and abs(after - before * factor) <= 1
    label = sample_of(seed, size)["mask"]
    back = nearest(nearest(label, small.size[::-1]), size)
    assert back.shape == size and set(np.unique(back)) <= set(np.unique(label))


# The order of images

ORDERS = {"length": st.integers(1, 40), "batch": st.integers(1, 12), "seed": st.integers(0, 9),
          "world": st.integers(1, 5)}


def drawn(order: ShuffledBatches, epoch: int) -> list[list[tuple[int, int]]]:
    order.set_epoch(epoch)
    found = list(order)
    assert len(found) == len(order)
    return found


@given(**ORDERS, epoch=st.integers(1, 5))
def test_an_epoch_shows_every_image_once(length, batch, seed, world, epoch):
    assume(batch <= length)
    alone = drawn(ShuffledBatches(length, batch, seed), epoch)
    indices = [index for keys in alone for _, index in keys]
    assert len(set(indices)) == len(indices) == length // batch * batch
    assert set(indices) <= set(range(length))
    assert {number for keys in alone for number, _ in keys} == {epoch - 1}
    shares = [drawn(ShuffledBatches(length, batch, seed, rank, world), epoch)
              for rank in range(world)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == alone


@given(seed=st.integers(0, 9), epoch=st.integers(1, 5), other=st.integers(6, 9))
def test_each_epoch_has_an_order_of_its_own(seed, epoch, other):
    orders = [[index for keys in drawn(ShuffledBatches(30, 5, own), at) for _, index in keys]
              for own, at in ((seed, epoch), (seed, epoch + 1), (seed, other), (seed + 1, epoch))]
    assert len(set(map(tuple, orders))) == len({epoch, epoch + 1, other}) + 1


@given(**ORDERS, stretch=st.integers(1, 7), total=st.integers(1, 30))
def test_stretches_cut_an_endless_order(length, batch, seed, world, stretch, total):
    """Where it is cut changes nothing; whoever goes on in the middle gets the rest."""
    def order(stretch: int, rank: int = 0, world: int = 1) -> ShuffledBatches:
        return ShuffledBatches(length, batch, seed, rank, world, stretch, total)

    whole = drawn(order(total), 1)
    count = -(-total // stretch)
    parts = [drawn(order(stretch), number) for number in range(1, count + 1)]
    assert sum(parts, []) == whole and len(whole) == total
    keys = sum(whole, [])
    for shuffle in range(len(keys) // length):
        seen = keys[shuffle * length:(shuffle + 1) * length]
        assert sorted(seen) == [(shuffle, index) for index in range(length)]
    resumed = order(stretch)
    assert [drawn(resumed, number) for number in range(count, 0, -1)] == parts[::-1]
    shares = [sum((drawn(order(stretch, rank, world), n) for n in range(1, count + 1)), [])
              for rank in range(world)]
    assert [sum(keys, []) for keys in zip(*shares, strict=True)] == whole


@given(batch=st.integers(1, 40), world=st.integers(1, 9))
def test_unequal_shares_make_exact_means(batch, world):
    """The mean over processes of weighted means is the mean over the batch."""
    assume(world <= batch)
    orders = [ShuffledBatches(batch, batch, 0, rank, world) for rank in range(world)]
    values = np.random.default_rng(batch).integers(0, 99, batch).tolist()
    sizes = [order.share.stop - order.share.start for order in orders]
    assert sum(sizes) == batch and min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    total = Fraction(0)
    for order, size in zip(orders, sizes, strict=True):
        weight = Fraction(order.weight).limit_denominator(1000)
        assert float(weight) == pytest.approx(order.weight, abs=1e-12)
        total += weight * Fraction(sum(values[order.share]), size)
    assert total / world == Fraction(sum(values), batch)


class Numbers(torch.utils.data.Dataset):
    """A data set without images."""

    def __init__(self, length: int) -> None:
        self.length, self.transform = length, None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Any) -> Any:
        return key


def runtime(rank: int, world: int) -> Any:
    return SimpleNamespace(rank=rank, world=world, device=torch.device("cpu"), cores=1)


@given(length=st.integers(1, 40), batch=st.integers(1, 12), shards=st.integers(1, 5),
       world=st.integers(1, 4), done=st.sets(st.integers(0, 39)))
def test_labelling_does_all_that_is_left_once(length, batch, shards, world, done):
    """Whatever is done already, by however many shards of however many processes."""
    todo = [index for index in range(length) if index not in done]
    whole = [list(range(start, min(start + batch, length))) for start in range(0, length, batch)]
    seen = []
    for number in range(1, shards + 1):
        share = of_shard(todo, batch, (number, shards))
        assert share == sorted(share)
        for rank in range(world):
            loader = inference_batches(Numbers(length), share, batch, runtime(rank, world), 0,
                                       list).loader
            seen += list(loader.batch_sampler)
    assert sorted(seen) == [company for company in whole if set(company) & set(todo)]
    assert of_shard(todo, batch, None) == todo


@given(**ORDERS)
def test_training_batches_are_the_orders(length, batch, seed, world):
    assume(world <= batch <= length)
    loaders = [training_batches(Numbers(length), batch, runtime(rank, world), seed, 0, list)
               for rank in range(world)]
    assert sum(loader.weight for loader in loaders) == pytest.approx(world)
    for rank, loader in enumerate(loaders):
        loader.set_epoch(3)
        assert list(loader.loader) == drawn(
            ShuffledBatches(length, batch, seed, rank, world), 3)


# Regions

@st.composite
def label_images(draw: Any) -> np.ndarray:
    """Labels with blobs, holes, lines and specks."""
    rng = np.random.default_rng(draw(SEEDS))
    size = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    share = draw(st.floats(0, 1))
    coarse = rng.choice([0, 1, 2, IGNORE], (size[0] // 4 + 1, size[1] // 4 + 1)).astype(np.uint8)
    label = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)
    fine = rng.choice([0, 1, 2, IGNORE], size).astype(np.uint8)
    return np.where(rng.random(size) < share * share, fine, label).astype(np.uint8)


@given(label_images())
def test_regions_and_their_outlines_give_the_labels_back(label):
    drawn, filled = np.zeros_like(label), np.zeros_like(label)
    for region in regions(label):
        assert region.area and not drawn[region.window][region.mask].any()
        drawn[region.window][region.mask] = region.label
        one = cv2.fillPoly(np.zeros_like(label), [outline(region).astype(np.int32)], 1)
        filled[one > 0] = region.label
        assert one.sum() == region.area
        assert cv2.connectedComponents(one, connectivity=8)[0] == 2
    decided = np.where(label == IGNORE, 0, label)
    assert np.array_equal(drawn, decided) and np.array_equal(filled, decided)


@given(label_images())
def test_regions_are_all_that_hangs_together(label):
    for number in (1, 2):
        parts = cv2.connectedComponents((label == number).astype(np.uint8), connectivity=8)[0] - 1
        assert sum(region.label == number for region in regions(label)) == parts


@given(label_images(), st.integers(1, 30))
def test_only_small_regions_go(label, least):
    kept = without_small_regions(label, least)
    assert ((kept == label) | (kept == 0)).all()
    assert np.array_equal(kept == IGNORE, label == IGNORE)

    def places(image: np.ndarray) -> set[tuple]:
        return {(r.label, r.top, r.left, r.mask.tobytes()) for r in regions(image)
                if r.area >= least}

    assert places(kept) == places(label) and all(r.area >= least for r in regions(kept))
    assert np.array_equal(without_small_regions(kept, least), kept)


@given(label_images())
def test_run_lengths_give_the_mask_back(label):
    mask = pytest.importorskip("pycocotools.mask")
    for number in (1, 2):
        wanted = (label == number).astype(np.uint8)
        runs = run_lengths(mask.encode(np.asfortranarray(wanted))["counts"].decode())
        values = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
        assert np.array_equal(values.reshape(label.shape, order="F"), wanted)
