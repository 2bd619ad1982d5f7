"""DeepLab's commands on a tiny data set: train, resume, processes, test, crf, predict, errors."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "DeepLab-V2-PyTorch"))

from datasets.synthetic import generate
from labelling.labels import read_label, voc_palette
from labelling.metrics import ConfusionMatrix
from libs import transforms
from libs.config import HERE as DEEPLAB
from libs.inference import LogitStore, segment
from utils import checkpoint
from utils.files import UserError
from utils.provenance import Record
from utils.stage import launch
from utils.training import Training

spec = importlib.util.spec_from_file_location("deeplab_main", DEEPLAB / "main.py")
main = importlib.util.module_from_spec(spec)
spec.loader.exec_module(main)

CONFIG = """
EXP: {{ID: tiny, OUTPUT_DIR: {out}}}
DATASET: {{ROOT: {root}, LABEL_DIR: {root}/SegmentationClassAug}}
IMAGE: {{CROP: 49, SCALES: [0.75, 1.0, 1.25]}}
MODEL: {{NAME: small, BLOCKS: [1, 1, 1, 1], WIDTH: 0.125}}
SOLVER: {{ITER_MAX: 5, ITER_SAVE: 2, ITER_SIZE: 2, BATCH_SIZE: 4, LR: 0.001, LR_DECAY: 1}}
RUN: {{NUM_WORKERS: 0, DEVICE: cpu, AMP: off}}
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("deeplab") / "data"
    generate(root, num_classes=3, train=10, val=5, single=1, size=64, workers=1)
    return root


@pytest.fixture
def config(tmp_path, data) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(out=tmp_path / "out", root=data))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data) -> Path:
    """A configuration whose training is done."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(out=folder / "out", root=data))
    run("train", path)
    return path


def run(command: str, config: Path, *args: object) -> None:
    try:
        launch(main.main, main.parse([command, "-c", str(config), *map(str, args)]))
    except SystemExit as error:  # as the script ends
        if isinstance(error.code, str):
            raise UserError(error.code) from error
        raise KeyboardInterrupt from error


def weights(config: Path, name: str = "checkpoint_final.pth") -> dict[str, torch.Tensor]:
    return checkpoint.read(models(config) / name).state


def models(config: Path) -> Path:
    return config.parent / "out/models/tiny/small/train_aug"


def scores(config: Path, name: str) -> dict:
    return json.loads((config.parent / "out/scores/tiny/small/val" / name).read_text())


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], **tolerance) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        if tolerance:
            torch.testing.assert_close(value, b[name], msg=lambda m, n=name: f"{n}: {m}",
                                       **tolerance)
        else:
            assert torch.equal(value, b[name]), name


def test_interrupted_training_ends_like_an_unbroken_one(trained, config, monkeypatch):
    saves = []
    original = Training.end_epoch

    def interrupted(self, *args):
        original(self, *args)
        saves.append(len(self.history))
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Training, "end_epoch", interrupted)
            run("train", config)
        assert not (models(config) / "checkpoint_final.pth").exists()
    run("train", config, "RUN.NUM_WORKERS=2")  # nor do workers change anything
    assert saves == [1, 2]
    assert_equal(weights(config), weights(trained))
    history = json.loads((models(config) / "metrics.json").read_text())
    unbroken = json.loads((models(trained) / "metrics.json").read_text())
    assert [row["loss"] for row in history] == [row["loss"] for row in unbroken]
    assert history[2]["lr"] == pytest.approx(0.001 * (1 - 4 / 5) ** 0.9)
    before = weights(config)
    run("train", config)  # finished: nothing to do
    assert_equal(weights(config), before)


def test_no_checkpoint_is_chosen_by_score(trained):
    assert {path.name for path in models(trained).glob("*.pth")} == {
        "last.pth", "checkpoint_final.pth"}


def test_other_options_are_refused_and_overwrite_starts_over(config, trained):
    run("train", config, "SOLVER.ITER_MAX=1")
    with pytest.raises(UserError, match="SOLVER.LR was 0.001, is 0.01"):
        run("train", config, "SOLVER.ITER_MAX=1", "SOLVER.LR=0.01")
    run("train", config, "--overwrite")
    assert_equal(weights(config), weights(trained))


@pytest.mark.parametrize("mode", ["masked", "off"])
def test_online_label_modes_train_differently(config, trained, mode):
    run("train", config, f"SOLVER.ONLINE_LABEL={mode}")
    name = "base.layer5.block1.conv3x3.conv.weight"
    assert not torch.equal(weights(config)[name], weights(trained)[name])


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_equal_one(trained, tmp_path, data, processes):
    """A batch of 4: three processes hold 1, 1 and 2 images of it."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(out=tmp_path / "out", root=data))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               str(processes), str(DEEPLAB / "main.py"), "train", "-c", str(path)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=150,
                   capture_output=True)
    assert_equal(weights(path), weights(trained), rtol=1e-4, atol=1e-6)


