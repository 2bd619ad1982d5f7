"""COCO's own layout, and masks rendered from its instances; small files in the same format."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from test_bad_files import message

from datasets import coco, command
from datasets.images import read_companion, read_image
from datasets.layout import DataRoot
from labelling.labels import read_label

# As in COCO: ids with gaps, and not in the order of the names.
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"},
              {"id": 18, "name": "dog"}, {"id": 3, "name": "traffic light"}]
HEIGHT, WIDTH = 20, 30
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


def runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run-length code."""
    return coco.run_lengths(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                            ["counts"].decode())


def annotation(number: int, image: int, category: int, segmentation: object, **more: object
               ) -> dict:
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0,
            "segmentation": segmentation, "bbox": [0, 0, 1, 1], "area": 1.0, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training images, of which the last shows nothing, and two of val."""
    root = tmp_path / "COCO"
    for split, numbers in (("train", (9, 25, 30)), ("val", (42, 73))):
        folder = root / f"{split}2014"
        folder.mkdir(parents=True)
        for number in numbers:
            pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name(split, number))
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[15:] = True
    write(root, "train", (9, 25, 30), [
        annotation(1, 9, 18, SQUARE), annotation(2, 9, 1, [[20, 2, 28, 2, 28, 10]]),
        annotation(3, 25, 90, SQUARE), annotation(4, 25, 90, [[20.5, 5.5, 25.5, 5.5, 25, 9]]),
        annotation(5, 9, 18, [[1, 1, 3, 1, 3, 3]])])
    write(root, "val", (42, 73), [
        annotation(6, 42, 1, SQUARE + [[20, 2, 28, 2, 28, 10]]),
        annotation(7, 42, 18, [[4, 4, 8, 4, 8, 8, 4, 8]]),  # in front of the person
        annotation(8, 42, 3, {"size": [HEIGHT, WIDTH], "counts": runs(crowd)}, iscrowd=1)])
    return root


def name(split: str, number: int) -> str:
    return f"COCO_{split}2014_{number:012d}.jpg"


def write(root: Path, split: str, numbers: tuple[int, ...], annotations: list[dict],
          **changes: object) -> Path:
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / f"instances_{split}2014.json"
    path.write_text(json.dumps({
        "info": {"description": "COCO 2014 Dataset"}, "images": [
            {"license": 5, "file_name": name(split, number), "coco_url": "http://images.cocodataset"
             ".org/x.jpg", "height": HEIGHT, "width": WIDTH, "id": number} for number in numbers],
        "licenses": [{"id": 1}], "annotations": annotations, "categories": CATEGORIES, **changes}))
    return path


def test_the_layout_gives_classes_lists_and_labels(root):
    data = DataRoot(root)
    assert data.classes == ["person", "traffic light", "dog", "toothbrush"]  # by id
    stems = [Path(name("train", number)).stem for number in (9, 25)]
    assert [(entry.id, entry.labels) for entry in data.entries("train_aug")] == [
        (stems[0], (0, 2)), (stems[1], (3,))]  # 30 shows nothing
    assert [entry.labels for entry in data.entries("val")] == [(0, 1, 2), ()]
    assert not data.voc and "download" not in data.describe()
    assert "lists: train_aug 2, train 2, val 2" in data.describe()


def test_image_folders_below_images_and_other_years(root, tmp_path):
    (root / "images").mkdir()
    for path in (root / "train2014", root / "val2014"):
        path.rename(root / "images" / path.name.replace("2014", "2017"))
    for path in (root / "annotations").iterdir():
        path.rename(path.with_name(path.name.replace("2014", "2017")))
    assert len(DataRoot(root).entries("train_aug")) == 2


def test_a_half_without_its_images_is_not_asked_for(root):
    for path in (root / "val2014").iterdir():
        path.unlink()
    (root / "val2014").rmdir()
    data = DataRoot(root)
    assert len(data.entries("train_aug")) == 2 and not data.has_list("val")


def official(root: Path, split: str, number: int) -> np.ndarray:
    """The mask by pycocotools' own reader, smaller instances in front."""
    reader = COCO(root / "annotations" / f"instances_{split}2014.json")
    labels = {category: i for i, category in enumerate(sorted(reader.getCatIds()), start=1)}
    shapes = [(reader.annToMask(one).astype(bool), labels[one["category_id"]])
              for one in reader.loadAnns(reader.getAnnIds(imgIds=[number]))]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for shape, label in sorted(shapes, key=lambda item: -item[0].sum()):
        mask[shape] = label
    return mask


