"""Run folders for the tests of the report: every layer, made by hand in a second, no training."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import torch
from helpers import run_stage
from PIL import Image

from datasets.layout import DataRoot
from labelling.labels import read_label, save_label
from labelling.maps import save_maps
from labelling.rule import background_scores, fuse

LABEL_FOLDERS = {"pseudo_labels": "train_aug", "deeplab_labels": "val",
                 "deeplab_crf_labels": "val"}


def make_layers(root: DataRoot, run: Path, seed: int = 0) -> None:
    """All folders of maps and labels that a run on `root` (with masks) leaves."""
    rng = np.random.default_rng(seed)
    for entry in root.entries("train_aug"):
        mask = read_label(root.mask_dir / f"{entry.id}.png")
        saliency = torch.from_numpy(read_label(root.saliency_dir / f"{entry.id}.png") > 50)
        for folder, size in (("cam_maps", (20, 20)), ("localization_maps", (32, 32)),
                             ("refined_maps", mask.shape)):
            # Few levels, so that many pixels lie on the edge of a threshold.
            maps = rng.integers(0, 21, (len(entry.labels), *size)) * 51 // 4
            if folder == "refined_maps":  # right more often than the others
                for k, index in enumerate(entry.labels):
                    maps[k][mask == index + 1] = 255
            save_maps(run / folder / f"{entry.id}.png", maps.clip(0, 255).astype(np.uint8),
                      entry.labels)
        scores = torch.from_numpy(maps.clip(0, 255).astype(np.float32) / 255)
        save_label(run / "pseudo_labels" / f"{entry.id}.png",
                   fuse(scores, entry.labels, background_scores(mask.shape, saliency, 0.2),
                        alpha=0.2))
    for entry in root.entries("val"):
        mask = read_label(root.mask_dir / f"{entry.id}.png")
        for shift, folder in ((9, "deeplab_labels"), (3, "deeplab_crf_labels")):
            save_label(run / folder / f"{entry.id}.png",
                       np.where(mask == 255, 0, np.roll(mask, shift, 1)))


def make_run(root: DataRoot, run: Path) -> None:
    """A finished run: layers, scores, metrics and records."""
    for folder in ("cam_maps", "localization_maps", "refined_maps", *LABEL_FOLDERS):
        (run / folder).mkdir(parents=True)
    make_layers(root, run)
    common = ("--data-root", root.root, "--run-dir", run)
    for name, folder in (("cam", "cam_maps"), ("drs", "localization_maps"),
                         ("refined", "refined_maps")):
        run_stage("evaluate", *common, "--list", "train_aug", "--name", name, "--maps-dir",
                  run / folder)
    for name, folder in (("pseudo_labels", "pseudo_labels"), ("deeplab", "deeplab_labels"),
                         ("deeplab_crf", "deeplab_crf_labels")):
        run_stage("evaluate", *common, "--list", LABEL_FOLDERS[folder], "--name", name,
                  "--labels-dir", run / folder)
    for stage in ("cam", "classifier", "refine"):
        write_training(run, stage, epochs=4, done=4)


def page_data(path: Path) -> dict:
    """The data that a page carries."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>',
                                path.read_text(encoding="utf-8"), re.DOTALL).group(1))


def decode(uri: str) -> np.ndarray:
    """The numbers in a grey PNG given as data URI."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def write_training(run: Path, stage: str, epochs: int, done: int) -> None:
    """Record and metrics of a training of which `done` epochs are over."""
    (run / stage).mkdir(exist_ok=True)
    (run / "logs").mkdir(exist_ok=True)
    (run / stage / "metrics.json").write_text(json.dumps([
        {"epoch": i, "loss": 1 / i, "lr": 0.01, "miou": 0.3 + 0.1 * i, "seconds": 30.0}
        for i in range(1, done + 1)]))
    (run / "logs" / f"{stage}.json").write_text(json.dumps({
        "command": ["train.py", "--epochs", str(epochs), "--device", "cpu"],
        "options": {"epochs": epochs, "lr": 0.01, "device": "cpu"}, "device": "a test machine",
        "versions": {"torch": "1.2.3"}}))
