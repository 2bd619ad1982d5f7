"""Bad input: an error of one line that names the file or option, and nothing half-written."""

import argparse
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import MACHINE, NETWORK, ROOT, TRAINING, files_below, run_script, stage_error
from PIL import Image

from datasets.layout import DataRoot
from labelling.labels import save_label
from models.classifier import Classifier
from utils import errors, stage
from utils.files import UserError, atomic_write, output_folder, write_json
from utils.options import number
from utils.runtime import setup

SPOIL: dict[str, tuple[Callable[[Path], None], str]] = {}


def first(root: Path) -> str:
    """The first image of train_aug, which is in train too."""
    return list_file(root).read_text().split()[0]


def list_file(root: Path) -> Path:
    return root / "ImageSets" / "Segmentation" / "train_aug.txt"


def spoils(words: str) -> Callable:
    """Register a function that spoils a data root; the error must hold all of `words`."""
    def register(function: Callable[[Path], None]) -> Callable[[Path], None]:
        SPOIL[function.__name__.replace("_", " ")] = (function, words)
        return function
    return register


def append(root: Path, line: str) -> None:
    path = list_file(root)
    path.write_text(path.read_text() + line + "\n")


def use_annotations(root: Path) -> Path:
    """Make the list one without labels; the annotation of its first image."""
    path = list_file(root)
    path.write_text("\n".join(line.split()[0] for line in path.read_text().splitlines()))
    return root / "Annotations" / f"{first(root)}.xml"


@spoils("train_000000")
def missing_image(root: Path) -> None:
    (root / "JPEGImages" / f"{first(root)}.jpg").unlink()


@spoils("train_000000.jpg")
def truncated_image(root: Path) -> None:
    path = root / "JPEGImages" / f"{first(root)}.jpg"
    path.write_bytes(path.read_bytes()[:-400])


@spoils("train_000000.jpg")
def text_instead_of_an_image(root: Path) -> None:
    (root / "JPEGImages" / f"{first(root)}.jpg").write_text("<html>404</html>")


@spoils("train_000000.jpg")
def empty_image(root: Path) -> None:
    (root / "JPEGImages" / f"{first(root)}.jpg").write_bytes(b"")


@spoils("train_aug.txt line 9 7 3 classes")
def class_index_out_of_range(root: Path) -> None:
    append(root, "val_000000 7")


@spoils("train_aug.txt line 9 -1")
def negative_class_index(root: Path) -> None:
    append(root, "val_000000 -1")


@spoils("train_aug.txt line 9 1.5")
def malformed_list_line(root: Path) -> None:
    append(root, "val_000000 1.5")


@spoils("train_aug.txt line 9 unicorn")
def unknown_class_in_the_list(root: Path) -> None:
    append(root, "val_000000 unicorn")


@spoils("train_aug.txt line 9 train_000000 twice")
def duplicate(root: Path) -> None:
    append(root, "train_000000 1")


@spoils("train_aug.txt line 9")
def path_traversal(root: Path) -> None:
    shutil.copy(root / "JPEGImages" / "val_000000.jpg", root / "outside.jpg")
    append(root, "../outside 1")


@spoils("train_aug.txt line 9")
def absolute_path(root: Path) -> None:
    shutil.copy(root / "JPEGImages" / "val_000000.jpg", root / "outside.jpg")
    append(root, f"{root / 'outside.jpg'} 1")


@spoils("train_aug.txt")
def empty_list(root: Path) -> None:
    list_file(root).write_text("\n \n")


@spoils("train_aug.txt UTF-8")
def list_that_is_no_text(root: Path) -> None:
    list_file(root).write_bytes(b"\xff\xfe\x00\x01" * 9)


@spoils("train_000000.xml")
def no_labels_at_all(root: Path) -> None:
    use_annotations(root).unlink()


@spoils("train_000000.xml malformed")
def malformed_xml(root: Path) -> None:
    path = use_annotations(root)
    path.write_text(path.read_text()[:60])