@pytest.mark.parametrize("processes", [0, 2])
def test_masks_are_those_of_the_official_reader(root, tmp_path, processes):
    for split, listed, numbers in (("val", "val", (42, 73)), ("train", "train_aug", (9, 25))):
        coco.write_masks(DataRoot(root), listed, tmp_path / "masks", processes)
        for number in numbers:
            path = tmp_path / "masks" / f"{Path(name(split, number)).stem}.png"
            assert (read_label(path) == official(root, split, number)).all()
    assert len(list((tmp_path / "masks").iterdir())) == 4
    mask = read_label(tmp_path / "masks" / f"{Path(name('val', 42)).stem}.png")
    assert mask[6, 6] == 3 and mask[3, 3] == 1 and mask[18, 18] == 2 and mask[0, 0] == 0


def test_the_command_renders_masks_and_scores_can_be_made_of_them(root, tmp_path):
    with pytest.raises(SystemExit) as end:
        command.main(["masks", str(root), "--output", str(tmp_path / "masks"), "--num-workers",
                      "0"])
    assert end.value.code == 0
    done = subprocess.run([sys.executable, "evaluate.py", "--data-root", root, "--list", "val",
                           "--labels-dir", tmp_path / "masks", "--mask-dir", tmp_path / "masks",
                           "--run-dir", tmp_path / "run"], cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert re.search(r"mean IoU +100|mIoU +100|100\.0", done.stdout), done.stdout


def test_compressed_codes_and_rotated_images(root, tmp_path):
    shape = np.zeros((HEIGHT, WIDTH), bool)
    shape[3:9, 4:20] = True
    code = coco_mask.encode(np.asfortranarray(shape.astype(np.uint8)))
    write(root, "val", (42, 73), [annotation(1, 42, 18, {
        "size": [HEIGHT, WIDTH], "counts": code["counts"].decode()})])
    path = root / "val2014" / name("val", 42)
    exif = Image.Exif()
    exif[0x0112] = 6  # COCO's annotations lie on the image as it is stored
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=exif)
    coco.write_masks(DataRoot(root), "val", tmp_path / "masks")
    made = tmp_path / "masks" / f"{path.stem}.png"
    assert (read_label(made) == 3 * shape).all()
    upright, orientation = read_image(path)
    turned = read_companion(made, (upright.height, upright.width), orientation)
    assert (turned == np.rot90(3 * shape, -1)).all()


BAD = {
    "far away": ([[0, 0, 1e9, 1e9, 5, 5]], "far outside"), "NaN": ([[0, 0, None, 1, 5, 5]], ""),
    "two points": ([[0, 0, 5, 5]], "three points"), "odd": ([[0, 0, 5, 5, 5, 5, 1]], "three"),
    "text": ("cat", "neither polygons"), "number": (7, "neither polygons"),
    "nested": ([[[0, 0], [5, 5], [5, 0]]], "three points"), "words": ([["a"] * 6], ""),
    "flat": ([0, 0, 5, 5, 5, 0], "three points"), "empty polygon": ([[]], "three points"),
    "short runs": ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "another size"),
    "long runs": ({"size": [HEIGHT, WIDTH], "counts": [10 ** 9, 5]}, "another size"),
    "negative runs": ({"size": [HEIGHT, WIDTH], "counts": [605, -5]}, "another size"),
    "other size": ({"size": [WIDTH, HEIGHT], "counts": [600]}, "another size"),
    "huge size": ({"size": [10 ** 9, 10 ** 9], "counts": [10 ** 18]}, "another size"),
    "no counts": ({"size": [HEIGHT, WIDTH]}, "another size"),
    "bad code": ({"size": [HEIGHT, WIDTH], "counts": "\x7f\xff"}, "no run-length code"),
    "endless code": ({"size": [HEIGHT, WIDTH], "counts": "o" * 10_000}, "no run-length code"),
    "truncated code": ({"size": [HEIGHT, WIDTH], "counts": "PP"}, "another size"),
}


