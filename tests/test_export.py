"""export_labels.py: every format read back by a reader that is not ours, the way back from CVAT."""

import json
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from helpers import run_script, run_stage, stage_error
from PIL import Image
from torchvision.datasets import VOCSegmentation

from datasets.layout import DataRoot
from labelling.labels import IGNORE, colorize, read_label, save_label, voc_palette
from labelling.regions import outline, regions, without_small_regions
from utils.files import UserError
from utils.folders import whole_folder

CLASSES = ["cat", "traffic light", "Straße"]


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Labels of regions with holes and islands, specks, lines, and undecided pixels."""
    coarse = rng.choice([0, 1, 2, 3, IGNORE], (max(1, height // 4), max(1, width // 4)),
                        p=[0.3, 0.4, 0.1, 0.1, 0.1]).astype(np.uint8)
    label = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    specks = rng.random(label.shape)
    label[specks < 0.03] = 0
    label[specks > 0.98] = 3
    return label


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """(folder with photos/ and labels/, id -> labels of the upright photo)."""
    folder = tmp_path_factory.mktemp("export")
    photos, labels_dir = folder / "photos", folder / "labels"
    photos.mkdir()
    labels_dir.mkdir()
    (photos / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    labels = {}
    for name, height, width, options in (
            ("beach day.jpg", 40, 60, {}), ("b.c.png", 33, 21, {}), ("dot.bmp", 1, 1, {}),
            ("turned.jpg", 30, 50, {"exif": turned}), ("empty.jpeg", 12, 14, {}),
            ("Café.webp", 64, 48, {})):
        image_id = Path(name).stem
        stored = (width, height) if not options else (height, width)
        Image.fromarray(rng.integers(0, 255, (*stored[::-1], 3)).astype(np.uint8)).save(
            photos / name, **options)
        label = np.zeros((height, width), np.uint8) if image_id == "empty" else \
            blobs(rng, height, width)
        labels[image_id] = label
        save_label(labels_dir / f"{image_id}.png", label)
    (photos / "two.txt").write_text("beach day 0\nturned\n")
    return folder, labels


def export(data: tuple[Path, dict], output: Path, form: str, *more: object) -> Path:
    run_stage("export_labels", "--data-root", data[0] / "photos", "--labels-dir",
              data[0] / "labels", "--format", form, "--output-dir", output, *more)
    return output


def import_error(data: tuple[Path, dict], source: Path, output: Path) -> str:
    message = stage_error("export_labels", "--data-root", data[0] / "photos", "--import-cvat",
                          source, "--output-dir", output)
    assert not output.exists()
    return message


def decided(label: np.ndarray) -> np.ndarray:
    """What a format without undecided pixels can say."""
    return np.where(label == IGNORE, 0, label)


# Out

def test_photos_of_one_name_in_two_folders_stay_two(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "photos" / name / "1.jpg")
        save_label(tmp_path / "labels" / f"{name}__1.png", np.ones((20, 30), np.uint8))
    made = export((tmp_path, {}), tmp_path / "out", "coco")
    images = json.loads((made / "annotations" / "instances_default.json").read_text())["images"]
    assert {image["file_name"] for image in images} == {"cat/1.jpg", "dog/1.jpg"}


def test_coco_is_exact_to_pycocotools(data, tmp_path, capsys):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO

    coco = COCO(export(data, tmp_path / "out", "coco") / "annotations/instances_default.json")
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == dict(
        enumerate(CLASSES, start=1))
    images = coco.loadImgs(coco.getImgIds())
    assert {Path(image["file_name"]).stem for image in images} == data[1].keys()
    for image in images:
        assert (data[0] / "photos" / image["file_name"]).is_file()
        label = data[1][Path(image["file_name"]).stem]
        assert (image["height"], image["width"]) == label.shape
        painted = np.zeros_like(label)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(annotation).astype(bool)
            assert not painted[mask].any()
            painted[mask] = annotation["category_id"]
            assert annotation["area"] == mask.sum()
            ys, xs = mask.nonzero()
            assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] == 2
        np.testing.assert_array_equal(painted, decided(label))


def read_yolo(folder: Path, image_id: str, size: tuple[int, int], to_whole) -> np.ndarray:
    """Labels as the format's description has them: a line a polygon, class and shares of size."""
    label = np.zeros(size, np.uint8)
    for line in (folder / "labels" / "train" / f"{image_id}.txt").read_text().splitlines():
        number, *shares = line.split()
        points = np.array(shares, np.float32).reshape(-1, 2)
        assert len(points) >= 3
        assert ((points >= 0) & (points <= 1)).all()
        points = points * np.array(size[::-1], np.float32)
        mask = cv2.fillPoly(np.zeros(size, np.uint8), [to_whole(points).astype(np.int32)], 1)
        label[mask > 0] = int(number) + 1
    return label


