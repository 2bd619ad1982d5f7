"""The label rule's truth table, the palette, label PNGs, sparse maps, and the metrics."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from labelling.labels import colorize, read_label, save_label, voc_palette
from labelling.maps import KEY, MAX_PIXELS, load_maps, save_maps, to_bytes
from labelling.metrics import ConfusionMatrix
from labelling.rule import background_scores, fuse
from labelling.visualize import overlay_label, overlay_maps, save_grid
from utils.files import UserError

# What stands in a pixel: scores of classes 2, 5 and 9; its saliency; the label without and with
# the ignore steps. Labels are 3, 6 and 10.
RULE = {
    "not salient": ((0.6, 0.3, 0.1), 0, 0, 0),
    "not salient, a score of one": ((1.0, 0.3, 0.1), 0, 0, 0),  # a tie: the first wins
    "not salient, a score above one": ((1.5, 0.3, 0.1), 0, 3, 3),
    "salient, one class": ((0.0, 0.3, 0.1), 1, 6, 6),
    "salient, the strongest wins": ((0.3, 0.4, 0.5), 1, 10, 10),
    "salient, two equal": ((0.1, 0.4, 0.4), 1, 6, 6),
    "salient, all equal": ((0.4, 0.4, 0.4), 1, 3, 3),
    "salient, at alpha": ((0.0, 0.2, 0.0), 1, 6, 6),
    "salient, below alpha": ((0.0, 0.19999, 0.1), 1, 0, 255),
    "salient, nothing": ((0.0, 0.0, 0.0), 1, 0, 255),
    "salient, negative": ((-0.5, -0.1, -2.0), 1, 0, 255),
    "salient, negative and positive": ((-0.5, 0.3, -2.0), 1, 6, 6),
    "salient, two certain": ((0.95, 0.92, 0.0), 1, 3, 3),
    "salient, three certain": ((0.95, 0.97, 0.91), 1, 6, 255),
    "salient, three at the limit": ((0.9, 0.9, 0.9), 1, 3, 3),  # the limit itself is not above
    # The background's own score of 1 counts as one of those above 0.9.
    "not salient, two certain": ((0.95, 0.92, 0.0), 0, 0, 255),
    "not salient, one certain": ((0.95, 0.5, 0.0), 0, 0, 0),
}


@pytest.mark.parametrize("case", RULE)
def test_label_rule(case):
    scores, salient, plain, ignoring = RULE[case]
    scores = torch.tensor(scores)[:, None, None].expand(3, 2, 3).contiguous()
    before = scores.clone()
    background = background_scores((2, 3), torch.full((2, 3), salient), 0.5)
    for ignore, expected in ((False, plain), (True, ignoring)):
        label = fuse(scores, [2, 5, 9], background, alpha=0.2, ignore=ignore)
        assert label.dtype == torch.uint8 and label.shape == (2, 3)
        assert (label == expected).all(), (case, label)
    assert torch.equal(scores, before)


def test_label_rule_with_a_constant_background():
    scores = torch.tensor([0.1, 0.25, 0.3, 0.31])[None, None]
    background = background_scores((1, 4), None, 0.3)
    # Nothing is known to be salient, so nothing salient can be left unclaimed.
    assert fuse(scores, [0], background, alpha=0.2).tolist() == [[0, 0, 0, 1]]


def test_label_rule_without_classes():
    saliency = torch.tensor([[0, 1]])
    label = fuse(torch.zeros(0, 1, 2), [], background_scores((1, 2), saliency, 0.0), alpha=0.2)
    assert label.tolist() == [[0, 255]]


def test_alpha_is_an_argument():
    scores, salient = torch.tensor([[[0.5]]]), background_scores((1, 1), torch.ones(1, 1), 0.0)
    assert fuse(scores, [4], salient, alpha=0.5).item() == 5
    assert fuse(scores, [4], salient, alpha=0.51).item() == 255


def by_the_formula(scores: np.ndarray, classes: list[int], background: np.ndarray, alpha: float,
                   ignore: bool) -> np.ndarray:
    """The rule as the paper's code has it: argmax over background and scores."""
    scores = np.where(scores < np.float32(alpha), 0, scores)
    candidates = np.concatenate((background[None], scores)).astype(np.float32)
    label = np.array([0, *(number + 1 for number in classes)])[candidates.argmax(axis=0)]
    if ignore:
        unclaimed = (background == 0) & (label == 0)
        label[(candidates > np.float32(0.9)).sum(axis=0) > 2] = 255
        label[unclaimed] = 255
    return label


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("cue", ["saliency", "threshold"])
def test_labels_equal_the_formula(count, cue):
    """On scores with many ties: among themselves, with the background, at alpha and at 0.9."""
    rng = np.random.default_rng(count)
    grid = np.array([-0.3, 0, 0.1, 0.2, 0.20001, 0.3, 0.5, 0.9, 0.91, 0.95, 1, 1.2], np.float32)
    for trial in range(20):
        scores = grid[rng.integers(0, len(grid), (count, 30, 40))]
        classes = sorted(rng.choice(20, count, replace=False).tolist())
        saliency = torch.from_numpy(rng.integers(0, 2, (30, 40), dtype=np.uint8))
        background = background_scores((30, 40), saliency if cue == "saliency" else None,
                                       float(grid[trial % len(grid)]))
        for alpha in (0.0, 0.2, 0.95):
            for ignore in (True, False):
                label = fuse(torch.from_numpy(scores), classes, background, alpha=alpha,
                             ignore=ignore)
                expected = by_the_formula(scores, classes, background.numpy(), alpha, ignore)
                np.testing.assert_array_equal(label.numpy(), expected)