def test_test_and_crf_agree_with_their_labels_and_with_stored_logits(trained, tmp_path, data):
    labels = tmp_path / "labels"
    run("test", trained, "--labels-dir", labels, "--save-logits")
    result = scores(trained, "scores.json")
    matrix = ConfusionMatrix(4)
    ids = [line.split()[0] for line in
           (data / "ImageSets/Segmentation/val.txt").read_text().splitlines()]
    for name in ids:
        matrix.update(read_label(labels / f"{name}.png"),
                      read_label(data / "SegmentationClassAug" / f"{name}.png"))
    assert result["miou"] == pytest.approx(matrix.scores().miou)
    assert result["images"] == 5 and result["labels"][0] == "background"

    run("crf", trained, "--labels-dir", tmp_path / "direct")
    direct = scores(trained, "scores_crf.json")
    run("crf", trained, "--stored-logits", "--labels-dir", tmp_path / "stored",
        "--scores", tmp_path / "elsewhere" / "stored.json")
    stored = json.loads((tmp_path / "elsewhere" / "stored.json").read_text())
    assert stored["miou"] == pytest.approx(direct["miou"], abs=2e-3)
    same = [(read_label(tmp_path / "direct" / f"{name}.png")
             == read_label(tmp_path / "stored" / f"{name}.png")).mean() for name in ids]
    assert min(same) > 0.99


def test_logits_of_another_checkpoint_are_refused(trained, tmp_path):
    run("test", trained, "--save-logits")
    state = weights(trained)
    state["base.aspp.c0.bias"] = state["base.aspp.c0.bias"] + 1
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match="checkpoint has other content.*--save-logits"):
        run("crf", trained, "--stored-logits", "-m", tmp_path / "other.pth")


def test_segment_resizes_then_takes_the_maximum():
    logits = torch.randn(3, 5, 7)
    (_, label), = segment([({"size": (40, 60)}, logits)])
    resized = torch.nn.functional.interpolate(logits[None], (40, 60), mode="bilinear")[0]
    np.testing.assert_array_equal(label, resized.argmax(0).numpy())


