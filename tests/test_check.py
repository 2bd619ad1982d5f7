"""`python -m datasets.voc check` and `make-list`, on data roots with one fault of each kind."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import MACHINE, ROOT, TRAINING, run_script, stage_error
from PIL import Image

from datasets import command
from datasets.layout import VOC_CLASSES, DataRoot
from labelling.labels import save_label

NAMES = ("2007_01", "2007_02", "2007_03", "2007_04")
LABELS = ((0, 19), (1,), (19,), (2, 7))  # the first class and the last are among them
HEIGHT, WIDTH = 12, 16
BAD_LINE = "list lines that name no image, a wrong class or an image twice"


def xml(labels: tuple[int, ...]) -> str:
    objects = "".join(f"<object><name>{VOC_CLASSES[i]}</name></object>" for i in labels)
    return f"<annotation>{objects}</annotation>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small VOC root without faults: three images to train on, the last is val."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClassAug", "saliency_map",
                   "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, labels in zip(NAMES, LABELS, strict=True):
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(xml(labels))
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[:2] = 255
        for row, label in enumerate(labels, start=2):
            mask[row] = label + 1
        save_label(root / "SegmentationClassAug" / f"{name}.png", mask)
        Image.fromarray(mask // 255 * 200).save(root / "saliency_map" / f"{name}.png")
    write_list(root, "train", *NAMES[:2])
    write_list(root, "val", NAMES[3])
    write_list(root, "train_aug", *(f"{name} {' '.join(map(str, labels))}" for name, labels in
                                    zip(NAMES[:3], LABELS[:3], strict=True)))
    return root


def write_list(root: Path, name: str, *lines: str) -> None:
    (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        command.main([str(arg) for arg in argv])
    return end.value.code


def report(root: Path, *options: object) -> tuple[int, dict]:
    path = root.parent / "report.json"
    code = run("check", root, "--num-workers", 0, "--json", path, *options)
    return code, json.loads(path.read_text())


def stages(found: dict) -> dict[str, dict]:
    return {stage["name"]: stage for stage in found["stages"]}


def test_a_good_root_has_no_faults_and_every_stage_is_ready(root, capsys):
    code, found = report(root)
    assert code == 0 and not found["faults"] and not found["notes"].keys() - {
        "classes that no training image shows"}
    assert found["counts"] == dict.fromkeys(
        ("images", "annotations", "masks", "saliency maps"), 4)
    assert found["lists"] == {"train.txt": 2, "train_aug.txt": 3, "val.txt": 1}
    for column in ("annotations", "masks"):
        assert found["histogram"][column][19] == 2 and sum(found["histogram"][column]) == 6
    assert found["histogram"]["train_aug.txt"][19] == 2
    assert all(stage["ready"] for stage in found["stages"])
    assert "chooses the checkpoint on train (2)" in stages(found)["train_drs"]["text"]
    shown = capsys.readouterr().out
    assert "faults: none" in shown and "ready    DeepLab test" in shown


def test_the_command_is_that_of_the_data_set(root):
    (root / "JPEGImages" / "2007_02.jpg").write_bytes(b"no image")
    done = run_script("-m", "datasets.voc", "check", root, "--num-workers", 2, check=False)
    assert done.returncode == 1 and "2007_02.jpg: unreadable image" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_may_start_in_any_way(root, method):
    code = ("import multiprocessing, sys; from datasets import command; "
            f"multiprocessing.set_start_method({method!r}) if __name__ == '__main__' else None; "
            f"command.main(['check', {str(root)!r}, '--num-workers', '2'])")
    done = run_script("-c", code)
    assert "good: 4 images, 4 annotations, 4 masks, 4 saliency maps" in done.stdout


def test_several_processes_find_the_same(root):
    (root / "JPEGImages" / "2007_02.jpg").write_bytes(b"no image")
    code, alone = report(root)
    assert (code, alone) == report(root, "--num-workers", 2)


def image(path: Path, size: tuple[int, int], value: int, mode: str = "L", **options) -> None:
    Image.new(mode, size, value).save(path, **options)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


FAULTS = {
    "truncated image": (
        lambda root: truncate(root / "JPEGImages" / "2007_02.jpg"), "unreadable image", ".jpg"),
    "malformed annotation": (
        lambda root: (root / "Annotations" / "2007_02.xml").write_text("<a>"),
        "unreadable annotation", "malformed XML"),
    "unknown class": (
        lambda root: (root / "Annotations" / "2007_02.xml").write_text(
            "<annotation><object><name>unicorn</name></object></annotation>"),
        "unreadable annotation", "unicorn"),
    "broken mask": (
        lambda root: (root / "SegmentationClassAug" / "2007_02.png").write_bytes(b"\x89PNG"),
        "unreadable mask", "2007_02.png"),
    "colour mask": (
        lambda root: image(root / "SegmentationClassAug" / "2007_02.png", (16, 12), 0, "RGB"),
        "unreadable mask", "palette or grey"),
    "mask size": (
        lambda root: image(root / "SegmentationClassAug" / "2007_02.png", (12, 16), 0),
        "mask of another size than its image", "12x16 pixels, but its image has 16x12"),
    "mask values": (
        lambda root: image(root / "SegmentationClassAug" / "2007_02.png", (16, 12), 21),
        "mask with other values than classes", "values 21"),
    "broken saliency": (
        lambda root: truncate(root / "saliency_map" / "2007_02.png"), "unreadable saliency map",
        "2007_02.png"),
    "saliency size": (
        lambda root: image(root / "saliency_map" / "2007_02.png", (16, 13), 255),
        "saliency map of another size than its image", "16x13"),
    "image missing": (
        lambda root: (root / "JPEGImages" / "2007_02.jpg").unlink(), BAD_LINE, "2007_02"),
    "class out of range": (
        lambda root: write_list(root, "train_aug", "2007_02 20"), BAD_LINE, "index 20"),
    "listed twice": (
        lambda root: write_list(root, "train_aug", "2007_01 0", "2007_01 0"), BAD_LINE, "twice"),
    "two files of one name": (
        lambda root: image(root / "JPEGImages" / "2007_02.png", (16, 12), 0),
        "two images of one name", "2007_02.jpg"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_named_and_counted(root, name):
    spoil, kind, part = FAULTS[name]
    spoil(root)
    code, found = report(root)
    assert code == 1 and list(found["faults"]) == [kind]
    assert all(part in message for message in found["faults"][kind]), found["faults"]
    assert sum(found["counts"].values()) >= 12  # it went on


NOTES = {
    "mask without image": (
        lambda root: image(root / "SegmentationClassAug" / "stray.png", (16, 12), 0),
        "files in SegmentationClassAug without an image", "stray.png"),
    "list against mask": (
        lambda root: write_list(root, "train", "2007_02 1 5"),
        "labels in a list that differ from the mask",
        "2007_02 has bicycle bus, its mask bicycle"),
    "list against annotation": (
        lambda root: (root / "Annotations" / "2007_03.xml").write_text(xml((3,))),
        "labels in a list that differ from the annotation",
        "2007_03 has tvmonitor, its annotation boat"),
    "val in training": (
        lambda root: write_list(root, "train", *NAMES),
        "images both in val and in a training list", "train.txt: 2007_04"),
    "same picture": (
        lambda root: (root / "JPEGImages" / "2007_02.jpg").write_bytes(
            (root / "JPEGImages" / "2007_03.jpg").read_bytes()),
        "one picture under several names", "2007_02 = 2007_03"),
    "saliency of 0 and 1": (
        lambda root: image(root / "saliency_map" / "2007_02.png", (16, 12), 1),
        "saliency maps without foreground (stored as 0 and 1 instead of 0 and 255?)", "2007_02"),
    "no labels": (
        lambda root: (write_list(root, "train", "2007_02"),
                      (root / "Annotations" / "2007_02.xml").unlink()),
        "list lines without labels, and nothing else tells them", "train.txt: 2007_02"),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_does_not_go_together_is_noted_without_being_a_fault(root, name):
    spoil, kind, message = NOTES[name]
    spoil(root)
    code, found = report(root)
    assert code == 0 and message in found["notes"][kind][0]


def test_all_faults_at_once_are_all_found_and_only_the_first_shown(root, capsys):
    for name in NAMES:
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(b"")
        (root / "Annotations" / f"{name}.xml").write_text("<")
    code, found = report(root, "--show", 2)
    assert code == 1
    assert {kind: len(messages) for kind, messages in found["faults"].items()} == {
        "unreadable image": 4, "unreadable annotation": 4}
    faults = capsys.readouterr().out.partition("\nfaults")[2].partition("\nnotes")[0]
    assert faults.count("malformed XML") == 2
    assert not stages(found)["train_drs"]["ready"]
    assert "2007_01.xml: malformed XML" in stages(found)["train_drs"]["text"]


def test_unreadable_images_keep_a_training_from_being_ready(root):
    for name in NAMES:
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(b"")
    found = stages(report(root)[1])
    assert "3 images of train_aug are unreadable" in found["train_drs"]["text"]
    assert found["make_pseudo_labels"]["ready"]  # it labels what it can


@pytest.mark.parametrize("lines", [("2007_01 0", "2007_02 zebra"), ("2007_01;0",),
                                   ("image,class", "2007_01,0"), ("'2007_01' 0",), ("2007_05 1",)])
def test_it_says_what_the_training_says(root, lines):
    write_list(root, "train_aug", *lines)
    found = stages(report(root)[1])["train_drs"]
    said = stage_error("train_drs", "--data-root", root, "--run-dir", root.parent / "run",
                       *MACHINE, *TRAINING)
    assert not found["ready"] and said.startswith(f"error: {found['text'].split(' (python')[0]}")


def test_a_mask_of_an_image_that_exif_rotates_may_lie_either_way(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    image(root / "JPEGImages" / "2007_02.jpg", (16, 12), 0, "RGB", exif=exif)  # upright: 12x16
    image(root / "SegmentationClassAug" / "2007_02.png", (16, 12), 2)
    image(root / "saliency_map" / "2007_02.png", (12, 16), 255)
    code, found = report(root)
    assert code == 0 and found["counts"]["masks"] == 4
    image(root / "saliency_map" / "2007_02.png", (12, 12), 255)
    assert report(root)[0] == 1


def test_quick_opens_no_images(root):
    (root / "JPEGImages" / "2007_02.jpg").write_bytes(b"")
    code, found = report(root, "--quick")
    assert code == 0 and found["counts"]["images"] == 4 and "masks" not in found["histogram"]
    (root / "Annotations" / "2007_02.xml").write_text("<")
    assert report(root, "--quick")[0] == 1


@pytest.mark.parametrize(("folder", "stage", "advice"), [
    ("saliency_map", "make_pseudo_labels", "--background threshold or crf (python download.py "
                                           "saliency"),
    ("SegmentationClassAug", "evaluate", "python download.py masks"),
    ("ImageSets", "train_drs", "python download.py lists"),
])
def test_stages_name_the_download_that_brings_what_is_missing(root, folder, stage, advice):
    (root / folder).rename(root / "elsewhere")
    image(root / "JPEGImages" / "2007_000032.jpg", (16, 12), 0)  # tells whose photos these are
    code, found = report(root)
    assert code == 0 and advice in stages(found)[stage]["text"]
    assert not stages(found)[stage]["ready"]


def test_without_annotations_a_plain_list_has_no_labels(root):
    (root / "Annotations").rename(root / "elsewhere")
    write_list(root, "train_aug", *NAMES[:3])
    text = stages(report(root)[1])["train_refine"]["text"]
    assert "2007_01: no image-level labels" in text and "python download.py lists" in text


def test_no_data_root_says_how_to_get_one(tmp_path):
    assert "python download.py voc2012" in run("check", tmp_path / "nowhere")


def test_train_aug_is_worked_out_as_masks_without_val(root):
    (root / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    image(root / "JPEGImages" / "unmasked.jpg", (16, 12), 0)
    entries = DataRoot(root).entries("train_aug")  # labels from the annotations
    assert [(entry.id, entry.labels) for entry in entries] == list(
        zip(NAMES[:3], LABELS[:3], strict=True))
    code, found = report(root)
    assert code == 0 and found["lists"]["train_aug (worked out)"] == 3
    assert stages(found)["train_drs"]["ready"]


def test_the_official_lists_win_over_working_out_and_over_annotations(root):
    for name in ("train_aug", "train", "val"):
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").unlink()
    write_list(root, "val_cls", "2007_04 2 7")
    assert [entry.id for entry in DataRoot(root).entries("train_aug")] == list(NAMES[:3])
    write_list(root, "train_aug_cls", "2007_01 0 14", "2007_03 5")
    write_list(root, "train_aug", *NAMES)
    write_list(root, "train_cls", "2007_01 0 14")
    data = DataRoot(root)
    assert [(e.id, e.labels) for e in data.entries("train_aug")] == [
        ("2007_01", (0, 14)), ("2007_03", (5,))]
    assert [e.id for e in data.entries("train")] == ["2007_01"]
    assert [e.labels for e in data.entries("val")] == [(2, 7)]


@pytest.mark.parametrize("source", ["--from-masks", "--from-xml"])
def test_make_list_writes_the_official_format(root, tmp_path, source):
    official = (root / "ImageSets" / "Segmentation" / "train_aug.txt").read_text()
    (root / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    output = tmp_path / "made.txt"
    assert run("make-list", root, source, "--list", "train_aug", "--output", output) == 0
    assert output.read_text() == official
    assert run("make-list", root, source, "--output", output, "--num-workers", 0) == 0
    assert len(output.read_text().splitlines()) == 4
    assert run("make-list", root, source, "--list", output, "--output", output) == 0


def test_make_list_marks_images_without_classes_and_the_list_can_be_read(root, tmp_path):
    image(root / "SegmentationClassAug" / "2007_02.png", (16, 12), 0)
    (root / "Annotations" / "2007_02.xml").unlink()
    output = tmp_path / "made.txt"
    run("make-list", root, "--from-masks", "--output", output)
    assert output.read_text().splitlines()[1] == "2007_02 -"
    assert DataRoot(root).entries(str(output))[1].labels == ()


def test_make_list_writes_nothing_when_a_mask_is_missing_or_wrong(root, tmp_path):
    output = tmp_path / "made.txt"
    output.write_text("before")
    image(root / "SegmentationClassAug" / "2007_02.png", (16, 12), 77)
    assert "2007_02.png: values 77" in run("make-list", root, "--from-masks", "--output", output)
    (root / "SegmentationClassAug" / "2007_02.png").unlink()
    message = run("make-list", root, "--from-masks", "--list", "train", "--output", output)
    assert "2007_02.png: missing" in message
    assert output.read_text() == "before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_no_circle_of_imports():
    """Whichever file of datasets/ one starts from, no chain of imports leads back to it."""
    files = {f"datasets.{path.stem}": path for path in (ROOT / "datasets").glob("*.py")}
    needs = {}
    for name, path in files.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("datasets")]
        needs[name] = {module for node in nodes for module in
                       (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
                       if module in files}
    assert needs["datasets.check"] and needs["datasets.voc"]
    while free := [name for name in needs if not needs[name]]:  # take away what needs nothing
        for name in free:
            del needs[name]
        needs = {name: modules.difference(free) for name, modules in needs.items()}
    assert not needs