@pytest.mark.parametrize("to_whole", [np.trunc, np.round])
def test_yolo_polygons_fill_to_the_labels(data, tmp_path, to_whole):
    out = export(data, tmp_path / "out", "yolo")
    description = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert description["names"] == dict(enumerate(CLASSES))
    for image_id, label in data[1].items():
        with Image.open(out / description["train"] / f"{image_id}.jpg") as image:
            assert (image.height, image.width) == label.shape
            assert image.getexif().get(0x0112, 1) == 1
        np.testing.assert_array_equal(read_yolo(out, image_id, label.shape, to_whole),
                                      decided(label))


def test_yolo_is_exact_to_supervision(data, tmp_path):
    supervision = pytest.importorskip("supervision")
    out = export(data, tmp_path / "out", "yolo")
    read = supervision.DetectionDataset.from_yolo(
        str(out / "images/train"), str(out / "labels/train"), str(out / "data.yaml"),
        force_masks=True)
    for path, _, detections in read:
        label = data[1][Path(path).stem]
        painted = np.zeros_like(label)
        for mask, number in zip(detections.mask if len(detections) else [],
                                detections.class_id, strict=True):
            painted[mask] = number + 1
        np.testing.assert_array_equal(painted, decided(label))


def test_voc_is_exact_to_torchvision_and_a_data_root(data, tmp_path):
    # torchvision looks below VOCdevkit/VOC2012
    out = export(data, tmp_path / "VOCdevkit" / "VOC2012", "voc")
    read = VOCSegmentation(str(tmp_path), year="2012", image_set="train")
    assert len(read) == len(data[1])
    for (image, mask), (image_id, label) in zip(read, sorted(data[1].items()), strict=True):
        assert mask.mode == "P"
        assert bytes(mask.getpalette()) == voc_palette()
        np.testing.assert_array_equal(np.array(mask), label, image_id)
        assert image.size == label.shape[::-1]
    root = DataRoot(out)
    assert root.classes == CLASSES
    for entry in root.entries("train_aug"):
        shown = set(np.unique(data[1][entry.id]).tolist()) - {0, IGNORE}
        assert {number + 1 for number in entry.labels} == shown


