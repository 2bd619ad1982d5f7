"""DeepLab's configuration and initial weights: what is accepted, what is refused and how."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "DeepLab-V2-PyTorch"))

from libs.config import HERE as DEEPLAB
from libs.config import Config, load_config
from libs.deeplab import DeepLabV2, MultiScale
from libs.init import from_torchvision, initialise
from libs.sections import list_folder
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
    assert config.MODEL.INIT_MODEL == "imagenet" and config.MODEL.BLOCKS == [3, 4, 23, 3]
    assert tmp_path / "a.pth" == load(tmp_path, "", "MODEL.INIT_MODEL=a.pth").MODEL.INIT_MODEL
    assert load(tmp_path, "EXP: {ID: 2012_01}").EXP.ID == "2012_01"  # no number to YAML 1.2


@pytest.mark.parametrize("nothing", ["null", "~", "", '""'])
def test_nothing_is_the_default_folder(tmp_path, nothing):
    assert load(tmp_path, f"DATASET: {{LABEL_DIR: {nothing}}}").DATASET.LABEL_DIR is None
    assert load(tmp_path, "DATASET: {LABEL_DIR: a}",
                f"DATASET.LABEL_DIR={nothing}").DATASET.LABEL_DIR is None


def test_lists_by_name_and_by_path(tmp_path, monkeypatch):
    """A path becomes absolute where it was written down; the outputs' folder is the file's stem."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").touch()
    for value, list_, folder in (("train_aug", "train_aug", "train_aug"), ("v1.2", "v1.2", "v1.2"),
                                 ("here.txt", f"{tmp_path}/here.txt", "here"),
                                 ("own.txt", "own.txt", "own"),
                                 ("lists/mine.txt", f"{tmp_path}/lists/mine.txt", "mine"),
                                 ("/a/b.c/mine.txt", "/a/b.c/mine.txt", "mine"),
                                 ("../x/mine", f"{tmp_path}/../x/mine", "mine")):
        split = load(tmp_path, "", f"SPLIT.TRAIN={value}").SPLIT
        assert list_ == split.TRAIN and list_folder(split.TRAIN) == folder
    assert str(DEEPLAB / "a/b.txt") == load(tmp_path, "SPLIT: {VAL: a/b.txt}").SPLIT.VAL
    assert load(tmp_path, "SPLIT: {VAL: here.txt}").SPLIT.VAL == "here.txt"


def test_shaping_options_leave_out_what_is_neutral(tmp_path):
    names = set(load(tmp_path, "").shaping())
    assert {name.partition(".")[0] for name in names} == {"EXP", "SPLIT", "IMAGE", "MODEL",
                                                          "SOLVER"}
    assert {"EXP.SEED", "SPLIT.TRAIN", "MODEL.WIDTH", "SOLVER.LR"} <= names
    assert not names & {"EXP.ID", "EXP.OUTPUT_DIR", "SPLIT.VAL", "MODEL.NAME", "MODEL.INIT_MODEL"}
    neutral = ("EXP.ID=b", "RUN.AMP=off", "CRF.BACKEND=pydensecrf", "DATASET.LABEL_DIR=x",
               "SPLIT.VAL=train", "EVAL.SAVE_LOGITS=true", "MODEL.INIT_MODEL=a.pth")
    assert load(tmp_path, "", *neutral).shaping() == load(tmp_path, "").shaping()
    assert load(tmp_path, "", "SOLVER.LR=1").shaping() != load(tmp_path, "").shaping()


def test_plain_values_survive_json_and_make_the_same_configuration(tmp_path):
    config = load(tmp_path, "", "MODEL.INIT_MODEL=a.pth", "SOLVER.ONLINE_LABEL=off")
    plain = json.loads(json.dumps(config.to_dict()))
    assert Config.model_validate(plain) == config
    assert load(tmp_path, yaml.safe_dump(plain)) == config


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
