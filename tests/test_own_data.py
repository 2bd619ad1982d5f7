"""One's own pictures: docs/own_data.md as it stands, odd files through every stage, background."""

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from helpers import ENVIRONMENT, MACHINE, ROOT, TRAINING, run_stage, stage_error
from PIL import Image

import make_pseudo_labels
from datasets.images import read_image
from datasets.layout import DataRoot, Entry
from labelling.crf import crf_label, score_probabilities
from labelling.labels import IGNORE, read_label
from labelling.maps import load_maps
from labelling.rule import background_scores, fuse
from utils import checkpoint

# The document's commands are run as they stand but for this: trainings that take a second, and no
# processes that take longer to start than to work.
SHORTER = {
    "--init imagenet": "--init none --width 0.0625 --image-size 32 --epochs 1 --batch-size 4 "
                       "--num-workers 0",
    "MODEL.INIT_MODEL=imagenet": "MODEL.INIT_MODEL=none MODEL.WIDTH=0.0625 MODEL.BLOCKS=[1,1,1,1] "
                                 "SOLVER.ITER_MAX=2 SOLVER.BATCH_SIZE=2 IMAGE.CROP=33 "
                                 "RUN.NUM_WORKERS=0",
    "--background crf": "--background crf --num-workers 0",
    "--output-dir predictions": "--output-dir predictions RUN.NUM_WORKERS=0",
}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Blobs of colour."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (3, 3, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def rotated_exif() -> Image.Exif:
    """Orientation 6: stored lying on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# The document

def test_the_worked_example_runs_as_written(tmp_path):
    commands = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / "own_data.md").read_text(),
                          re.MULTILINE | re.DOTALL)
    script = "set -e\n" + "".join(commands)
    for original, shorter in SHORTER.items():
        assert original in script
        script = script.replace(original, shorter)
    for path in ROOT.iterdir():  # the project's folder, but what the commands write stays here
        if path.suffix == ".py" or path.name in ("datasets", "models", "utils",
                                                 "DeepLab-V2-PyTorch"):
            (tmp_path / path.name).symlink_to(path)
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    masks.mkdir()
    names = ["IMG_0001.jpg", "IMG_0002.jpg", "scan 3.tif", "crossing.webp", "IMG_0006.png",
             "IMG_0007.bmp", "empty street.jpeg", unicodedata.normalize("NFD", "Café am See.JPG")]
    for seed, name in enumerate(names):
        picture(40, 30 + seed, seed).save(photos / name)
    (photos / "measured.txt").write_text("IMG_0001\n")
    Image.new("L", (30, 40), 1).save(masks / "IMG_0001.png")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment = ENVIRONMENT | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ready    train_drs: 8 images" in done.stdout
    expected = sorted(unicodedata.normalize("NFC", Path(name).stem) for name in names)
    for folder in ("runs/photos/pseudo_labels", "runs/photos/pseudo_labels_crf", "predictions"):
        made = list((tmp_path / folder).glob("*.png"))
        assert sorted(unicodedata.normalize("NFC", path.stem) for path in made) == expected
        for path in made:
            source = next(photos / name for name in names if Path(name).stem == path.stem)
            assert read_label(path).shape == read_image(source)[0].size[::-1]
    assert len(list((tmp_path / "predictions" / "overlays").glob("*.jpg"))) == len(names)
    assert sorted(path.name for path in photos.iterdir()) == sorted(
        [*names, "classes.txt", "train_aug.txt", "measured.txt"])  # nothing written there


# Odd files

ODD = {  # list line -> file name, height, width, mode, options of saving
    "grey 0": ("grey.png", 20, 30, "L", {}),
    "palette 1": ("palette.PNG", 20, 30, "P", {}),
    "transparent 2": ("transparent.png", 20, 30, "RGBA", {}),
    "print 0 1": ("print.jpg", 20, 30, "CMYK", {}),
    "x-ray 2": ("x-ray.png", 20, 30, "I;16", {}),
    "on its side 0 2": ("on its side.jpg", 20, 30, "RGB", {"exif": rotated_exif()}),
    "x-ray on its side 1": ("x-ray on its side.png", 20, 30, "I;16", {"exif": rotated_exif()}),
    "line 1": ("line.bmp", 1, 60, "RGB", {}),
    "post 0": ("post.tiff", 70, 1, "RGB", {}),
    "dot 2": ("dot.webp", 1, 1, "RGB", {}),
    "panorama 0 1 2": ("panorama.jpeg", 10, 400, "RGB", {}),
    "Straße 東京.jpg 1": ("Straße 東京.jpg", 20, 30, "RGB", {}),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> tuple[Path, Path]:
    """(data root, run folder): a folder of odd files, and the trainings done on it."""
    folder = tmp_path_factory.mktemp("odd")
    root, run = folder / "data", folder / "run"
    root.mkdir()
    for seed, (name, height, width, mode, options) in enumerate(ODD.values()):
        image = picture(height, width, seed)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        image.save(root / name, **options)
    (root / "classes.txt").write_text("one\ntwo\nthree\n")
    (root / "train_aug.txt").write_text("\n".join(ODD) + "\n")
    common = ("--data-root", root, "--run-dir", run, *MACHINE)
    run_stage("train_drs", *common, *TRAINING)
    run_stage("make_localization_maps", *common)
    run_stage("train_refine", *common, *TRAINING)
    # After so short a training every score may be 0: here they go from below 0 to above 1.
    state = checkpoint.read(run / "classifier" / "last.pth").state
    images = torch.cat([reference.network_input(picture(20, 30, seed), 32) for seed in range(4)])
    maps = reference.class_maps(state, images, "learnable")
    torch.save({"model": reference.calibrated(state, maps, ["extra_conv4"], mean=0.5, std=0.6)},
               run / "classifier" / "lively.pth")
    return root, run


def label(odd: tuple[Path, Path], output: Path, *options: object) -> dict[str, np.ndarray]:
    """Labels by the classifier, whose scores reach from 0 to 1; image id -> (H, W)."""
    root, run = odd
    run_stage("make_pseudo_labels", "--data-root", root, "--run-dir", run, *MACHINE,
              "--output-dir", output, "--checkpoint", run / "classifier" / "lively.pth", *options)
    return {path.stem: read_label(path) for path in output.glob("*.png")}


@pytest.mark.parametrize("background", ["threshold", "crf"])
def test_labels_of_odd_files_have_their_upright_size_and_their_classes(odd, tmp_path, background):
    labels = label(odd, tmp_path, "--background", background)
    assert {value for one in labels.values() for value in np.unique(one)} >= {0, 1, 2, 3}
    for entry in DataRoot(odd[0]).entries("train_aug"):
        _, height, width, _, options = next(values for values in ODD.values()
                                            if Path(values[0]).stem == entry.id)
        size = (width, height) if "exif" in options else (height, width)
        assert labels[entry.id].shape == size, entry.id
        allowed = {0, *(index + 1 for index in entry.labels)}
        if len(entry.labels) > 2:  # several classes may be certain of one pixel
            allowed.add(IGNORE)
        assert set(np.unique(labels[entry.id]).tolist()) <= allowed, entry.id


def test_the_refinement_network_labels_them_too(odd, tmp_path):
    root, run = odd
    run_stage("make_pseudo_labels", "--data-root", root, "--run-dir", run, *MACHINE,
              "--output-dir", tmp_path, "--background", "threshold")
    assert len(list(tmp_path.glob("*.png"))) == len(ODD)


def test_without_saliency_maps_the_choice_is_named(odd, tmp_path):
    message = stage_error("make_pseudo_labels", "--data-root", odd[0], "--run-dir", odd[1],
                          *MACHINE, "--output-dir", tmp_path)
    assert "--background threshold or crf" in message


@pytest.mark.parametrize("count", [1, 254])
def test_any_number_of_classes(tmp_path, count):
    for seed in range(4):
        picture(16, 16, seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(count)))
    (tmp_path / "train_aug.txt").write_text(f"0 0\n1 {count - 1}\n2 0\n3\tclass {count - 1}\n")
    common = ("--data-root", tmp_path, "--run-dir", tmp_path / "run", *MACHINE)
    run_stage("train_drs", *common, *TRAINING)
    run_stage("make_localization_maps", *common)
    run_stage("train_refine", *common, *TRAINING)
    run_stage("make_pseudo_labels", *common, "--background", "threshold", "--alpha", 0,
              "--background-score", 1e-9, "--checkpoint",
              tmp_path / "run" / "classifier" / "last.pth")
    found = np.unique(read_label(tmp_path / "run" / "pseudo_labels" / "3.png"))
    assert set(found.tolist()) == {count} or set(found.tolist()) == {0, count}


# Lists

@pytest.mark.parametrize(("line", "expected"), [
    ("a cat", ("a", (0,))),
    ("a cat,traffic light", ("a", (0, 1))),
    ("a traffic light", ("a", (1,))),
    ("a, traffic light , cat", ("a", (0, 1))),
    ("a.jpg,0,1", ("a", (0, 1))),
    ("a\tcat\ttraffic light", ("a", (0, 1))),
    ("a\t0 1", ("a", (0, 1))),
    ("b 1 0", ("b", (0, 1))),
    ("a 1 cat", ("a 1", (0,))),
    ("a\t1", ("a", (1,))),
    ("a -", ("a", ())),
    ("some/folder/a.jpg cat", ("a", (0,))),
    (unicodedata.normalize("NFD", "schön cat"), ("schön", (0,))),
    (unicodedata.normalize("NFC", "schön.PNG cat"), ("schön", (0,))),
])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_list_lines(tmp_path, line, expected, form):
    name, labels = expected
    for image in ("a.jpg", "a 1.jpg", "b.jpg", unicodedata.normalize(form, "schön.png")):
        picture(4, 4).save(tmp_path / image)
    (tmp_path / "classes.txt").write_text("cat\ntraffic light\n")
    (tmp_path / "mine.txt").write_text(line + "\n", encoding="utf-8")
    assert DataRoot(tmp_path).entries("mine") == [
        Entry(unicodedata.normalize(form, name), labels)]


# Background

def test_threshold_is_a_constant_score_against_the_maps(odd, tmp_path):
    score = 0.4
    labels = label(odd, tmp_path / "labels", "--background", "threshold", "--background-score",
                   score, "--save-maps", tmp_path / "maps")
    for entry in DataRoot(odd[0]).entries("train_aug"):
        maps, classes = load_maps(tmp_path / "maps" / f"{entry.id}.png", 3)
        strongest = maps.max(axis=0) / 255
        clear = np.abs(strongest - score) > 1 / 255  # the maps are rounded to 8 bits
        found = labels[entry.id]
        decided = found != IGNORE
        assert ((found > 0) == (strongest > score))[clear & decided].all(), entry.id
        if len(entry.labels) == 1:  # no step 5: nothing is left open
            assert decided.all() and set(np.unique(found).tolist()) <= {0, classes[0] + 1}


def test_a_constant_background_never_leaves_unclaimed_pixels_open():
    scores = torch.zeros(1, 3, 4)
    for constant in (1e-6, 0.2, 1.0):
        assert not fuse(scores, [4], background_scores((3, 4), None, constant), alpha=0.2).any()


def test_a_background_score_below_alpha_is_pointed_out(odd, tmp_path, capsys):
    label(odd, tmp_path, "--background", "threshold", "--background-score", 0.1)
    assert "lower --alpha too" in capsys.readouterr().err


def test_the_crf_starts_from_the_labels_of_the_threshold():
    scores = torch.rand(3, 20, 30)
    expected = fuse(scores, [0, 1, 2], background_scores((20, 30), None, 0.3), alpha=0.3,
                    ignore=False)
    probabilities = score_probabilities(scores, 0.3).numpy()
    assert probabilities.dtype == np.float32 and np.allclose(probabilities.sum(axis=0), 1)
    assert (probabilities.argmax(axis=0) == expected.numpy()).all()
    nothing = score_probabilities(torch.zeros(0, 2, 2), 0.3)
    assert (nothing == 1).all() and nothing.shape == (1, 2, 2)


def test_the_crf_moves_labels_to_borders_and_keeps_what_is_ignored():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = (200, 30, 30)
    score = np.clip(1.4 - np.arange(60) / 32, 0, 1)  # strays over the border at column 30
    scores = torch.from_numpy(np.tile(score, (1, 40, 1))).float()
    rough = fuse(scores, [6], background_scores((40, 60), None, 0.2), alpha=0.2).numpy()
    rough[0, 0] = IGNORE
    assert (rough[:, 34] == 7).all()
    made = list(make_pseudo_labels.sharpened(
        [(name, rough, [6], scores, pixels) for name in "ab"], 0.2))
    assert [name for name, *_ in made] == ["a", "b"]
    for _, sharp, classes in made:
        sharp = sharp.numpy()
        assert classes == [6] and sharp.dtype == np.uint8 and sharp[0, 0] == IGNORE
        assert (sharp[1:, :30] == 7).all() and not sharp[1:, 30:].any()


def test_the_crf_without_classes_gives_background():
    probabilities = score_probabilities(torch.zeros(0, 5, 7), 0.2).numpy()
    assert not crf_label(np.zeros((5, 7, 3), np.uint8), probabilities).any()