# Label PNGs

def test_palette_is_that_of_voc(tmp_path):
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128),
             8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {number: tuple(palette[number].tolist()) for number in known} == known
    label = np.array([[0, 1], [20, 255]], np.uint8)
    save_label(tmp_path / "label.png", label)
    with Image.open(tmp_path / "label.png") as image:
        assert image.mode == "P"
        assert (np.array(image.convert("RGB")) == colorize(label)).all()
    assert (read_label(tmp_path / "label.png") == label).all()


def test_label_round_trip_keeps_every_number(tmp_path):
    label = np.arange(256, dtype=np.uint8).reshape(8, 32)
    save_label(tmp_path / "label.png", label)
    assert (read_label(tmp_path / "label.png") == label).all()
    assert [path.name for path in tmp_path.iterdir()] == ["label.png"]


def test_colour_images_are_no_labels(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "label.png")
    with pytest.raises(UserError, match="label.png.*RGB"):
        read_label(tmp_path / "label.png")


# Sparse maps

def realistic_maps(count: int, side: int = 320) -> np.ndarray:
    """What a network at stride 8 gives: one scene seen at three scales, with some noise, as grids
    of scores that are enlarged and merged by their maximum."""
    torch.manual_seed(0)
    scene = F.avg_pool2d(torch.randn(1, count, 44, 44), 5, stride=1)
    maps = []
    for cells in (32, 40, 48):
        seen = F.interpolate(scene, (cells, cells), mode="bilinear")
        seen = (seen + 0.03 * torch.randn_like(seen) - 0.05).relu()  # objects: less than half
        maps.append(F.interpolate(seen, (side, side), mode="bilinear", align_corners=True)[0])
    merged = torch.stack(maps).amax(0)
    return (255 * merged / merged.amax((1, 2), keepdim=True)).to(torch.uint8).numpy()


def test_maps_round_trip_and_size(tmp_path):
    maps = realistic_maps(2)
    save_maps(tmp_path / "maps.png", maps, [3, 14])
    assert (tmp_path / "maps.png").stat().st_size < 60_000
    again, classes = load_maps(tmp_path / "maps.png", 20)
    assert again.dtype == np.uint8 and (again == maps).all() and classes == [3, 14]


