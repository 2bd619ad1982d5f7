"""DeepLab's configuration and initial weights: what is accepted, what is refused and how."""

import json
import logging
import os
import random
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


BIG = "9" * 400
NAME = "must be a name of up to 60 characters without slashes or a dot in front"
LIST = "must be the name of a list, or the path of a list file"
YAML = "no acceptable YAML"
# What is wrong, what the one line must say. A row of "SECTION.KEY=VALUE" is tried on the command
# line and in a file.
BAD_VALUES = [
    ("EXP.ID=", NAME), ("EXP.ID=''", NAME), ("EXP.ID=null", f"{NAME}, got nothing"),
    ("EXP.ID=a/b", f"EXP.ID {NAME}, got a/b"), ("EXP.ID=..", NAME), ("EXP.ID=.", NAME),
    ("EXP.ID=../x", NAME), ("EXP.ID=.hidden", NAME), ("EXP.ID=/etc", NAME),
    ("EXP.ID=a\\b", NAME), ("EXP.ID=[a, b]", f"{NAME}, got [a, b]"), ("EXP.ID=" + "n" * 61, NAME),
    ('EXP.ID="a\\nb"', "control characters"), ('EXP.ID="\\uD800"', "control characters"),
    ('EXP.OUTPUT_DIR="a\\0b"', "control characters"), ("MODEL.NAME=a/../../b", "MODEL.NAME"),
    ("EXP.OUTPUT_DIR=null", "EXP.OUTPUT_DIR must be a path, got nothing"),
    ("EXP.OUTPUT_DIR=" + "d" * 256, "parts have at most 255 bytes"),
    ("EXP.SEED=4294967296", "EXP.SEED must be less than 4294967296, got 4294967296"),
    ("EXP.SEED=-1", "EXP.SEED must be at least 0, got -1"), ("EXP.SEED=0x10", "a whole number"),
    ("DATASET.ROOT=[a]", "DATASET.ROOT must be a path, got [a]"),
    ("DATASET.MASK_DIR={a: b}", "DATASET.MASK_DIR must be a path"),
    ("DATASET.LABEL_DIR=" + "é" * 200, "parts have at most 255 bytes"),
    ("SPLIT.TRAIN=", "SPLIT.TRAIN must be"), ("SPLIT.TRAIN=..", f"SPLIT.TRAIN {LIST}, got .."),
    ("SPLIT.TRAIN=../..", LIST), ("SPLIT.VAL=/", LIST), ("SPLIT.VAL=lists/.txt", LIST),
    ("SPLIT.VAL=[val]", "SPLIT.VAL must be"), ("SPLIT.VAL=" + "v" * 5000, "got vvvvv"),
    ("IMAGE.MEAN=[1, 2]", "IMAGE.MEAN must have at least 3 items, not 2, got [1, 2]"),
    ("IMAGE.MEAN=[1, 2, 3, 4]", "IMAGE.MEAN must have at most 3 items"),
    ("IMAGE.MEAN=104", "IMAGE.MEAN must be a list, got 104"),
    ("IMAGE.MEAN=[1, 2, .nan]", "IMAGE.MEAN[2] must be a number, got .nan"),
    ("IMAGE.MEAN=[1, 2, 256]", "IMAGE.MEAN[2] must be at most 255"),
    ("IMAGE.CROP=0", "IMAGE.CROP must be at least 1"), ("IMAGE.CROP=1e9", "a whole number"),
    ("IMAGE.CROP=1000000", "IMAGE.CROP must be at most 8192"),
    ("IMAGE.SCALES=[]", "IMAGE.SCALES must have at least 1 item, not 0, got []"),
    ("IMAGE.SCALES=[0]", "IMAGE.SCALES[0] must be at least 0.01"),
    ("IMAGE.SCALES=[1, 1e300]", "IMAGE.SCALES[1] must be at most 16"),
    (f"IMAGE.SCALES=[{'1, ' * 99}1]", "IMAGE.SCALES must have at most 32 items"),
    ("MODEL.BLOCKS=[3, 4, 23]", "MODEL.BLOCKS must have at least 4 items"),
    ("MODEL.BLOCKS=[1, x, 1, 1]", "MODEL.BLOCKS[1] must be a whole number, got x"),
    ("MODEL.BLOCKS=[1, 1, 1, 9999]", "MODEL.BLOCKS[3] must be at most 1000"),
    ("MODEL.WIDTH=inf", "MODEL.WIDTH must be a finite number"),
    ("MODEL.ATROUS_RATES=[6, [12]]", "MODEL.ATROUS_RATES[1] must be a whole number, got [12]"),
    ("MODEL.FREEZE_BN=maybe", "MODEL.FREEZE_BN must be true or false, got maybe"),
    ("MODEL.INIT_MODEL=null", "MODEL.INIT_MODEL must be a path, got nothing"),
    ("SOLVER.ITER_MAX=2.5", "SOLVER.ITER_MAX must be a whole number, got 2.5"),
    ("SOLVER.ITER_MAX=true", "SOLVER.ITER_MAX must be a whole number, got true"),
    ("SOLVER.ITER_MAX=0", "SOLVER.ITER_MAX must be at least 1, got 0"),
    (f"SOLVER.ITER_MAX={BIG}", "SOLVER.ITER_MAX must be at most 100000000, got 9999"),
    (f"SOLVER.ITER_MAX={BIG * 20}", "SOLVER.ITER_MAX must be a whole number, got 9999"),
    ("SOLVER.LR=fast", "SOLVER.LR must be a number, got fast"),
    ("SOLVER.LR=1e400", "SOLVER.LR must be a finite number, got 1e400"),
    ("SOLVER.LR=.inf", "SOLVER.LR must be a number, got .inf"),
    ("SOLVER.LR=-inf", "SOLVER.LR must be a finite number"),
    ("SOLVER.LR=nan", "SOLVER.LR must be a finite number, got nan"),
    (f"SOLVER.LR={BIG}", "SOLVER.LR must be a finite number"),
    ("SOLVER.LR=-1e-4", "SOLVER.LR must be at least 0"), ("SOLVER.LR=", "got nothing"),
    ("SOLVER.LR=1e10", "SOLVER.LR must be at most 1000"),
    ("SOLVER.MOMENTUM=1", "SOLVER.MOMENTUM must be less than 1"),
    ("SOLVER.WEIGHT_DECAY=1e300", "SOLVER.WEIGHT_DECAY must be less than 1"),
    ("SOLVER.BATCH_SIZE=2_000_000", "SOLVER.BATCH_SIZE must be at most 1000"),
    ("SOLVER.ONLINE_LABEL=maskd", "must be 'official', 'masked' or 'off', got maskd"),
    ("EVAL.SAVE_LOGITS=2", "EVAL.SAVE_LOGITS must be true or false"),
    ("CRF.BACKEND=cuda", "CRF.BACKEND must be 'torch' or 'pydensecrf'"),
    ("CRF.BI_XY_STD=0", "CRF.BI_XY_STD must be at least 0.01"),
    ("CRF.NEGLIGIBLE=1", "CRF.NEGLIGIBLE must be less than 1"),
    ("RUN.AMP=no", "RUN.AMP must be 'auto', 'bf16', 'fp16' or 'off', got no"),
    ("RUN.NUM_WORKERS=100000000", "RUN.NUM_WORKERS must be at most 1000"),
    ("SOLVER.LRR=1", "unknown key SOLVER.LRR; did you mean SOLVER.LR?"),
    ("SOLVER.lr=1", "unknown key SOLVER.lr; did you mean SOLVER.LR?"),
    ("SOLVER.CROP=1", "unknown key SOLVER.CROP; did you mean IMAGE.CROP?"),
    ("SOLVR.LR=1", "did you mean SOLVER"), ("SOLVER.QQQQ=1", "there are ITER_MAX, BATCH_SIZE"),
    ("SOLVER.LR=[", YAML), ("SOLVER.LR=*a", "aliases"), ("SOLVER.LR=&a 1", "aliases"),
    ("SOLVER.LR=!!python/object:os.system 1", "tags"),
]
BAD_FILES = [
    (b"SOLVR: {LR: 1}", "unknown section SOLVR; did you mean SOLVER?"),
    (b"LR: 1", "unknown section LR; did you mean SOLVER.LR?"),
    (b"Q: 1", "unknown section Q; there are EXP, DATASET"),
    (b"SOLVER: 3", "SOLVER must hold lines KEY: VALUE, got 3"),
    (b"[1, 2]", "the configuration must hold lines KEY: VALUE, got [1, 2]"),
    (b"only words", "the configuration must hold"),
    (b"EXP: {ID: a}\nSOLVER: {LR: [}\n", f"line 2: {YAML}"),
    (b"SOLVER:\n\tLR: 1\n", f"line 2: {YAML}"), (b"SOLVER: {1: 2}", "unknown key SOLVER.1"),
    (b"? [a]\n: b", f"line 1: {YAML}: a key must be a name"), (b"~: 1", "must be a name"),
    (b"a: 1\n---\nb: 2", "another document"),
    (b"SOLVER: {LR: 1, LR: 2}", "LR stands twice"), (b"<<: {LR: 1}", "unknown section <<"),
    (b"a: &a [x]\nb: [*a, *a]", "line 1: no acceptable YAML: aliases"),
    (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]", "aliases"),
    (b"SOLVER: !!map {LR: 1}", "tags are not accepted"),
    (b"a: !!python/object/apply:os.system [echo]", "tags are not accepted"),
    (b"[" * 99_000, "too deeply"), (b"- " * 40_000, "too deeply"),
    (b"SOLVER: {LR: \0}", YAML), (b"\xff\xfe\x00", "cannot be read"), (b"\x80", "cannot be read"),
    (b"#" * 100_001, "larger than 100 KB"), (b"EXP: {ID: a}\n" * 10_000, "larger than 100 KB"),
]