def read_cvat(folder: Path, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """(names, objects), both (H, W): the colours read with the labelmap, the object colours."""
    colors = {}
    for line in (folder / "labelmap.txt").read_text(encoding="utf-8").splitlines()[1:]:
        name, color, parts, actions = line.split(":")
        colors[tuple(map(int, color.split(",")))] = name
    with Image.open(folder / "SegmentationClass" / f"{image_id}.png") as image:
        assert image.mode == "RGB"
        pixels = np.array(image)
    names = np.array([[colors[tuple(pixel)] for pixel in row] for row in pixels.tolist()])
    with Image.open(folder / "SegmentationObject" / f"{image_id}.png") as image:
        objects = np.array(image).astype(int) @ (1 << 16, 1 << 8, 1)
    return names, objects


def test_cvat_colours_are_exact_and_objects_are_regions(data, tmp_path):
    out = export(data, tmp_path / "out", "cvat")
    ids = (out / "ImageSets/Segmentation/default.txt").read_text(encoding="utf-8").splitlines()
    assert ids == sorted(data[1])
    names = np.array(["background", *CLASSES, *["?"] * 251, "ignored"])
    palette = colorize(np.arange(256)).astype(int) @ (1 << 16, 1 << 8, 1)
    for image_id, label in data[1].items():
        found, objects = read_cvat(out, image_id)
        np.testing.assert_array_equal(found, names[label])
        assert set(objects.ravel().tolist()) <= set(palette[:255].tolist())
        np.testing.assert_array_equal(objects == 0, label == 0)
        for region in regions(label):
            inside = np.unique(objects[region.window][region.mask])
            assert len(inside) == 1
            assert (objects == inside[0]).sum() == region.area
    with zipfile.ZipFile(out / "upload.zip") as archive:
        assert archive.testzip() is None
        inside = set(archive.namelist())
        assert inside == {path.relative_to(out).as_posix() for path in out.rglob("*")
                          if path.is_file()} - {"upload.zip", "labels.json",
                                                ".made_by_export.json"}
    task = json.loads((out / "labels.json").read_text(encoding="utf-8"))
    assert [label["name"] for label in task] == [*CLASSES, "ignored"]
    assert task[0]["color"] == "#800000"


def test_more_regions_than_object_colours(tmp_path):
    root, labels = tmp_path / "photos", tmp_path / "labels"
    root.mkdir()
    labels.mkdir()
    (root / "classes.txt").write_text("cat\ndog\n")
    Image.new("RGB", (64, 64)).save(root / "dots.png")
    label = np.zeros((64, 64), np.uint8)
    label[::2, ::4], label[::2, 2::4], label[63, 63] = 1, 2, IGNORE
    save_label(labels / "dots.png", label)
    out = export((tmp_path, {}), tmp_path / "out", "cvat")
    _, objects = read_cvat(out, "dots")
    for number in (0, 1, 2, IGNORE):
        assert len(np.unique(objects[label == number])) == 1
    assert len(np.unique(objects)) == 4


def test_outlines_with_holes_fill_to_exactly_their_region():
    rng = np.random.default_rng(1)
    count = 0
    for _ in range(150):
        label = blobs(rng, *rng.integers(1, 30, 2).tolist())
        for region in regions(label):
            mask = np.zeros_like(label)
            mask[region.window][region.mask] = 1
            filled = cv2.fillPoly(np.zeros_like(label), [outline(region).astype(np.int32)], 1)
            np.testing.assert_array_equal(filled, mask)
            count += 1
    assert count > 1000


def test_small_regions_become_background(data, tmp_path):
    out = export(data, tmp_path / "out", "voc", "--min-area", 9)
    for image_id, label in data[1].items():
        kept = read_label(out / "SegmentationClass" / f"{image_id}.png")
        assert all(region.area >= 9 for region in regions(kept))
        assert {region.area for region in regions(label) if region.area >= 9} == {
            region.area for region in regions(kept)}
        np.testing.assert_array_equal(kept == IGNORE, label == IGNORE)
    label = data[1]["beach day"]
    assert without_small_regions(label, 1) is label


def test_a_list_chooses_the_images(data, tmp_path):
    out = export(data, tmp_path / "out", "voc", "--list", "two")
    assert {path.stem for path in (out / "JPEGImages").iterdir()} == {"beach day", "turned"}


def train_deeplab(output: Path, *settings: str) -> None:
    """A DeepLab of hardly any layers, for two steps, at a batch of two."""
    run_script("DeepLab-V2-PyTorch/main.py", "train", "-c", "DeepLab-V2-PyTorch/configs/voc12.yaml",
               f"EXP.OUTPUT_DIR={output}", "EXP.ID=test", "MODEL.INIT_MODEL=none",
               "MODEL.WIDTH=0.0625", "MODEL.BLOCKS=[1,1,1,1]", "SOLVER.ITER_MAX=2",
               "SOLVER.BATCH_SIZE=2", "IMAGE.CROP=33", "RUN.NUM_WORKERS=0", "RUN.DEVICE=cpu",
               *settings)
    assert list(output.rglob("checkpoint_final.pth"))


@pytest.mark.slow
def test_deeplab_trains_on_an_export_in_voc_layout(data, tmp_path):
    out = export(data, tmp_path / "out", "voc")
    train_deeplab(tmp_path / "deeplab", f"DATASET.ROOT={out}",
                  f"DATASET.LABEL_DIR={out / 'SegmentationClass'}")


# Where it is written

def test_output_of_others_is_kept_and_ours_replaced(data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    common = ("--data-root", data[0] / "photos", "--labels-dir", data[0] / "labels")
    message = stage_error("export_labels", *common, "--format", "voc", "--output-dir", out)
    assert "--overwrite" in message
    assert (out / "thesis.tex").exists()
    export(data, out, "voc", "--overwrite")
    assert not (out / "thesis.tex").exists()
    export(data, out, "yolo")  # an export gives way to an export
    assert not (out / "JPEGImages").exists()
    for inside in (data[0], data[0] / "labels"):
        assert "would be replaced" in stage_error("export_labels", *common, "--format", "voc",
                                                  "--output-dir", inside, "--overwrite")


def test_a_failed_export_leaves_everything_as_it_was(data, tmp_path):
    out = export(data, tmp_path / "out", "voc")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    labels = tmp_path / "labels"
    labels.mkdir()
    save_label(labels / "beach day.png", data[1]["beach day"])
    save_label(labels / "turned.png", np.full((50, 30), 9, np.uint8))
    message = stage_error("export_labels", "--data-root", data[0] / "photos", "--labels-dir",
                          labels, "--format", "yolo", "--output-dir", out)
    assert "turned.png" in message
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "out"]
    with pytest.raises(UserError, match="file of that name"), whole_folder(
            labels / "turned.png", {}):
        pass


def test_bad_input_is_one_line(data, tmp_path, monkeypatch):
    def failure(form: str = "coco", **changed: object) -> str:
        paths = {"data_root": data[0] / "photos", "labels_dir": data[0] / "labels"} | changed
        return stage_error("export_labels", "--data-root", paths["data_root"], "--labels-dir",
                           paths["labels_dir"], "--format", form, "--output-dir", tmp_path / "out")

    assert "no such folder" in failure(labels_dir=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no PNG" in failure(labels_dir=tmp_path / "empty")
    save_label(tmp_path / "empty" / "turned.png", np.zeros((7, 7), np.uint8))
    assert "7x7" in failure(labels_dir=tmp_path / "empty")
    for name in ("a:b", "#a", "background", "ignored"):
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        (root / "classes.txt").write_text(f"x\ny\n{name}\n")
        for path in (data[0] / "photos").iterdir():
            if path.suffix != ".txt":
                (root / path.name).write_bytes(path.read_bytes())
        assert name in failure("cvat", data_root=root)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    assert "pip install -r requirements-extra.txt" in failure("coco")
    assert not (tmp_path / "out").exists()


def test_help_needs_no_torch():
    done = run_script("-c", "import sys; import export_labels, make_saliency; "
                      "export_labels.parse(['--data-root', 'a', '--labels-dir', 'b', '--format', "
                      "'voc', '--output-dir', 'c']); make_saliency.parse(['--data-root', 'a']); "
                      "print('torch' in sys.modules)")
    assert done.stdout.strip() == "False"


# Back from CVAT

def cvat_folder(folder: Path, labels: dict[str, np.ndarray], listed: list[str],
                labelmap: str | None = None) -> Path:
    """What CVAT exports: names in its order, colours of the task, no picture without objects."""
    colors = {"background": (0, 0, 0), "Straße": (250, 50, 83), "cat": (61, 61, 245),
              "ignored": (221, 255, 51), "traffic light": (140, 120, 240)}
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in colors.items()]
    (folder / "SegmentationClass").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "labelmap.txt").write_text(
        labelmap or "\n".join(["# label:color_rgb:parts:actions", *lines, ""]), encoding="utf-8")
    (folder / "ImageSets/Segmentation/default.txt").write_text("\n".join(listed), encoding="utf-8")
    table = np.zeros((256, 3), np.uint8)
    for number, name in [*enumerate(CLASSES, start=1), (IGNORE, "ignored")]:
        table[number] = colors[name]
    for image_id, label in labels.items():
        path = folder / "SegmentationClass" / f"{image_id}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(table[label]).save(path)
    return folder


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("pack", [zipped, lambda folder: folder], ids=["zip", "folder"])
def test_corrected_labels_come_back(data, tmp_path, pack):
    drawn = {name: label for name, label in data[1].items() if name not in ("empty", "b.c")}
    listed = [f"uploaded/{name}" if name == "turned" else name
              for name in [*drawn, "empty"]]
    source = cvat_folder(tmp_path / "task", drawn | {"uploaded/turned": drawn["turned"]}, listed)
    (source / "SegmentationClass" / "turned.png").unlink()
    out = tmp_path / "corrected"
    common = ("--data-root", data[0] / "photos", "--import-cvat", pack(source), "--output-dir", out)
    run_stage("export_labels", *common)
    assert {path.stem for path in out.glob("*.png")} == data[1].keys() - {"b.c"}
    for path in out.glob("*.png"):
        np.testing.assert_array_equal(read_label(path), data[1][path.stem])
    run_stage("export_labels", *common, "--labels-dir", data[0] / "labels")
    np.testing.assert_array_equal(read_label(out / "b.c.png"), data[1]["b.c"])
    entries = DataRoot(data[0] / "photos").entries(str(out / "list.txt"))
    assert {entry.id for entry in entries} == data[1].keys()
    for entry in entries:
        assert {c + 1 for c in entry.labels} == set(
            np.unique(data[1][entry.id]).tolist()) - {0, IGNORE}


