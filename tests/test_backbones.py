"""Other trunks: strides, names, parameter groups, and the stages with one of them."""

from pathlib import Path

import pytest
import torch
import torchvision
from helpers import MACHINE, NETWORK, run_stage, stage_error

from datasets.layout import DataRoot
from datasets.transforms import ClassifierTraining
from datasets.voc import VOCDataset, collate
from models import build
from models.backbones import FAMILIES, Backbone
from utils.checkpoint import Checkpoint, export, read
from utils.files import UserError
from utils.loading import training_batches
from utils.runtime import Runtime

TRAINING = ("--image-size", "64", "--batch-size", "4", "--epochs", "2", "--milestones", "2",
            "--init", "none", "--backbone", "resnet18", "--output-stride", "8")
DRS = ("--drs", "learnable", "--drs-where", "layer4.*")
SLOW = ("densenet121", "vgg16_bn", "regnet_y_400mf", "efficientnet_b0", "mobilenet_v3_large")


@pytest.mark.parametrize("name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow)
                                                for name in SLOW)])
def test_strides_and_names(name):
    theirs = torchvision.models.get_model(name, weights=None).state_dict()
    for stride in (8, 16, 32):
        model = Backbone(3, name, stride).eval()
        with torch.no_grad():
            assert model.class_maps(torch.zeros(1, 3, 96, 64)).shape == (
                1, 3, 96 // stride, 64 // stride)
        assert model.load_trunk(theirs)
        for key, value in model.state_dict().items():
            assert not key.startswith("trunk.") or torch.equal(
                value, theirs[key.removeprefix("trunk.")])


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 16), ("convnext_tiny", 32)])
def test_the_stride_where_none_is_asked_for(name, stride):
    model = Backbone(3, name).eval()
    with torch.no_grad():
        assert model.class_maps(torch.zeros(1, 3, 64, 96)).shape[2:] == (64 // stride, 96 // stride)


def test_without_dilation_the_trunk_is_torchvisions():
    theirs = torchvision.models.resnet18().eval()
    model = Backbone(3, "resnet18", 32).eval()
    model.load_trunk(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    pooled = model.trunk(x).mean((2, 3))
    torch.testing.assert_close(theirs.fc(pooled), theirs(x))


def test_dilation_keeps_what_every_other_pixel_sees():
    """At twice the stride the same weights compute the maps at every second place."""
    for name in ("resnet18", "resnet50"):
        coarse = Backbone(3, name, 32).eval()
        fine = Backbone(3, name, 8).eval()
        fine.load_state_dict(coarse.state_dict())
        x = torch.randn(1, 3, 128, 128)
        torch.testing.assert_close(fine.class_maps(x)[..., ::4, ::4], coarse.class_maps(x),
                                   rtol=1e-3, atol=1e-4)


def test_groups_and_config():
    config = {"network": "classifier", "num_classes": 3, "backbone": "resnet18",
              "output_stride": 16, "drs": "learnable", "delta": 0.5, "drs_where": ["layer4.*"]}
    model = build(config)
    assert model.config == config and build(model.config).config == config
    groups = model.parameter_groups()
    assert sum(len(group) for group in groups.values()) == len(list(model.parameters()))
    assert len(groups["head_weights"]) == 1 + 4 and len(groups["head_biases"]) == 1
    with torch.device("meta"):  # as checkpoints are checked
        assert build(config).state_dict().keys() == model.state_dict().keys()


def test_nothing_in_a_trunk_is_left_to_chance():
    """A training that goes on has no generator to go on from."""
    model, x = Backbone(3, "efficientnet_b0", 32).train(), torch.randn(2, 3, 64, 64)
    state = torch.get_rng_state()
    first = model.class_maps(x)
    assert torch.equal(model.class_maps(x), first) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("config", "message"), [
    ({"backbone": "resnet19"}, "choose vgg16, .*resnet18"),
    ({"backbone": "convnext_tiny", "output_stride": 8}, "--output-stride 32, not 8"),
    ({"backbone": "timm:no_such_network"}, "timm"),
    ({"backbone": "resnet18", "drs_where": ["nothing"]}, "fits no activation")])
def test_what_there_is_not(config, message):
    with pytest.raises(ValueError, match=message):
        build({"network": "classifier", "num_classes": 3, **config})


def test_timm():
    pytest.importorskip("timm", reason="timm is not installed")
    model = Backbone(3, "timm:resnet18", 16).eval()
    assert model.class_maps(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 4, 4)
    other = Backbone(3, "timm:mobilenetv3_small_050.lamb_in1k").eval()
    assert len(FAMILIES) and other.class_maps(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 2, 2)


@pytest.mark.slow
def test_the_stages(demo, tmp_path):
    common = ("--data-root", demo, "--run-dir", tmp_path, *MACHINE)
    run_stage("train_drs", *common, *TRAINING, *DRS)
    run_stage("make_localization_maps", *common)
    run_stage("train_refine", *common, *TRAINING, "--init", tmp_path / "classifier" / "best.pth")
    run_stage("make_pseudo_labels", *common)
    assert len(list((tmp_path / "pseudo_labels").glob("*.png"))) == 8
    found = read(tmp_path / "classifier" / "last.pth")
    assert found.network == {"network": "classifier", "num_classes": 3, "backbone": "resnet18",
                             "output_stride": 8, "drs": "learnable", "delta": 0.55,
                             "drs_where": ["layer4.*"]}
    assert read(tmp_path / "refine" / "last.pth").network["backbone"] == "resnet18"
    with pytest.raises(UserError, match="the official format is for VGG-16"):
        export(tmp_path / "classifier" / "last.pth", tmp_path / "out.pth")
    halves = ("--output-dir", tmp_path / "halves")
    run_stage("train_drs", *common, *TRAINING, *DRS, *halves, "--epochs", "1")
    run_stage("train_drs", *common, *TRAINING, *DRS, *halves)
    other = read(tmp_path / "halves" / "last.pth").state
    assert all(torch.equal(value, other[name]) for name, value in found.state.items())
    assert "--backbone was resnet18, is resnet34" in stage_error(
        "train_drs", *common, *TRAINING, *DRS, "--backbone", "resnet34")


@pytest.mark.parametrize(("options", "message"), [
    (("--backbone", "resnet19"), "--backbone resnet19: there is no such network"),
    (("--drs-where", "nothing"), "--backbone resnet18: add_drs: where=['nothing'] fits no"),
    (("--width", "0.5"), "--width and --batch-norm are vgg16's"),
    (("--image-size", "32"), "--image-size 32: --backbone resnet18 needs 64"),
    (("--backbone", "vgg16"), "--output-stride 16: vgg16"),
    (("--backbone", "vgg16", "--output-stride", "8", "--drs-where", "x"), "--drs-where is for")])
def test_errors(demo, tmp_path, options, message):
    assert message in stage_error("train_drs", "--data-root", demo, "--run-dir", tmp_path, *MACHINE,
                                  *TRAINING, "--output-stride", "16", *options)


def test_initial_weights_from_a_file(demo, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "own.pth")
    common = ("--data-root", demo, "--run-dir", tmp_path, *MACHINE, *TRAINING, "--dry-run")
    run_stage("train_drs", *common, "--init", tmp_path / "own.pth")
    assert "do not fit this trunk" in stage_error(
        "train_drs", *common, "--backbone", "resnet34", "--init", tmp_path / "own.pth")


def test_drs_joins_a_trained_classifier_without_training(demo, tmp_path):
    """Its weights stay; batch norm's statistics are the means over the batches of capped
    features, as PyTorch's own function finds them."""
    common = ("--data-root", demo, "--run-dir", tmp_path, *MACHINE, *TRAINING, "--epochs", 1,
              "--val-list", "none")
    run_stage("train_drs", *common, "--drs", "none", "--output-dir", tmp_path / "plain")
    source = tmp_path / "plain" / "last.pth"
    joined = ("--drs", "fixed", "--delta", "0.6", "--drs-where", "layer4.*", "--recalibrate",
              "--init", source)
    run_stage("train_drs", *common, *joined)
    plain, found = (read(path) for path in (source, tmp_path / "classifier" / "last.pth"))
    assert found.network["drs"] == "fixed" and found.network["delta"] == 0.6
    assert found.rest["step"] == 0 and len(found.rest["history"]) == 1

    root = DataRoot(demo)
    expected = build(found.network)
    expected.load_state_dict(plain.state)
    images = VOCDataset(root, root.entries("train_aug"), ClassifierTraining(77, 64), seed=0)
    batches = training_batches(images, 4, Runtime(torch.device("cpu"), 0, 1, None), 0, 0, collate)
    batches.set_epoch(1)
    torch.optim.swa_utils.update_bn((batch["image"] for batch in batches), expected)
    changed = set()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state[name], value)
        if not torch.equal(found.state[name], plain.state[name]):
            changed.add(name.rpartition(".")[2])
    assert changed <= {"running_mean", "running_var", "num_batches_tracked"} and changed

    run_stage("train_drs", *common, *joined)  # there is nothing left to do
    assert "does not fit" in stage_error(
        "train_drs", *common, *joined, "--backbone", "resnet34", "--overwrite")


