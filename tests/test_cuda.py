"""What CUDA alone can show: each stage on the GPU against the CPU. `bash test.sh -m cuda`.

Skipped where there is no GPU. No result of these tests is known to their author: whoever has a GPU
is asked to report the output (README.md).
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ENVIRONMENT, TRAINING, command, run_stage
from test_deeplab_pipeline import CONFIG, main

from labelling.crf import crf_label
from labelling.labels import read_label
from labelling.maps import load_maps
from utils.checkpoint import read
from utils.stage import launch

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch sees no GPU here")]
COUNT = torch.cuda.device_count()
FULL = ("--amp", "off", "--num-workers", "0")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in json.loads((folder / "metrics.json").read_text())]


@pytest.mark.parametrize("script, options", [
    ("train_drs", ()), ("train_drs", ("--drs", "fixed", "--batch-norm")), ("train_refine", ())])
def test_trainings_as_on_the_cpu(demo, run, tmp_path, script, options):
    output = "refine" if script == "train_refine" else "classifier"
    if script == "train_refine":
        options += ("--maps-dir", run / "localization_maps")
    for device in ("cpu", "cuda"):
        run_stage(script, "--data-root", demo, "--run-dir", tmp_path / device, "--device", device,
                  *FULL, *TRAINING, *options)
    assert losses(tmp_path / "cuda" / output) == pytest.approx(
        losses(tmp_path / "cpu" / output), rel=1e-2)


@pytest.mark.parametrize("precision, tolerance", [("off", 3), ("bf16", 24), ("fp16", 12)])
def test_maps_as_on_the_cpu(demo, run, tmp_path, precision, tolerance):
    """In levels of 255."""
    common = ("--data-root", demo, "--checkpoint", run / "classifier" / "best.pth",
              "--num-workers", "0")
    run_stage("make_localization_maps", *common, "--run-dir", tmp_path / "gpu", "--device", "cuda",
              "--amp", precision)
    paths = sorted((run / "localization_maps").glob("*.png"))
    assert paths
    for path in paths:
        before, classes = load_maps(path, 3)
        maps, theirs = load_maps(tmp_path / "gpu" / "localization_maps" / path.name, 3)
        assert theirs == classes
        assert np.abs(maps.astype(int) - before).max(initial=0) <= tolerance


@pytest.mark.parametrize("options", [(), ("--background", "threshold"), ("--background", "crf")])
def test_labels_as_on_the_cpu(demo, run, tmp_path, options):
    common = ("--data-root", demo, "--checkpoint", run / "refine" / "best.pth", *FULL, *options)
    for device in ("cpu", "cuda"):
        run_stage("make_pseudo_labels", *common, "--run-dir", tmp_path / device, "--device", device)
    paths = sorted((tmp_path / "cpu" / "pseudo_labels").glob("*.png"))
    assert paths
    pixels = same = 0
    for path in paths:
        before = read_label(path)
        label = read_label(tmp_path / "cuda" / "pseudo_labels" / path.name)
        pixels, same = pixels + before.size, same + int((before == label).sum())
    assert same / pixels > 0.99


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_every_precision_trains(demo, tmp_path, amp):
    """fp16 with its loss scaling, whose state a resumed training goes on from."""
    if amp == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bf16")
    common = ("--data-root", demo, "--run-dir", tmp_path, "--device", "cuda", "--amp", amp,
              "--num-workers", "0", *TRAINING)
    run_stage("train_drs", *common, "--epochs", 1)
    run_stage("train_drs", *common, "--epochs", 3)
    assert len(losses(tmp_path / "classifier")) == 3
    assert np.isfinite(losses(tmp_path / "classifier")).all()
    assert bool(read(tmp_path / "classifier" / "last.pth").rest["scaler"]) == (amp == "fp16")


@pytest.mark.slow
def test_a_compiled_network_trains_alike(demo, tmp_path):
    for name, options in (("plain", ()), ("compiled", ("--compile",))):
        run_stage("train_drs", "--data-root", demo, "--run-dir", tmp_path / name, "--device",
                  "cuda", *FULL, *TRAINING, *options)
    assert losses(tmp_path / "compiled" / "classifier") == pytest.approx(
        losses(tmp_path / "plain" / "classifier"), rel=1e-2)


def deeplab(*arguments: object) -> None:
    launch(main.main, main.parse(list(map(str, arguments))))


def test_deeplab_as_on_the_cpu(demo, tmp_path):
    """Trained, scored, sharpened."""
    found = {}
    for device in ("cpu", "cuda"):
        config = tmp_path / f"{device}.yaml"
        config.write_text(CONFIG.format(out=tmp_path / device, root=demo))
        common = ("-c", config, "--device", device)
        deeplab("train", *common)
        deeplab("test", *common, "--save-logits", "--scores", tmp_path / f"{device}.json")
        deeplab("crf", *common, "--stored-logits", "--scores", tmp_path / f"{device}_crf.json")
        folder = tmp_path / device / "models" / "tiny" / "small" / "train_aug"
        found[device] = losses(folder), *(
            json.loads((tmp_path / f"{device}{kind}.json").read_text())["miou"]
            for kind in ("", "_crf"))
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=2e-2)
    assert found["cuda"][1:] == pytest.approx(found["cpu"][1:], abs=0.05)


def test_crf_as_on_the_cpu():
    torch.manual_seed(0)
    image = torch.randint(256, (120, 150, 3), dtype=torch.uint8)
    probabilities = (3 * torch.randn(4, 120, 150)).softmax(dim=0)
    before = crf_label(image, probabilities)
    label = crf_label(image.cuda(), probabilities.cuda()).cpu()
    assert float((label == before).float().mean()) > 0.995


@pytest.mark.skipif(COUNT < 2, reason=f"{COUNT} GPUs; NCCL's test needs two")
@pytest.mark.parametrize("options", [(), ("--batch-norm",)])
def test_two_gpus_train_as_one(demo, tmp_path, options):
    """A batch of 5: one has 2 images of it, the other 3."""
    import subprocess

    from helpers import ROOT

    shown = {name: value for name, value in ENVIRONMENT.items() if name != "CUDA_VISIBLE_DEVICES"}
    shown |= {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    for name, processes in (("one", 1), ("two", 2)):
        subprocess.run(command("train_drs.py", "--data-root", demo, "--run-dir", tmp_path / name,
                               "--device", "cuda", *FULL, *TRAINING, "--batch-size", 5, *options,
                               processes=processes), cwd=ROOT, env=shown, check=True, timeout=600)
    assert losses(tmp_path / "two" / "classifier") == pytest.approx(
        losses(tmp_path / "one" / "classifier"), rel=1e-3)


def test_a_checkpoint_of_the_gpu_is_read_by_the_cpu(demo, tmp_path):
    common = ("--data-root", demo, "--num-workers", "0", "--amp", "off")
    run_stage("train_drs", *common, *TRAINING, "--run-dir", tmp_path, "--device", "cuda")
    for device in ("cuda", "cpu"):
        shutil.rmtree(tmp_path / "localization_maps", ignore_errors=True)
        run_stage("make_localization_maps", *common, "--run-dir", tmp_path, "--device", device)
        assert len(list((tmp_path / "localization_maps").glob("*.png"))) == 8