@pytest.mark.parametrize(("count", "height", "width"), [(0, 5, 7), (1, 1, 1), (3, 6, 2)])
def test_maps_of_any_number_and_size(tmp_path, count, height, width):
    maps = np.random.default_rng(0).integers(0, 256, (count, height, width), dtype=np.uint8)
    save_maps(tmp_path / "maps.png", maps, range(count))
    again, classes = load_maps(tmp_path / "maps.png", 3)
    assert again.shape == maps.shape and (again == maps).all() and classes == list(range(count))


@pytest.mark.parametrize("text", [None, "", "4", "4 classes 1", "4x4 classes x", "3x4 classes 1",
                                  "4x4 classes 1 2", "5x2 classes 2 1", "5x2 classes 1 1"])
def test_foreign_pngs_are_no_maps(tmp_path, text):
    info = PngInfo()
    if text is not None:
        info.add_text(KEY, text)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "maps.png", pnginfo=info)
    with pytest.raises(UserError, match="maps.png"):
        load_maps(tmp_path / "maps.png", 3)


@pytest.mark.filterwarnings("ignore")
def test_maps_too_large_to_be_read_again_shrink(tmp_path, monkeypatch):
    """20 classes on a photo of 12 megapixels; here Pillow's limit is lower instead."""
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr("labelling.maps.MAX_PIXELS", 2000)
    scores = torch.linspace(0, 1, 3 * 30 * 40).reshape(3, 30, 40)
    save_maps(tmp_path / "a.png", to_bytes(scores), [0, 1, 2])
    maps, classes = load_maps(tmp_path / "a.png", 3)
    assert classes == [0, 1, 2] and 1700 < maps.size <= 2000
    assert maps.shape[2] / maps.shape[1] == pytest.approx(4 / 3, rel=0.05)
    np.testing.assert_allclose(maps.mean((1, 2)), 255 * scores.mean((1, 2)), atol=1)
    assert to_bytes(scores[:1]).shape == (1, 30, 40)


def test_maps_with_classes_out_of_range(tmp_path):
    save_maps(tmp_path / "maps.png", np.zeros((1, 4, 4), np.uint8), [3])
    with pytest.raises(UserError, match=r"maps.png.*\[3\].*3"):
        load_maps(tmp_path / "maps.png", 3)


def test_maps_truncated_and_missing(tmp_path):
    path = tmp_path / "maps.png"
    save_maps(path, realistic_maps(1, 64), [0])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="maps.png"):
        load_maps(path, 3)
    with pytest.raises(UserError, match="other.png.*make_localization_maps.py"):
        load_maps(tmp_path / "other.png", 3)


@pytest.mark.parametrize(("maps", "classes"), [(np.zeros((2, 3, 3), np.uint8), [1]),
                                               (np.zeros((1, 3, 3)), [1])])
def test_maps_are_checked_before_writing(tmp_path, maps, classes):
    with pytest.raises(ValueError, match="classes"):
        save_maps(tmp_path / "maps.png", maps, classes)
    assert not list(tmp_path.iterdir())


# Metrics

TARGET = np.array([[0, 0, 0, 1], [1, 1, 255, 255], [0, 1, 255, 0]])
PREDICTION = np.array([[0, 1, 255, 1], [1, 0, 1, 7], [0, 255, 255, 2]])
PREDICTION[1, 3] = 0  # where the truth is unknown, anything may stand
# By hand. Background: 5 pixels, 2 hit, 3 predicted. Class 1: 4 pixels, 2 hit, 3 predicted.
# Class 2 is in no mask: 1 pixel predicted.