def error_line(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    line = str(error.value)
    assert line.isprintable() and len(line.replace(str(path), "")) < 300, line
    return line


@pytest.mark.parametrize(("override", "expected"), BAD_VALUES, ids=lambda text: text[:30])
def test_a_bad_value_is_one_line_that_names_the_key(tmp_path, override, expected):
    path, (name, _, value) = tmp_path / "config.yaml", override.partition("=")
    path.touch()
    line = error_line(path, override)
    assert expected in line and name.partition(".")[0] in line
    section, key = name.split(".")
    path.write_text(f"{section}:\n  {key}: {value}\n", encoding="utf-8")
    line = error_line(path)
    assert expected in line and line.startswith(str(path))


@pytest.mark.parametrize(("content", "expected"), BAD_FILES, ids=lambda text: str(text[:30]))
def test_a_bad_file_is_one_line_that_names_it(tmp_path, content, expected):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    line = error_line(path)
    assert expected in line and str(path) in line


@pytest.mark.parametrize("override", ["SOLVER.LR", "LR=1", "=", "=1", ".=1", "SOLVER.=1", ".LR=1",
                                      "SOLVER.LR.X=1", "SOLVER=1", "\udc80.LR=1", "a\nb.c=1"])
def test_an_override_of_another_form(tmp_path, override):
    (tmp_path / "config.yaml").touch()
    line = error_line(tmp_path / "config.yaml", override)
    assert "SECTION.KEY=VALUE" in line or "unknown" in line


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "pipe", tmp_path / ("n" * 5000)):
        assert "no such file" in error_line(path)


