"""DeepLab's configuration and initial weights: what is accepted, what is refused and how."""

import logging
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "DeepLab-V2-PyTorch"))

from libs.config import HERE as DEEPLAB
from libs.config import load_config
from libs.deeplab import DeepLabV2, MultiScale
from libs.init import from_torchvision, initialise
from utils.files import UserError


def load(tmp_path: Path, text: str, *overrides: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path, overrides)


@pytest.mark.parametrize("name", ["voc12", "voc12_2gpu", "demo"])
def test_shipped_configs_load(name):
    config = load_config(DEEPLAB / "configs" / f"{name}.yaml")
    assert config.DATASET.ROOT is not None
    # One step sees 10 images in the paper's recipe, 20 on two GPUs.
    assert name == "demo" or (
        20 if name.endswith("2gpu") else 10) == config.SOLVER.BATCH_SIZE * config.SOLVER.ITER_SIZE


def test_defaults_are_the_papers(tmp_path):
    config = load(tmp_path, "")
    stored = load_config(DEEPLAB / "configs" / "voc12.yaml").to_dict()
    for section, values in config.to_dict().items():
        for key, value in values.items():
            if f"{section}.{key}" not in ("DATASET.ROOT", "MODEL.INIT_MODEL"):
                assert stored[section][key] == value, f"{section}.{key}"


def test_values_and_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(tmp_path, "SOLVER: {LR: 1e-4, ONLINE_LABEL: off}\nDATASET: {ROOT: data}\nEXP:",
                  "SOLVER.ITER_MAX=7", "IMAGE.SCALES=[1, 0.5]", "EXP.OUTPUT_DIR=out",
                  "MODEL.INIT_MODEL=imagenet", "RUN.AMP=off", "MODEL.FREEZE_BN=false")
    assert config.SOLVER.LR == 1e-4 and config.SOLVER.ITER_MAX == 7
    assert config.SOLVER.ONLINE_LABEL == "off" and config.RUN.AMP == "off"
    assert config.IMAGE.SCALES == [1.0, 0.5] and config.MODEL.FREEZE_BN is False
    assert config.DATASET.ROOT == DEEPLAB / "data" and tmp_path / "out" == config.EXP.OUTPUT_DIR
    assert config.MODEL.INIT_MODEL == "imagenet"
    assert tmp_path / "a.pth" == load(tmp_path, "", "MODEL.INIT_MODEL=a.pth").MODEL.INIT_MODEL


@pytest.mark.parametrize(("text", "expected"), [
    ("SOLVR: {LR: 1}", "'SOLVR'.*SOLVER"),
    ("SOLVER: {LRATE: 1}", "SOLVER.LRATE.*did you mean"),
    ("SOLVER: {CROP: 1}", "SOLVER.CROP.*IMAGE.CROP"),
    ("SOLVER: {ITER_MAX: 2.5}", "SOLVER.ITER_MAX must be a whole number, got 2.5"),
    ("SOLVER: {ITER_MAX: true}", "SOLVER.ITER_MAX must be a whole number, got True"),
    ("SOLVER: {ITER_MAX: 0}", "SOLVER.ITER_MAX must be at least 1"),
    ("SOLVER: {LR: fast}", "SOLVER.LR must be a number, got 'fast'"),
    ("SOLVER: {LR: .nan}", "SOLVER.LR must be a number"),
    ("SOLVER: {ONLINE_LABEL: maskd}", "SOLVER.ONLINE_LABEL must be official | masked | off"),
    ("MODEL: {FREEZE_BN: 1}", "MODEL.FREEZE_BN must be true or false"),
    ("MODEL: {BLOCKS: [1, x, 1, 1]}", "MODEL.BLOCKS must be a list, each item a whole number"),
    ("SOLVER: 3", "SOLVER must hold"), ("[1, 2]", "expected sections"),
    ("SOLVER: {LR: [}", "no valid YAML"),
])
def test_errors_name_the_key(tmp_path, text, expected):
    with pytest.raises(UserError, match=expected) as error:
        load(tmp_path, text)
    assert "config.yaml" in str(error.value)


@pytest.mark.parametrize("override", ["SOLVER.LR", "LR=1", "SOLVER.lr=1", "SOLVER.LR=x"])
def test_bad_overrides(tmp_path, override):
    with pytest.raises(UserError, match="LR"):
        load(tmp_path, "", override)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="none.yaml"):
        load_config(tmp_path / "none.yaml")


def small(num_classes: int = 5) -> MultiScale:
    return MultiScale(DeepLabV2(num_classes, blocks=(1, 1, 1, 1), width=0.25))


def test_initial_weights_from_a_file(tmp_path, caplog):
    """As deeplabv1_resnet101-coco.pth: no prefix, no ASPP, an fc layer too many."""
    donor = {name.removeprefix("base."): value for name, value in small().state_dict().items()
             if ".aspp." not in name}
    torch.save({**donor, "fc.weight": torch.zeros(3)}, tmp_path / "coco.pth")
    model = small()
    logging.getLogger("drs").propagate = True
    with caplog.at_level(logging.INFO, "drs"):
        initialise(model, tmp_path / "coco.pth")
    for name, value in donor.items():
        torch.testing.assert_close(model.state_dict()[f"base.{name}"], value)
    assert "skipped" in caplog.text and "base.fc.weight" in caplog.text
    assert "8 tensors left at random" in caplog.text


def test_weights_that_fit_nothing_are_an_error(tmp_path):
    other = MultiScale(DeepLabV2(5, blocks=(1, 1, 1, 1), width=0.5))
    torch.save(other.base.layer3.state_dict(prefix="layer1.conv1.") | {
        "layer1.conv1.conv.weight": torch.zeros(1, 1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other.pth.*none of its"):
        initialise(small(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="missing.pth"):
        initialise(small(), tmp_path / "missing.pth")


def test_torchvision_mapping_covers_the_trunk_and_keeps_its_function():
    from torchvision.models import resnet101

    torch.manual_seed(0)
    donor = resnet101(weights=None).eval()
    model = MultiScale(DeepLabV2()).eval()
    own = model.state_dict()
    mapped = from_torchvision(donor.state_dict())
    missing = [name for name in own if name not in mapped and ".aspp." not in name]
    assert not missing
    assert [name for name in mapped if name not in own] == ["base.fc.weight", "base.fc.bias"]
    model.load_state_dict({name: mapped[name] for name in mapped if name in own}, strict=False)
    images = torch.rand(1, 3, 65, 65)  # RGB in [0, 1]; means left out on both sides
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.inference_mode():
        expected = donor.layer1(donor.maxpool(F.relu(donor.bn1(donor.conv1(images / std)))))
        features = model.base.layer2(model.base.layer1(255 * images.flip(1)))
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