@pytest.mark.parametrize(("options", "message"), [
    (("--drs", "learnable", "--init", "a.pth"), "needs --drs fixed"),
    (("--drs", "fixed", "--init", "none"), "needs --drs fixed"),
    (("--drs", "fixed", "--init", "{refine}"), "holds a refine network"),
    (("--drs", "fixed", "--init", "{learnable}"), "does not fit")])
def test_what_drs_cannot_join(demo, run, tmp_path, capsys, options, message):
    files = {"refine": run / "refine" / "best.pth", "learnable": run / "classifier" / "best.pth"}
    words = [option.format_map(files) for option in options]
    arguments = ("--data-root", demo, "--run-dir", tmp_path, *MACHINE, *NETWORK, "--batch-size", 4,
                 "--recalibrate", *words)
    if "needs" in message:
        with pytest.raises(SystemExit):
            run_stage("train_drs", *arguments)
        assert message in capsys.readouterr().err
    else:
        assert message in stage_error("train_drs", *arguments)
    assert not list(tmp_path.glob("classifier/*.pth"))


@pytest.mark.parametrize("name", [names[0] for names in FAMILIES] + ["timm:regnety_002"])
def test_every_family_comes_back_from_its_checkpoint(name):
    """Some compute with tensors when they are made, which the meta device cannot do."""
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed")
    model = build({"network": "classifier", "num_classes": 2, "backbone": name, "drs": "learnable",
                   "drs_where": ["*"]})
    found = Checkpoint(Path("a.pth"), model.state_dict(), model.config).instantiate(build)
    assert found.config == model.config
    for one, other in zip(found.state_dict().values(), model.state_dict().values(), strict=True):
        assert one.device.type == "cpu" and torch.equal(one, other)
