"""Bad input: an error of one line that names the file or option, and nothing half-written."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from corpus import COMPANIONS, IMAGE, SALIENCY, Spoil, cut, write
from helpers import MACHINE, NETWORK, ROOT, TRAINING, files_below, run_script, stage_error
from PIL import Image

from datasets.layout import DataRoot
from utils import errors, stage
from utils.files import UserError, atomic_write, output_folder, write_json
from utils.options import number
from utils.runtime import setup

UNREADABLE = {"truncated": cut(IMAGE, 400), "text": write(IMAGE, "<html>404</html>")}


def spoil(how: Spoil, root: Path) -> None:
    """Do to a data root what the corpus does to ROOT."""
    how(lambda name: root / name.partition("/")[2])


# In labelling, one bad file does not stop the others.

@pytest.mark.parametrize("case", UNREADABLE)
@pytest.mark.parametrize(("script", "folder", "network"), [
    ("make_localization_maps", "localization_maps", "classifier"),
    ("make_pseudo_labels", "pseudo_labels", "refine")])
@pytest.mark.parametrize("batch", ["1", "8"])
def test_an_unreadable_image_does_not_stop_the_others(own_demo, run, tmp_path, case, script,
                                                      folder, network, batch):
    spoil(UNREADABLE[case], own_demo)
    message = stage_error(script, "--data-root", own_demo, "--run-dir", tmp_path / "run", *MACHINE,
                          "--batch-size", batch, "--checkpoint", run / network / "best.pth")
    assert "train_000000.jpg" in message and "1 of 8" in message
    made = {name for name in files_below(tmp_path / "run") if name.endswith(".png")}
    assert made == {f"{folder}/train_{i:06d}.png" for i in range(1, 8)}


def test_an_error_in_a_loading_process_is_one_line(own_demo, tmp_path):
    spoil(UNREADABLE["truncated"], own_demo)
    done = run_script("train_drs.py", "--data-root", own_demo, "--run-dir", tmp_path / "run",
                      *MACHINE, *TRAINING, "--num-workers", "2", "--val-list", "none", check=False)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1
    assert "train_000000.jpg" in errors[0] and "Traceback" not in done.stderr
    assert done.stderr.rstrip().endswith(errors[0])


@pytest.mark.slow
def test_an_error_in_one_of_several_processes_is_one_line_and_the_last(own_demo, run, tmp_path):
    spoil(UNREADABLE["truncated"], own_demo)
    for script, options in (
            ("train_drs.py", (*TRAINING, "--val-list", "none")),
            ("make_pseudo_labels.py", ("--checkpoint", run / "refine" / "best.pth"))):
        done = run_script(script, "--data-root", own_demo, "--run-dir", tmp_path / "run", *MACHINE,
                          *options, processes=2, check=False)
        assert done.returncode == 1
        lines = done.stderr.splitlines()
        assert lines[-1].startswith("error: ") and "train_000000.jpg" in lines[-1]
        assert sum(line.startswith("error") for line in lines) == 1
        assert "Traceback" not in done.stderr and len(lines) < 40


@pytest.mark.parametrize("wrong", COMPANIONS)
def test_a_wrong_saliency_map_does_not_stop_the_others(own_demo, run, tmp_path, wrong):
    spoil(COMPANIONS[wrong](SALIENCY), own_demo)
    message = stage_error("make_pseudo_labels", "--data-root", own_demo, "--run-dir",
                          tmp_path / "run", *MACHINE, "--checkpoint", run / "refine" / "best.pth")
    assert "saliency_map/train_000000.png" in message
    made = [name for name in files_below(tmp_path / "run") if name.endswith(".png")]
    assert len(made) == (0 if wrong == "missing" else 7)
    assert "pseudo_labels/train_000000.png" not in made


@pytest.mark.parametrize(("options", "advice"), [
    (("--width", "0.0625"), "download vgg16-397923af.pth into ~/.cache/torch/hub/checkpoints/"),
    (("--backbone", "resnet18"), "download resnet18-f37072fd.pth into ~/.cache/torch"),
    (("--backbone", "timm:resnet18"), "timm.create_model('resnet18', pretrained=True)")])
def test_imagenet_weights_out_of_reach(demo, tmp_path, monkeypatch, options, advice):
    def unreachable(*_: object, pretrained: bool = True, **__: object) -> torch.nn.Module:
        if not pretrained:
            return torchvision.models.mobilenet_v2().features
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", unreachable)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=unreachable))
    message = stage_error("train_drs", "--data-root", demo, "--run-dir", tmp_path, *MACHINE,
                          "--batch-size", "4", "--init", "imagenet", "--image-size", "64", *options)
    assert "--init imagenet: the ImageNet weights cannot be fetched (no route to host)" in message
    assert f"{advice}" in message and "--init none" in message


# Options

def test_number_says_its_bounds():
    for parse, text, words in ((number(float, 0, 1), "2", "from 0 to 1, got 2"),
                               (number(float, 0, 1, True), "0", "above 0 to 1"),
                               (number(float, 0, 9), "inf", "from 0 to 9"),
                               (number(float, 0, 9), "nan", "from 0 to 9")):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            parse(text)
    assert number(int, 1, 9)("1") == 1 and number(float, 0, 1)("1") == 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    with pytest.raises(UserError, match="--device cuda"):
        setup("cuda")


def test_output_in_a_system_folder():
    with pytest.raises(UserError, match="--output-dir: cannot write to /proc/nowhere"):
        output_folder(Path("/proc/nowhere"))


def test_atomic_write(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as tmp:
        tmp.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="x.json.*No space"), atomic_write(path) as tmp:
        tmp.write_text("half")
        raise OSError(28, "No space left on device")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(UserError, match="y.json"):
        write_json(path / "y.json", {})  # below a file


# Lists of a data root, beyond what a training sees

def test_traversal_never_leaves_the_image_folder(own_demo):
    outside = own_demo / "secret.jpg"
    Image.new("RGB", (4, 4)).save(outside)
    path = own_demo / "list.txt"
    for line in ("../secret", "../secret.jpg 1", str(outside), "JPEGImages/../../secret 1"):
        path.write_text(line + "\n")
        with pytest.raises(UserError, match="list.txt, line 1"):
            DataRoot(own_demo).entries(str(path))


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module("train_drs").parse(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for option in ("--data-root", "--list", "--output-dir", "--run-dir", "--device", "--amp",
                   "--batch-size", "--epochs", "--lr", "--num-workers", "--seed", "--overwrite"):
        assert option in text
    for default in ("0.55", "15", "0.001", "5 10", "0.0005", "320", "imagenet", "auto"):
        assert f"(default: {default})" in text


def test_a_whole_failing_script(tmp_path):
    done = run_script("train_drs.py", "--data-root", tmp_path / "nowhere", *NETWORK, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: --data-root {tmp_path / 'nowhere'}: no such folder"]
    assert not (ROOT / "runs" / "nowhere").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_only_a_stage_that_ended_has_taken_a_time(tmp_path, fails):
    """The report would show it as done."""
    def work(args: argparse.Namespace) -> None:
        stage.open_output(setup("cpu"), tmp_path, "work", {}, ())
        if fails:
            raise UserError("no")

    if fails:
        with pytest.raises(SystemExit):
            stage.launch(work, argparse.Namespace())
    else:
        stage.launch(work, argparse.Namespace())
    assert ("seconds" in json.loads((tmp_path / "work.json").read_text())) is not fails


def test_the_first_of_several_processes_to_fail_is_heard(tmp_path, monkeypatch):
    monkeypatch.setenv(errors.ERROR_FILE, str(tmp_path / "error"))
    for line in ("error: the cause", "error: what came of it"):
        with pytest.raises(SystemExit):
            errors.fail(line)
    assert (tmp_path / "error0").read_text() == "error: the cause"


def test_amp_off_is_full_precision(monkeypatch):
    """Also on a GPU, where PyTorch would let convolutions round their input."""
    with setup("cpu", "off").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    before = torch.backends.cudnn.allow_tf32
    try:
        for amp, allowed in (("off", False), ("bf16", True)):
            setup("cuda", amp)
            assert torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cudnn.allow_tf32 = before