def test_mutations_of_a_configuration_end_in_a_configuration_or_one_line(tmp_path):
    """500 damaged copies of voc12.yaml: bytes changed, cut out, doubled, or YAML's signs put in."""
    original = (DEEPLAB / "configs" / "voc12.yaml").read_bytes()
    signs = [b":", b"[", b"]", b"{", b"}", b"'", b'"', b"*a", b"&a ", b"!!", b"|", b">", b"\t",
             b"\n", b"? ", b"- ", b"%", b"---\n", b"#", b"\\", b"\0", b"\xff", b"1e999", b"null",
             b"99999999999999999999", b"..", b"/", b"<<: ", b"@"]
    path, random_, refused = tmp_path / "config.yaml", random.Random(0), 0
    for _ in range(500):
        content = bytearray(original)
        for _ in range(random_.randint(1, 4)):
            at, length = random_.randrange(len(content)), random_.randint(0, 12)
            content[at:at + length] = random_.choice(
                (b"", bytes(content[at:at + 3 * length]), random_.choice(signs),
                 random_.randbytes(1 + length)))
        path.write_bytes(content)
        try:
            assert load_config(path).to_dict().keys() == Config.model_fields.keys()
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1 and str(path) in str(error)
    assert 100 < refused < 500


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


def test_the_recipe_for_two_gpus_sees_as_many_images():
    one, two = (load_config(DEEPLAB / "configs" / f"{name}.yaml").SOLVER
                for name in ("voc12", "voc12_2gpu"))
    assert two.BATCH_SIZE == 2 * one.BATCH_SIZE
    assert two.ITER_MAX * two.BATCH_SIZE * two.ITER_SIZE == \
        one.ITER_MAX * one.BATCH_SIZE * one.ITER_SIZE