@pytest.mark.parametrize("case", BAD)
def test_segmentations_that_are_none(root, tmp_path, case):
    segmentation, words = BAD[case]
    write(root, "val", (42, 73), [annotation(1, 42, 18, segmentation)])
    text = message(coco.write_masks, DataRoot(root), "val", tmp_path / "masks")
    assert "instances_val2014.json, the annotation at byte " in text
    assert f"no segmentation of {name('val', 42)}" in text and words in text


@pytest.mark.parametrize("size", [(HEIGHT + 1, WIDTH), ("20", 30), (None, 30), (-20, -30),
                                  (10 ** 9, 10 ** 9), ([20], 30)])
def test_sizes_that_are_not_the_images(root, tmp_path, size):
    write(root, "val", (42,), [annotation(1, 42, 18, SQUARE)], images=[
        {"id": 42, "file_name": name("val", 42), "height": size[0], "width": size[1]}])
    text = message(coco.write_masks, DataRoot(root), "val", tmp_path / "masks")
    assert "instances_val2014.json: says that" in text and "but it has 30x20" in text


def test_masks_need_segmentations_and_a_coco_file(root, tmp_path):
    write(root, "val", (42, 73), [{"id": 1, "image_id": 42, "category_id": 18}])
    assert "no segmentations to render masks from" in message(
        coco.write_masks, DataRoot(root), "val", tmp_path / "masks")
    for split in ("cat", "dog"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / split / f"{split}.jpg")
    text = message(coco.write_masks, DataRoot(tmp_path / "photos"), "train_aug", tmp_path / "masks")
    assert "labels come from 2 subfolders" in text


def test_a_broken_file_of_the_layout_is_never_passed_over(root):
    (root / "annotations" / "instances_val2014.json").write_text('{"images": [')
    assert "instances_val2014.json: no JSON" in message(DataRoot, root)


def large(root: Path, images: int, each: int = 7) -> None:
    """A COCO file with so many images, of which the files are empty."""
    (root / "train2014").mkdir(parents=True)
    (root / "annotations").mkdir()
    polygon = [round(0.37 * i, 2) for i in range(60)]
    for number in range(images):
        (root / "train2014" / name("train", number)).touch()
    with open(root / "annotations" / "instances_train2014.json", "w") as file:
        file.write('{"info": {}, "images": [')
        file.write(", ".join(json.dumps({"id": i, "file_name": name("train", i), "height": 480,
                                         "width": 640}) for i in range(images)))
        file.write('], "annotations": [')
        for i in range(images * each):
            file.write((", " if i else "") + json.dumps(annotation(
                i, i % images, 1 + i % 80, [polygon])))
        categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


MEASURE = r"""
import re, sys, time
sys.path.insert(0, "")
from datasets.layout import DataRoot
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
before = peak()
start = time.process_time()
entries = DataRoot(sys.argv[1]).entries("train_aug")
print(len(entries), time.process_time() - start,
      (peak() - before) / 1024)
"""


def measured(root: Path) -> tuple[int, float, float]:
    """Images, seconds and megabytes of reading a data root's labels."""
    done = subprocess.run([sys.executable, "-c", MEASURE, root], cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    count, seconds, megabytes = done.stdout.split()
    return int(count), float(seconds), float(megabytes)


def test_labels_take_linear_time_and_little_memory(tmp_path):
    sizes = (1_000, 8_000)
    for size in sizes:
        large(tmp_path / str(size), size)
    (small, fast, _), (count, slow, megabytes) = (measured(tmp_path / str(size)) for size in sizes)
    assert (small, count) == sizes
    assert slow < 20 * max(fast, 0.05)
    whole = (tmp_path / "8000" / "annotations" / "instances_train2014.json").stat().st_size / 1e6
    assert whole > 20 and megabytes < 30  # json.load alone would take several times the file


def test_places_in_the_file_are_found_again(root, tmp_path):
    """Annotations behind text that is no ASCII."""
    path = write(root, "val", (42, 73), [annotation(1, 42, 18, SQUARE, note="ümlaut 東京"),
                                         annotation(2, 42, 1, [[20, 2, 28, 2, 28, 10]])],
                 info={"description": "ünïcödé"})
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, indent=1),
                    encoding="utf-8")
    start = time.process_time()
    coco.write_masks(DataRoot(root), "val", tmp_path / "masks")
    made = read_label(tmp_path / "masks" / f"{Path(name('val', 42)).stem}.png")
    assert (made == official(root, "val", 42)).all()
    assert time.process_time() - start < 20