@pytest.mark.slow
def test_deeplab_trains_on_corrected_labels(data, tmp_path):
    source = cvat_folder(tmp_path / "task", data[1], list(data[1]))
    out = tmp_path / "corrected"
    run_stage("export_labels", "--data-root", data[0] / "photos", "--import-cvat", source,
              "--output-dir", out)
    train_deeplab(tmp_path / "deeplab", f"DATASET.ROOT={data[0] / 'photos'}",
                  f"DATASET.LABEL_DIR={out}", f"SPLIT.TRAIN={out / 'list.txt'}")


def test_our_own_export_comes_back_as_it_was(data, tmp_path):
    out = export(data, tmp_path / "out", "cvat")
    back = tmp_path / "back"
    run_stage("export_labels", "--data-root", data[0] / "photos", "--import-cvat",
              out / "upload.zip", "--output-dir", back)
    for image_id, label in data[1].items():
        np.testing.assert_array_equal(read_label(back / f"{image_id}.png"), label)


def test_grey_masks_are_numbers_in_the_labelmap(data, tmp_path):
    label = data[1]["beach day"]
    places = np.zeros(256, np.uint8)
    places[[1, 2, 3, IGNORE]] = 2, 4, 1, 3  # as cvat_folder has them
    source = cvat_folder(tmp_path / "task", {}, ["beach day"])
    Image.fromarray(places[label]).save(source / "SegmentationClass" / "beach day.png")
    run_stage("export_labels", "--data-root", data[0] / "photos", "--import-cvat", source,
              "--output-dir", tmp_path / "back")
    np.testing.assert_array_equal(read_label(tmp_path / "back" / "beach day.png"), label)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # without a byte order mark and with
