"""CUDA where there is none: whole stages on a device that the CPU plays (pretend_cuda.py).

A tensor left on the wrong device is an error, and results are those of the CPU.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import MACHINE, run_stage
from pretend_cuda import CUDA, OnCuda, move, pretend_cuda
from test_deeplab_pipeline import CONFIG
from test_deeplab_pipeline import run as deeplab

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "DeepLab-V2-PyTorch"))

from datasets.layout import DataRoot
from datasets.transforms import ClassifierTraining, RefinementTraining
from datasets.voc import VOCDataset, collate
from labelling.crf import crf_label
from libs.deeplab import build
from libs.inference import most_probable
from libs.losses import ONLINE_MODES, deeplab_loss
from libs.transforms import Training as DeepLabTraining
from models.classifier import Classifier, classification_loss
from models.refine import RefineNet, refinement_loss
from utils.loading import training_batches
from utils.runtime import Runtime

CPU = Runtime(torch.device("cpu"), 0, 1, None)
GPU = Runtime(CUDA, 0, 1, None)


def there(values: torch.Tensor) -> torch.Tensor:
    return OnCuda(values)


def test_devices_are_told_apart(monkeypatch):
    with pretend_cuda(monkeypatch):
        one = torch.ones(2, 3, device="cuda")
        assert one.device == CUDA and (one + 1).device == CUDA and one.sum().device == CUDA
        assert one.cpu().device.type == "cpu" and type(one.cpu()) is torch.Tensor
        assert torch.equal(one.cpu() * 2, (one * 2).cpu())
        assert one[torch.tensor([1])].device == CUDA  # as CUDA allows
        assert (one * torch.tensor(2.0)).device == CUDA
        one[0] = 5
        assert one.tolist() == [[5] * 3, [1] * 3]
        for wrong in (lambda: one + torch.ones(2, 3), lambda: torch.cat((one, torch.ones(1, 3))),
                      lambda: torch.maximum(torch.ones(2, 3), one)):
            with pytest.raises(RuntimeError, match="on the cpu"):
                wrong()


def same(folder: Path, other: Path) -> None:
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names and names == sorted(path.name for path in other.glob("*.png"))
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("script, checkpoint, options", [
    ("make_localization_maps", "classifier", ()),
    ("make_pseudo_labels", "refine", ()),
    ("make_pseudo_labels", "classifier", ("--background", "threshold")),
    ("make_pseudo_labels", "refine", ("--background", "crf"))])
def test_labelling_stages(demo, run, tmp_path, monkeypatch, script, checkpoint, options):
    common = ("--data-root", demo, *MACHINE, "--checkpoint", run / checkpoint / "best.pth",
              "--batch-size", 3, *options)
    run_stage(script, *common, "--run-dir", tmp_path / "cpu")
    with pretend_cuda(monkeypatch):
        run_stage(script, *common, "--run-dir", tmp_path / "gpu")
    assert not torch.backends.cudnn.benchmark  # it would try anew for each size of an image
    folder = "pseudo_labels" if script == "make_pseudo_labels" else "localization_maps"
    same(tmp_path / "cpu" / folder, tmp_path / "gpu" / folder)


@pytest.mark.parametrize("kind", ["classifier", "fixed", "refine"])
def test_losses_of_the_trainings(demo, run, monkeypatch, kind):
    """Jitter, crop and normalisation on the device, then the network and its loss."""
    root = DataRoot(demo)
    torch.manual_seed(0)
    if kind == "refine":
        network = RefineNet(3, width=0.0625, batch_norm=True)
        dataset = VOCDataset(root, root.entries("train_aug"), RefinementTraining(32),
                             maps_dir=run / "localization_maps", seed=0)
    else:
        drs = "learnable" if kind == "classifier" else "fixed"
        network = Classifier(3, drs, width=0.0625, batch_norm=True)
        dataset = VOCDataset(root, root.entries("train_aug"), ClassifierTraining(40, 32), seed=0)

    def loss_on(runtime: Runtime) -> list[float]:
        result = []
        for batch in training_batches(dataset, 4, runtime, 0, 0, collate):
            assert batch["image"].device == runtime.device
            output = network(batch["image"])
            loss = refinement_loss(output, batch["maps"], batch["map_owner"], batch["map_class"]) \
                if kind == "refine" else classification_loss(output, batch["labels"])
            assert loss.device == runtime.device
            result.append(float(loss))
        return result

    with torch.no_grad():
        before = loss_on(CPU)
        with pretend_cuda(monkeypatch):
            move(network)
            # A GPU takes all images of a batch in one go.
            assert loss_on(GPU) == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("online", ONLINE_MODES)
def test_deeplab_loss(demo, monkeypatch, online):
    root = DataRoot(demo)
    torch.manual_seed(0)
    network = build({"num_classes": 4, "blocks": [1, 1, 1, 1], "width": 0.125,
                     "rates": [1, 2], "freeze_bn": True, "scales": [0.5]})
    dataset = VOCDataset(root, root.entries("train_aug"),
                         DeepLabTraining([104.0, 117.0, 123.0], [0.75, 1.25], 49),
                         mask_dir=root.mask_dir, seed=0)

    def losses_on(runtime: Runtime) -> list[float]:
        return [float(deeplab_loss(network(batch["image"]), batch["mask"], batch["present"],
                                   online)["loss"])
                for batch in training_batches(dataset, 4, runtime, 0, 0, collate)]

    with torch.no_grad():
        before = losses_on(CPU)
        with pretend_cuda(monkeypatch):
            move(network)
            assert losses_on(GPU) == pytest.approx(before, rel=1e-5)


def test_deeplab_labels_and_crf(monkeypatch):
    torch.manual_seed(0)
    logits, image = torch.randn(4, 6, 7), torch.randint(256, (48, 50, 3), dtype=torch.uint8)
    probabilities = torch.rand(3, 48, 50).softmax(dim=0)
    label, sharp = most_probable(logits, (48, 50)), crf_label(image, probabilities)
    with pretend_cuda(monkeypatch):
        theirs = most_probable(there(logits), (48, 50))
        assert theirs.device == CUDA and np.array_equal(theirs.cpu(), label)
        refined = crf_label(there(image), there(probabilities))
        assert refined.device == CUDA and np.array_equal(refined.cpu(), sharp)


def test_deeplab_commands(demo, tmp_path, monkeypatch):
    """Scored, sharpened, and any image segmented: the whole commands."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(out=tmp_path / "out", root=demo))
    deeplab("train", config)

    def commands(folder: Path) -> None:
        for command in ("test", "crf"):
            deeplab(command, config, "--labels-dir", folder / command, "--scores",
                    folder / f"{command}.json")
        deeplab("predict", config, "--input", demo / "JPEGImages" / "val_000000.jpg",
                "--output-dir", folder / "predict", "--crf")

    commands(tmp_path / "cpu")
    with pretend_cuda(monkeypatch):
        monkeypatch.setattr("libs.experiment.setup", lambda *_: GPU)
        commands(tmp_path / "gpu")
    for command in ("test", "crf", "predict"):
        same(tmp_path / "cpu" / command, tmp_path / "gpu" / command)


def test_validation(demo, run, monkeypatch):
    """Of a training, with the metrics."""
    import argparse

    from datasets.voc import validation_set
    from labelling.validation import validate
    from models import build as build_network
    from utils.checkpoint import read
    from utils.loading import inference_batches

    args = argparse.Namespace(val_list="train", image_size=32, background=None, saliency_dir=None,
                              alpha=0.2, background_score=0.2)
    root = DataRoot(demo)
    dataset = validation_set(root, args)
    model = read(run / "classifier" / "best.pth").instantiate(build_network)

    def scores_on(runtime: Runtime) -> dict[str, float]:
        return validate(model, inference_batches(dataset, range(len(dataset)), 3, runtime, 0,
                                                 collate), args, runtime)

    before = scores_on(CPU)
    with pretend_cuda(monkeypatch):
        move(model)
        assert scores_on(GPU) == before