def test_predict_any_images(trained, tmp_path, data):
    """Own sizes, palette PNGs, overlays; a broken file is named and does not stop the others."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (50, 80)), ("b b.png", (71, 33))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 of 4 images failed.*broken.jpg"):
        run("predict", trained, "--input", folder, "--output-dir", out, "--device", "cpu")
    with Image.open(out / "a.png") as image:
        assert image.mode == "P" and image.size == (80, 50)
        assert bytes(image.getpalette())[:21] == voc_palette()[:21]
    assert read_label(out / "b b.png").shape == (71, 33)
    assert {path.name for path in (out / "overlays").iterdir()} == {
        "a.jpg", "b b.jpg", "grey.jpg"}
    # A released file is a plain state dict; one image is as good as a folder.
    torch.save(weights(trained), tmp_path / "released.pth")
    run("predict", trained, "-m", tmp_path / "released.pth", "--input", folder / "a.jpg",
        "--output-dir", tmp_path / "one")
    np.testing.assert_array_equal(read_label(tmp_path / "one" / "a.png"), read_label(out / "a.png"))
    time = (out / "a.png").stat().st_mtime_ns
    run("predict", trained, "--input", folder / "a.jpg", "--output-dir", out)
    assert (out / "a.png").stat().st_mtime_ns == time  # finished images are skipped


def test_predict_with_crf(trained, tmp_path, data):
    image = next((data / "JPEGImages").iterdir())
    run("predict", trained, "--crf", "--input", image, "--output-dir", tmp_path / "crf")
    with Image.open(image) as picture:
        assert read_label(tmp_path / "crf" / f"{image.stem}.png").shape == picture.size[::-1]


def test_errors_are_one_line(config, tmp_path, capsys):
    for args, expected in ((["train", "DATASET.ROOT=nowhere"], "DATASET.ROOT"),
                           (["test"], "checkpoint_final.pth"),
                           (["test", "SOLVER.LRR=1"], "did you mean SOLVER.LR")):
        with pytest.raises(SystemExit) as error:
            launch(main.main, main.parse([args[0], "-c", str(config), *args[1:]]))
        text = str(error.value)
        assert text.startswith("error: ") and expected in text and "\n" not in text
    with pytest.raises(SystemExit):
        main.parse(["train", "-c", str(config), "--oops"])
    assert "--oops" in capsys.readouterr().err


def test_checkpoint_of_other_classes_or_kind(trained, tmp_path):
    state = weights(trained)
    wrong = {name: value[:3] if ".aspp." in name else value for name, value in state.items()}
    torch.save(wrong, tmp_path / "wrong.pth")
    torch.save(state, tmp_path / "right.pth")
    with pytest.raises(UserError, match="trained for 2 classes.*has 3"):
        run("test", trained, "-m", tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="does not fit"):
        run("test", trained, "-m", tmp_path / "right.pth", "MODEL.WIDTH=0.25")


@pytest.mark.parametrize("size", [(40, 70), (90, 30), (120, 100)])
def test_augmentation_keeps_image_and_label_together(size):
    """An image that shows its own label: after scale, crop, pad and flip it still does."""
    blocks = np.random.default_rng(1).integers(1, 3, (4, 4)).astype(np.uint8)
    label = np.asarray(Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST))
    image = np.repeat(label[..., None], 3, axis=2)
    seen = set()
    for seed in range(12):
        x, y = transforms.augment(image, label, (0, 0, 0), [0.5, 1.0, 1.5], 64,
                                  np.random.default_rng(seed))
        assert x.shape == (64, 64, 3) and y.shape == (64, 64)
        assert (x[y == 255] == 0).all()
        sharp = (x[..., 0] == x[..., 0].round()) & (y != 255)  # not where neighbours were blended
        assert (x[..., 0][sharp] == y[sharp]).all() and sharp.sum() > 0.7 * (y != 255).sum()
        seen.add(tuple(y[::9, ::9].flatten().tolist()))
    assert len(seen) > 4


def test_scaled_sizes_are_truncated():
    """375 at 0.5 is 187, as in the official code."""
    image, label = np.zeros((375, 101, 3), np.uint8), np.zeros((375, 101), np.uint8)
    _, y = transforms.augment(image, label, (0, 0, 0), [0.5], 400, np.random.default_rng(0))
    assert (y != 255).any(axis=1).sum() == 187 and (y != 255).any(axis=0).sum() == 50


def test_inputs_are_bgr_minus_mean():
    image = torch.tensor([10, 20, 30], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 2, 2)
    torch.testing.assert_close(transforms.normalize(image, [1.0, 2.0, 3.0])[0, :, 0, 0],
                               torch.tensor([29.0, 18.0, 7.0]))


def test_what_a_crop_lacks_is_mean_and_undecided():
    """A small image on a large crop: the rest is 0 after the mean, 255, and has no class."""
    transform = transforms.Training([104.0, 116.0, 122.0], [1.0], 20)
    sample = {"id": "a", "image": Image.new("RGB", (9, 7), (255, 255, 255)),
              "mask": np.zeros((7, 9), np.uint8), "labels": torch.tensor([0.0, 1.0])}
    made = transform.sample(sample, np.random.default_rng(0))
    batch = transform.batch({name: value[None] for name, value in made.items() if name != "id"})
    inside = batch["mask"][0] == 0
    assert inside.sum() == 63 and (batch["mask"][0][~inside] == 255).all()
    assert not batch["image"][0][:, ~inside].any()
    assert batch["image"][0][:, inside].unique(dim=1)[:, 0].tolist() == [151, 139, 133]
    assert batch["present"].tolist() == [[1, 0, 1]]  # the background is in every image


def test_logits_that_are_being_replaced_are_not_complete(tmp_path):
    record = Record("test", {}, ["cat"])
    store = LogitStore(tmp_path, record)
    store.finish()
    stream = store.record(iter([({"id": "a"}, torch.zeros(2, 3, 3))]))
    next(stream)
    with pytest.raises(UserError, match="no complete stored logits"):
        store.replay(None, None, "test")


def test_other_classes_are_other_classes_though_as_many(config, trained, data, tmp_path):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    shutil.rmtree(root / "Annotations")
    names = (root / "classes.txt").read_text().split()
    (root / "classes.txt").write_text("\n".join([*names[:-1], "dragon"]) + "\n")
    with pytest.raises(UserError, match="dragon"):
        run("test", trained, f"DATASET.ROOT={root}")


def test_masks_may_lie_elsewhere(trained, data, tmp_path):
    """Scored against their own labels, predictions are right in every pixel."""
    run("test", trained, "--labels-dir", tmp_path / "labels")
    run("test", trained, f"DATASET.MASK_DIR={tmp_path / 'labels'}", "--scores",
        tmp_path / "own.json")
    assert json.loads((tmp_path / "own.json").read_text())["pixel_accuracy"] == 1