def test_black_is_the_background_whatever_its_name(data, tmp_path, encoding):
    label = data[1]["beach day"]
    source = cvat_folder(tmp_path / "task", {"beach day": label}, ["beach day"])
    names, listed = source / "labelmap.txt", source / "ImageSets" / "Segmentation" / "default.txt"
    _, _, lines = names.read_text("utf-8").partition("\n")  # so that the mark is before a name
    names.write_text(lines.replace("background:", "Hintergrund:"), encoding)
    listed.write_text(listed.read_text("utf-8"), encoding)
    run_stage("export_labels", "--data-root", data[0] / "photos", "--import-cvat", source,
              "--output-dir", tmp_path / "back")
    np.testing.assert_array_equal(read_label(tmp_path / "back" / "beach day.png"), label)


LABELMAP = "background:0,0,0::\ncat:61,61,245::\n"
HOSTILE = {  # what is wrong -> (labels, list, labelmap, words of the message)
    "unknown image": ({}, ["nobody"], None, "'nobody'"),
    "climbing": ({}, ["../../../../etc/beach day"], None, "beach day"),
    "the same image twice": ({}, ["beach day", "a/beach day"], None, "same image"),
    "no images": ({}, [], None, "names no image"),
    "undeclared colour": ({"dot": np.full((1, 1), 2, np.uint8)}, ["dot"], LABELMAP, "colour"),
    "unknown class": ({"dot": np.full((1, 1), 1, np.uint8)}, ["dot"],
                      "background:0,0,0::\ndragon:61,61,245::\n", "dragon"),
    "other size": ({"dot": np.ones((5, 4), np.uint8)}, ["dot"], None, "4x5"),
    "empty labelmap": ({}, ["dot"], "# nothing\n", "no class"),
    "malformed labelmap": ({}, ["dot"], "cat;1;2;3\n", "line 1"),
    "colour out of range": ({}, ["dot"], "cat:1,2,300::\n", "line 1"),
    "colour twice": ({}, ["dot"], "cat:1,2,3::\ndog:1,2,3::\n", "line 2"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_wrong_cvat_exports_end_in_one_line(data, tmp_path, kind):
    labels, listed, labelmap, words = HOSTILE[kind]
    labels = {name: np.ones((1, 1), np.uint8) for name in ("dot",) if not labels} | labels
    message = import_error(data, cvat_folder(tmp_path / "task", labels, listed, labelmap),
                           tmp_path / "out")
    assert str(tmp_path / "task") in message
    assert words in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["task"]


def test_hostile_archives_and_files_are_refused(data, tmp_path):
    out = tmp_path / "out"
    assert "not there" in import_error(data, tmp_path / "nowhere.zip", out)
    text = tmp_path / "text.zip"
    text.write_text("no archive")
    assert "neither a folder nor a ZIP" in import_error(data, text, out)
    climbing = tmp_path / "climbing.zip"
    with zipfile.ZipFile(climbing, "w") as archive:
        archive.writestr("labelmap.txt", LABELMAP)
        archive.writestr("../climbed.txt", "out")
    assert "unsafe" in import_error(data, climbing, out)
    assert not (tmp_path / "climbed.txt").exists()
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("annotations.xml", "<annotations/>")
    assert "Segmentation mask 1.1" in import_error(data, other, out)
    source = cvat_folder(tmp_path / "task", {}, ["dot"])
    (source / "SegmentationClass" / "dot.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert "dot.png" in import_error(data, source, out)
    (source / "SegmentationClass" / "dot.png").unlink()
    (source / "ImageSets/Segmentation/default.txt").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in import_error(data, source, out)