def test_metrics_by_hand():
    matrix = ConfusionMatrix(3)
    matrix.update(PREDICTION, TARGET)
    scores = matrix.scores()
    assert matrix.counts.sum() == 9
    assert scores.class_pixels == [5, 4, 0]
    assert scores.class_iou == pytest.approx([2 / 6, 2 / 5, 0])
    assert scores.class_recall == pytest.approx([2 / 5, 2 / 4, 0])
    assert scores.class_precision == pytest.approx([2 / 3, 2 / 3, 0])
    assert scores.miou == pytest.approx((2 / 6 + 2 / 5) / 2)  # of the classes in the masks
    assert scores.recall == scores.mean_accuracy == pytest.approx((2 / 5 + 2 / 4) / 2)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.pixel_accuracy == pytest.approx(4 / 9)
    assert scores.frequency_weighted_iou == pytest.approx(5 / 9 * 2 / 6 + 4 / 9 * 2 / 5)
    assert scores.foreground_recall == pytest.approx(1 / 2)
    assert scores.foreground_precision == pytest.approx(2 / 3)


def test_metrics_by_hand_skipping_the_unlabelled():
    matrix = ConfusionMatrix(3, unlabelled="skip")
    matrix.update(torch.from_numpy(PREDICTION), torch.from_numpy(TARGET))
    scores = matrix.scores()
    assert scores.class_pixels == [4, 3, 0]
    assert scores.class_iou == pytest.approx([2 / 5, 2 / 4, 0])
    assert scores.pixel_accuracy == pytest.approx(4 / 7)


def test_metrics_add_up_over_updates_and_types():
    whole, parts = ConfusionMatrix(3), ConfusionMatrix(3)
    whole.update(PREDICTION, TARGET)
    for prediction, target in zip(PREDICTION, TARGET, strict=True):
        parts.update(prediction.astype(np.uint8), torch.from_numpy(target.astype(np.uint8)))
    assert torch.equal(whole.counts, parts.counts)
    assert "mIoU 36.67" in whole.scores().table(["background", "a", "b"])


@pytest.mark.parametrize("wrong", [3, 4, 100, -1])
@pytest.mark.parametrize("side", ["prediction", "ground truth"])
def test_metrics_refuse_labels_out_of_range(wrong, side):
    good, bad = np.zeros(4, np.int64), np.array([0, wrong, 1, 2])
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=f"{side} holds label {wrong}"):
        matrix.update(*(bad, good) if side == "prediction" else (good, bad))
    assert not matrix.counts.any()


def test_metrics_refuse_other_sizes():
    with pytest.raises(ValueError, match="6 pixels.*4"):
        ConfusionMatrix(2).update(np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="unlabelled"):
        ConfusionMatrix(2, "drop")


def test_metrics_of_nothing():
    scores = ConfusionMatrix(2).scores()
    assert scores.miou == scores.pixel_accuracy == scores.precision == 0


# Pictures

def test_heat_is_red_where_the_score_is_high_and_blue_where_it_is_low():
    maps = np.zeros((2, 3, 40), np.uint8)
    maps[1, :, 20:] = 255  # the strongest counts
    heat = overlay_maps(np.full((3, 40, 3), 100, np.uint8), maps).astype(int)
    red, blue = heat[..., 0], heat[..., 2]
    assert (red > blue)[:, 20:].all() and (red < blue)[:, :20].all()


def test_a_label_over_its_image_lets_the_background_show():
    image = np.full((1, 3, 3), 100, np.uint8)
    drawn = overlay_label(image, np.array([[0, 1, 255]], np.uint8))[0].astype(int)
    assert (drawn[0] == 100).all()
    assert drawn[1].argmax() == 0 and drawn[1, 0] > 100  # VOC's first colour is a dark red
    assert (drawn[2] > 190).all()


@pytest.mark.parametrize("width", [40, 200])
def test_the_cells_of_a_grid_have_the_shape_of_its_pictures(tmp_path, width):
    save_grid(tmp_path / "grid.png", [[np.zeros((80, width, 3), np.uint8)] * 3] * 2, "abc", side=80)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * width, 2 * 80 + 30)


def test_a_class_that_is_never_found_is_not_called_absent():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 0]), np.array([0, 1]))
    lines = matrix.scores().table(["background", "missed", "absent"]).splitlines()
    assert ["not in the ground truth" in line for line in lines[1:4]] == [False, False, True]