@spoils("train_000000.xml malformed")
def empty_xml(root: Path) -> None:
    use_annotations(root).write_text("")


@spoils("train_000000.xml unknown dragon")
def unknown_class_in_xml(root: Path) -> None:
    use_annotations(root).write_text(
        "<annotation><object><name>dragon</name></object></annotation>")


@spoils("train_000000.xml document type")
def entity_bomb(root: Path) -> None:
    levels = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    use_annotations(root).write_text(f'<!DOCTYPE a [<!ENTITY l0 "lol">{levels}]>'
                                     "<annotation>&l9;</annotation>")


@spoils("train_000000.xml document type")
def external_entity(root: Path) -> None:
    use_annotations(root).write_text('<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/hostname">]>'
                                     "<annotation><object><name>&f;</name></object></annotation>")


@spoils("train_000000.xml large")
def huge_xml(root: Path) -> None:
    use_annotations(root).write_text("<annotation>" + " " * (2 << 20) + "</annotation>")


@spoils("classes.txt")
def class_named_twice(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\ncat\n")


@spoils("classes.txt")
def no_class_names(root: Path) -> None:
    (root / "classes.txt").write_text("\n")


@spoils("JPEGImages no images")
def no_images(root: Path) -> None:
    shutil.rmtree(root / "JPEGImages")
    (root / "JPEGImages").mkdir()


@spoils("no such folder")
def no_data_root(root: Path) -> None:
    shutil.rmtree(root)


@spoils("no images own_data.md")
def empty_data_root(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


@pytest.mark.parametrize("case", SPOIL)
def test_spoilt_data_stops_training(own_demo, tmp_path, case):
    spoil, words = SPOIL[case]
    spoil(own_demo)
    message = stage_error("train_drs", "--data-root", own_demo, "--run-dir", tmp_path / "run",
                          *MACHINE, *TRAINING, "--val-list", "none")
    for word in words.split():
        assert word in message
    assert not {name for name in files_below(tmp_path / "run") if "tensorboard" not in name}


# In labelling, one bad file does not stop the others.

@pytest.mark.parametrize("case", ["truncated image", "text instead of an image"])
@pytest.mark.parametrize(("script", "folder", "network"), [
    ("make_localization_maps", "localization_maps", "classifier"),
    ("make_pseudo_labels", "pseudo_labels", "refine")])
@pytest.mark.parametrize("batch", ["1", "8"])
def test_an_unreadable_image_does_not_stop_the_others(own_demo, run, tmp_path, case, script,
                                                      folder, network, batch):
    SPOIL[case][0](own_demo)
    message = stage_error(script, "--data-root", own_demo, "--run-dir", tmp_path / "run", *MACHINE,
                          "--batch-size", batch, "--checkpoint", run / network / "best.pth")
    assert "train_000000.jpg" in message and "1 of 8" in message
    made = {name for name in files_below(tmp_path / "run") if name.endswith(".png")}
    assert made == {f"{folder}/train_{i:06d}.png" for i in range(1, 8)}


def test_an_error_in_a_loading_process_is_one_line(own_demo, tmp_path):
    SPOIL["truncated image"][0](own_demo)
    done = run_script("train_drs.py", "--data-root", own_demo, "--run-dir", tmp_path / "run",
                      *MACHINE, *TRAINING, "--num-workers", "2", "--val-list", "none", check=False)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1
    assert "train_000000.jpg" in errors[0] and "Traceback" not in done.stderr
    assert done.stderr.rstrip().endswith(errors[0])


@pytest.mark.slow
def test_an_error_in_one_of_several_processes_is_one_line_and_the_last(own_demo, run, tmp_path):
    SPOIL["truncated image"][0](own_demo)
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


# Companions of the images

def spoil_saliency(root: Path, array: np.ndarray | None, folder: str = "saliency_map") -> Path:
    path = root / folder / f"{first(root)}.png"
    path.unlink()
    if array is not None:
        Image.fromarray(array).save(path)
    return path


WRONG = {"another size": np.zeros((9, 11), np.uint8), "missing": None,
         "in colour": np.zeros((48, 48, 3), np.uint8),
         "of 16 bits": np.zeros((48, 48), np.uint16)}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_saliency(own_demo, run, tmp_path, wrong):
    spoil_saliency(own_demo, WRONG[wrong])
    common = ("--data-root", own_demo, "--run-dir", tmp_path / "run", *MACHINE)
    message = stage_error("make_pseudo_labels", *common, "--checkpoint",
                          run / "refine" / "best.pth")
    assert "saliency_map/train_000000.png" in message
    assert "pseudo_labels/train_000000.png" not in files_below(tmp_path / "run")
    if wrong == "another size":
        assert "11x9" in message
    message = stage_error("train_drs", *common, *TRAINING)
    assert "saliency_map/train_000000.png" in message


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_mask(own_demo, run, tmp_path, wrong):
    spoil_saliency(own_demo, WRONG[wrong], "SegmentationClassAug")
    common = ("--data-root", own_demo, "--run-dir", tmp_path / "run")
    message = stage_error("evaluate", *common, "--maps-dir", run / "localization_maps")
    assert "SegmentationClassAug/train_000000.png" in message
    message = stage_error("train_drs", *common, *MACHINE, *TRAINING)
    assert "SegmentationClassAug/train_000000.png" in message
    assert not any(name.endswith(".json") for name in files_below(tmp_path / "run"))


def test_mask_with_labels_out_of_range(own_demo, run, tmp_path):
    path = own_demo / "SegmentationClassAug" / f"{first(own_demo)}.png"
    with Image.open(path) as image:
        label = np.array(image)
    label[0, 0] = 4  # three classes: 0 to 3
    save_label(path, label)
    message = stage_error("evaluate", "--data-root", own_demo, "--run-dir", tmp_path,
                          "--maps-dir", run / "localization_maps")
    assert str(path) in message and "label 4" in message


@pytest.mark.parametrize("label", [4, 100])
def test_prediction_with_labels_out_of_range(own_demo, tmp_path, label):
    shutil.copytree(own_demo / "SegmentationClassAug", tmp_path / "labels")
    with Image.open(tmp_path / "labels" / f"{first(own_demo)}.png") as image:
        save_label(tmp_path / "labels" / f"{first(own_demo)}.png",
                   np.full((image.height, image.width), label))
    message = stage_error("evaluate", "--data-root", own_demo, "--run-dir", tmp_path / "run",
                          "--labels-dir", tmp_path / "labels")
    assert "labels/train_000000.png" in message and f"label {label}" in message


def test_missing_and_foreign_localization_maps(demo, run, tmp_path):
    maps = tmp_path / "localization_maps"
    common = ("--data-root", demo, "--run-dir", tmp_path, *MACHINE, *TRAINING)
    assert f"{maps}: no such folder" in stage_error("train_refine", *common)
    shutil.copytree(run / "localization_maps", maps)
    (maps / "train_000003.png").unlink()
    assert "train_000003.png" in stage_error("train_refine", *common)
    shutil.copy(demo / "saliency_map" / "train_000003.png", maps / "train_000003.png")
    assert "train_000003.png: a PNG, but not" in stage_error("train_refine", *common)
    assert not (tmp_path / "refine" / "last.pth").exists()


# Checkpoints

def checkpoint_error(demo: Path, folder: Path, path: Path, *options: object) -> str:
    message = stage_error("make_localization_maps", "--data-root", demo, "--run-dir", folder,
                          *MACHINE, "--checkpoint", path, *options)
    assert not files_below(folder)
    return message


def test_wrong_checkpoints(demo, tmp_path):
    path, folder = tmp_path / "some.pth", tmp_path / "run"
    assert "some.pth: no such file" in checkpoint_error(demo, folder, path)
    path.write_bytes(b"nothing")
    assert "some.pth" in checkpoint_error(demo, folder, path)
    torch.save({"model": {"conv1.weight": torch.ones(3)}}, path)
    assert "some.pth: of another architecture" in checkpoint_error(demo, folder, path)
    torch.save({"layer1.conv1.conv.weight": torch.ones(3)}, path)
    assert "some.pth: holds a deeplab network" in checkpoint_error(demo, folder, path)
    model = Classifier(5, width=0.0625)
    torch.save({"model": model.state_dict()}, path)
    assert "some.pth: has 5 classes, the data set has 3" in checkpoint_error(demo, folder, path)
    state = Classifier(3, width=0.0625).state_dict()
    state["features.5.weight"] = torch.zeros(1, 2, 3, 3)
    del state["extra_conv2.bias"]
    torch.save({"model": state}, path)
    message = checkpoint_error(demo, folder, path)
    assert "features.5.weight" in message and "extra_conv2.bias" in message


def test_options_that_contradict_the_checkpoint(demo, run, tmp_path):
    path = run / "classifier" / "best.pth"
    for option, value in (("--network", "refine"), ("--drs", "none"), ("--delta", "0.3")):
        assert f"{option} {value} contradicts" in checkpoint_error(demo, tmp_path / "run", path,
                                                                   option, value)


def test_initial_weights_that_do_not_fit(demo, run, tmp_path):
    common = ("--data-root", demo, "--run-dir", tmp_path, *MACHINE, *TRAINING, "--init")
    message = stage_error("train_drs", *common, run / "classifier" / "best.pth", "--width", "0.125")
    assert "--init" in message and "features.0.weight" in message
    assert "missing.pth" in stage_error("train_drs", *common, tmp_path / "missing.pth")
    assert not (tmp_path / "classifier" / "last.pth").exists()


def test_imagenet_weights_out_of_reach(demo, tmp_path, monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("models.vgg.DilatedVGG16.load_imagenet", unreachable)
    message = stage_error("train_drs", "--data-root", demo, "--run-dir", tmp_path, *MACHINE,
                          *TRAINING, "--init", "imagenet")
    assert "--init imagenet" in message and "no route to host" in message


# Options

@pytest.mark.parametrize(("script", "option", "value"), [
    ("make_pseudo_labels", "--alpha", "1.5"), ("make_pseudo_labels", "--alpha", "-0.1"),
    ("make_pseudo_labels", "--alpha", "nan"), ("make_pseudo_labels", "--alpha", "much"),
    ("evaluate", "--alphas", "2"), ("train_drs", "--delta", "0"), ("train_drs", "--delta", "1.1"),
    ("train_drs", "--drs", "fix"), ("train_drs", "--lr", "0"), ("train_drs", "--lr", "nan"),
    ("train_drs", "--epochs", "0"), ("train_drs", "--batch-size", "0"),
    ("train_drs", "--num-workers", "-1"), ("train_drs", "--image-size", "7"),
    ("train_drs", "--width", "0"), ("train_drs", "--seed", "-1"), ("train_drs", "--resize", "16"),
    ("train_drs", "--device", "tpu"), ("train_drs", "--amp", "yes"),
    ("make_pseudo_labels", "--scales", "inf"), ("train_drs", "--width", "inf"),
    ("train_drs", "--seed", "4294967296"), ("train_drs", "--weight-decay", "1e300"),
    ("train_drs", "--image-size", "100000"), ("train_drs", "--num-workers", "100000"),
    ("make_pseudo_labels", "--background-score", "0"), ("make_localization_maps", "--scales", "0"),
])
def test_option_values_are_checked(demo, tmp_path, capsys, script, option, value):
    needed = ["--labels-dir", "x"] if script == "evaluate" else []
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(script).parse(["--data-root", str(demo), "--run-dir",
                                               str(tmp_path / "run"), *needed, option, value])
    assert caught.value.code == 2
    assert option in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_number_says_its_bounds():
    for parse, text, words in ((number(float, 0, 1), "2", "from 0 to 1, got 2"),
                               (number(float, 0, 1, True), "0", "above 0 to 1"),
                               (number(float, 0, 9), "inf", "from 0 to 9"),
                               (number(float, 0, 9), "nan", "from 0 to 9")):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            parse(text)
    assert number(int, 1, 9)("1") == 1 and number(float, 0, 1)("1") == 1.0


def test_options_against_the_data(demo, run, tmp_path):
    common = ("--data-root", demo, "--run-dir", tmp_path / "run", *MACHINE)
    train, label = (*common, *TRAINING), (*common, "--checkpoint", run / "refine" / "best.pth")
    for script, options, words in (
            ("train_drs", (*train, "--batch-size", "9"), "--batch-size 9"),
            ("train_drs", (*train, "--list", "nothing"), "list nothing train_aug"),
            ("train_drs", (*train, "--val-list", "nothing"), "list nothing train_aug"),
            ("train_drs", (*train, "--amp", "fp16"), "--amp fp16"),
            ("train_drs", (*train, "--saliency-dir", demo / "nowhere"), "nowhere --saliency-dir"),
            ("make_pseudo_labels", (*label, "--scales", "0.1"), "--scales"),
            ("make_localization_maps", (*label, "--scales", "1", "0.1"), "--scales"),
            ("evaluate", ("--data-root", demo, "--run-dir", tmp_path / "run", "--labels-dir",
                          demo / "nowhere"), "nowhere"),
            ("evaluate", ("--data-root", demo, "--run-dir", tmp_path / "run", "--labels-dir", demo,
                          "--mask-dir", demo / "nowhere"), "nowhere --mask-dir")):
        message = stage_error(script, *options)
        assert all(word in message for word in words.split()), message
    assert not {name for name in files_below(tmp_path / "run") if name.endswith("png")}


def test_no_saliency_maps_and_nothing_instead(own_demo, run, tmp_path):
    shutil.rmtree(own_demo / "saliency_map")
    message = stage_error("make_pseudo_labels", "--data-root", own_demo, "--run-dir", tmp_path,
                          *MACHINE, "--checkpoint", run / "refine" / "best.pth")
    assert "saliency_map" in message and "--background" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    with pytest.raises(UserError, match="--device cuda"):
        setup("cuda")


# Outputs that cannot be written. A file stands where a folder is wanted, because a test that runs
# as root may write anywhere.

@pytest.mark.parametrize("option", ["--output-dir", "--run-dir"])
@pytest.mark.parametrize("script", ["train_drs", "make_localization_maps", "evaluate"])
def test_output_that_cannot_be_written(demo, run, tmp_path, option, script):
    (tmp_path / "file").write_text("in the way")
    special = {"train_drs": (*MACHINE, *TRAINING), "evaluate": ("--maps-dir",
                                                                run / "localization_maps"),
               "make_localization_maps": (*MACHINE, "--checkpoint", run / "classifier/best.pth")}
    other = {"--output-dir": "--run-dir", "--run-dir": "--output-dir"}[option]
    message = stage_error(script, "--data-root", demo, *special[script], option,
                          tmp_path / "file" / "x", other, tmp_path / "other")
    assert message.startswith(f"error: {option}: cannot write to {tmp_path / 'file' / 'x'}")
    assert (tmp_path / "file").read_text() == "in the way"
    assert not files_below(tmp_path / "other")


def test_output_in_a_system_folder():
    with pytest.raises(UserError, match="--output-dir: cannot write to /proc/nowhere"):
        output_folder(Path("/proc/nowhere"))


def test_save_maps_folder_that_cannot_be_written(demo, run, tmp_path):
    (tmp_path / "file").write_text("")
    message = stage_error("make_pseudo_labels", "--data-root", demo, "--run-dir", tmp_path / "run",
                          *MACHINE, "--checkpoint", run / "refine/best.pth", "--save-maps",
                          tmp_path / "file" / "maps")
    assert message.startswith("error: --save-maps")


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


def test_two_images_of_one_name(own_demo):
    shutil.copy(own_demo / "JPEGImages" / "val_000000.jpg", own_demo / "JPEGImages/val_000000.png")
    with pytest.raises(UserError, match="val_000000"):
        DataRoot(own_demo)


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
