"""The report's Python side: what is chosen, read and written, and that nothing stops it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_stage, stage_error
from PIL import Image
from report_recipe import decode, make_run, page_data, write_training

from datasets.layout import DataRoot
from labelling.labels import read_label, save_label
from labelling.maps import load_maps, save_maps
from reporting.overview import write_report
from reporting.page import write_page
from reporting.pictures import EXTREMES, Gallery, choose, doubt, numbers_uri, page_size
from reporting.predictions import write_index
from reporting.run import RESULTS, read_scores, score_rows, score_table
from reporting.stages import read_curves, read_stages, settings
from utils.logging import duration


@pytest.fixture(scope="module")
def finished(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "finished"
    make_run(DataRoot(demo), folder)
    run_stage("report", "--data-root", demo, "--run-dir", folder, "--list", "train_aug")
    return folder


def test_what_a_report_leaves(finished, demo):
    for name in ("report.html", "table.md", "pseudo_labels.png", "deeplab.png"):
        assert (finished / name).stat().st_size > 100
    assert (finished / "table.md").read_text().count("\n") == 8
    data = page_data(finished / "report.html")
    entries = DataRoot(demo).entries("train_aug")
    assert [image["id"] for image in data["images"]][:8] == [entry.id for entry in entries]
    assert [row["key"] for row in data["rows"]] == [
        result.key for result in RESULTS if result.key != "fixed"]  # it is of the large demo
    scores = json.loads((finished / "scores" / "drs.json").read_text())
    for image in data["images"][:8]:
        assert set(image["layers"]) == {"cam", "drs", "refined", "pseudo_labels", "mask"}
        assert image["layers"]["drs"]["miou"] == scores["per_image"][image["id"]]
    assert set(data["images"][-1]["layers"]) == {"deeplab", "deeplab_crf", "mask"}


def test_the_numbers_on_the_page_are_those_in_the_files(finished, demo):
    for image in page_data(finished / "report.html")["images"][:8]:
        maps, classes = load_maps(finished / "refined_maps" / f"{image['id']}.png", 3)
        layer = image["layers"]["refined"]
        assert layer["classes"] == classes
        if classes:
            assert np.array_equal(decode(layer["numbers"]).reshape(maps.shape), maps)
        mask = read_label(demo / "SegmentationClassAug" / f"{image['id']}.png")
        assert np.array_equal(decode(image["layers"]["mask"]["numbers"]), mask)
        saliency = read_label(demo / "saliency_map" / f"{image['id']}.png") > 50
        assert np.array_equal(decode(image["salient"]), saliency)


def test_the_numbers_of_smaller_maps_are_rounded(demo, finished, tmp_path):
    """Over an image's width, from its first column to its last, the score grows evenly to 1."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    name = DataRoot(demo).entries("train_aug")[0].id
    save_maps(run / "localization_maps" / f"{name}.png", np.array([[[0, 255]] * 2], np.uint8), [0])
    run_stage("report", "--data-root", demo, "--run-dir", run, "--list", "train_aug")
    record, = (image for image in page_data(run / "report.html")["images"] if image["id"] == name)
    height, width = record["size"]
    numbers = decode(record["layers"]["drs"]["numbers"])
    assert numbers.shape == (height, width)
    assert (numbers == np.rint(np.arange(width) / (width - 1) * 255)).all()


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mask_drawn_on_the_photo_as_it_is_stored(demo, finished, tmp_path, orientation):
    """It belongs on the page and in the pictures as much as one of the upright photo."""
    root = Path(shutil.copytree(demo, tmp_path / "data"))
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    name = DataRoot(root).entries("train_aug")[0].id
    photo = next((root / "JPEGImages").glob(f"{name}.*"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path, more in ((photo, {"exif": exif}), (root / "SegmentationClassAug" / f"{name}.png", {}),
                       (root / "saliency_map" / f"{name}.png", {})):
        with Image.open(path) as image:
            image.crop((0, 0, 40, 24)).save(path, **more)
    shown = np.zeros((40, 24) if orientation == 6 else (24, 40), np.uint8)
    shown[:9] = 1
    for folder in ("pseudo_labels", "deeplab_labels"):
        save_label(run / folder / f"{name}.png", shown)
    for folder in ("cam_maps", "localization_maps", "refined_maps"):
        save_maps(run / folder / f"{name}.png", np.zeros((1, *shown.shape), np.uint8), [0])
    for path in run.glob("*.png"):
        path.unlink()
    run_stage("report", "--data-root", root, "--run-dir", run, "--list", "train_aug")
    left_out = [line for line in (run / "logs" / "report.log").read_text().splitlines()
                if "left out" in line]
    assert not left_out and (run / "pseudo_labels.png").is_file()
    record = next(image for image in page_data(run / "report.html")["images"]
                  if image["id"] == name)
    assert record["size"] == list(shown.shape)
    assert {"mask", "pseudo_labels", "refined"} <= set(record["layers"])


def test_a_large_image_shrinks_and_keeps_its_shape():
    assert page_size((48, 36)) == (48, 36)
    assert page_size((1000, 4000)) == (100, 400)
    assert page_size((1, 4000)) == (1, 400)


def test_the_choice_is_even_and_has_both_ends():
    ids = [f"{i:05d}" for i in range(10_000)]
    scores = {image_id: (i * 7919 % 10_000) / 10_000 for i, image_id in enumerate(ids)}
    chosen = choose(ids, 60, scores)
    ranked = sorted(ids, key=scores.get)
    assert set(ranked[:EXTREMES] + ranked[-EXTREMES:]) <= set(chosen)
    assert 60 < len(chosen) <= 60 + 2 * EXTREMES and chosen == sorted(chosen)
    assert choose(ids, 60, {})[::59] == [ids[0], ids[-1]]
    assert choose(["a"], 60, {"b": 1.0}) == ["a"]


def test_doubt():
    assert doubt(np.zeros((0, 4, 4), np.uint8)) == doubt(np.zeros((2, 4, 4), np.uint8)) == 1
    assert doubt(np.full((1, 4, 4), 255, np.uint8)) == 0
    half = np.array([[[0, 255, 51, 51]]], np.uint8)  # p = 0, 1, 0.2, 0.2
    assert doubt(half) == pytest.approx(2 * 0.2 * 0.8 / 1.4)


def test_an_unfinished_run(demo, tmp_path):
    """After the first half of a training, and with half of the maps; no scores."""
    (tmp_path / "run").mkdir()
    write_training(tmp_path / "run", "classifier", 15, 7)
    root = DataRoot(demo)
    (tmp_path / "run" / "localization_maps").mkdir()
    for entry in root.entries("train_aug")[:4]:
        save_maps(tmp_path / "run" / "localization_maps" / f"{entry.id}.png",
                  np.full((len(entry.labels), 8, 8), 99, np.uint8), entry.labels)
    run_stage("report", "--data-root", demo, "--run-dir", tmp_path / "run", "--list", "train_aug")
    html = (tmp_path / "run" / "report.html").read_text()
    assert "7 of 15 epochs" in html and "No scores yet" in html and "a test machine" in html
    images = page_data(tmp_path / "run" / "report.html")["images"]
    assert [("drs" in image["layers"]) for image in images] == [True] * 4 + [False] * 4
    assert not (tmp_path / "run" / "table.md").exists()
    # The picture has a row for each image that is done, and looks for no other.
    assert (tmp_path / "run" / "pseudo_labels.png").is_file()
    assert "left out" not in (tmp_path / "run" / "logs" / "report.log").read_text()


def test_without_masks_and_saliency(own_demo, tmp_path):
    for folder in ("SegmentationClassAug", "saliency_map"):
        for file in (own_demo / folder).iterdir():
            file.unlink()
        (own_demo / folder).rmdir()
    folder = tmp_path / "run"
    (folder / "localization_maps").mkdir(parents=True)
    listed = own_demo / "mine.txt"
    names = sorted(path.stem for path in (own_demo / "JPEGImages").iterdir())[:5]
    listed.write_text("\n".join(names))
    for name in names:
        save_maps(folder / "localization_maps" / f"{name}.png", np.full((1, 8, 8), 99, np.uint8),
                  [0])
    run_stage("report", "--data-root", own_demo, "--run-dir", folder, "--list", "mine")
    html = (folder / "report.html").read_text()
    assert "need masks, and this data set has none" in html
    data = page_data(folder / "report.html")
    assert all(list(image["layers"]) == ["drs"] and "salient" not in image
               for image in data["images"])
    assert all(image["doubt"] == pytest.approx(1 - 99 / 255, abs=1e-3) for image in data["images"])


def test_an_empty_run_folder(demo, tmp_path):
    run_stage("report", "--data-root", demo, "--run-dir", tmp_path, "--list", "train_aug")
    html = (tmp_path / "report.html").read_text()
    assert "No scores yet" in html and "No training has written" in html


def test_no_run_folder_is_one_line(demo, tmp_path):
    assert "no such folder" in stage_error("report", "--data-root", demo, "--run-dir",
                                           tmp_path / "nowhere")


BROKEN = ("", "{", "[]", '{"miou": "x"}', '{"miou": NaN, "precision": 1, "recall": 1}', "[1, {}]",
          '{"options": 3, "versions": [], "command": 5, "seconds": "x"}', "[" * 100_000, "\udcff")


@pytest.mark.parametrize("text", BROKEN)
def test_broken_files_are_left_out(demo, tmp_path, text):
    for name in ("scores/drs", "scores/cam", "logs/classifier", "classifier/metrics",
                 "deeplab/models/a/b/c/metrics", "deeplab/logs/a/train", "mine/metrics"):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    for folder in ("localization_maps", "pseudo_labels"):
        (tmp_path / folder).mkdir()
        for entry in DataRoot(demo).entries("train_aug"):
            (tmp_path / folder / f"{entry.id}.png").write_bytes(b"no image")
    run_stage("report", "--data-root", demo, "--run-dir", tmp_path, "--list", "train_aug")
    data = page_data(tmp_path / "report.html")
    assert data["rows"] == [] and all(list(image["layers"]) == ["mask"]
                                      for image in data["images"])


def test_a_missing_image_is_left_out(own_demo, tmp_path):
    first = DataRoot(own_demo).entries("train_aug")[0]
    (own_demo / "JPEGImages" / f"{first.id}.jpg").write_bytes(b"no image")
    run_stage("report", "--data-root", own_demo, "--run-dir", tmp_path, "--list", "train_aug")
    assert len(page_data(tmp_path / "report.html")["images"]) == 7


def test_names_cannot_leave_the_data(tmp_path):
    name = "</script><script>alert(1)</script>\u2028&'\"<!--"
    context = {"kind": "predictions", "title": name, "written": 0, "total": 1, "images": 1,
               "found": [], "stages": [], "rows": [], "facts": {"versions": {}}}
    write_page(tmp_path / "a.html", context, {"images": [], "labels": [name]})
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert html.count("<script") == 2 and page_data(tmp_path / "a.html")["labels"] == [name]
    assert "alert(1)</script>" not in html and "http" not in re.sub(
        r"http-equiv|http://www.w3.org/2000/svg", "", html)


def test_a_file_name_that_is_no_text(tmp_path):
    write_page(tmp_path / "a.html", {
        "kind": "predictions", "title": "a", "written": 0, "total": 1, "images": 1, "found": [],
        "stages": [], "rows": [], "facts": {"versions": {}}}, {"images": [], "labels": ["\udcff"]})
    assert page_data(tmp_path / "a.html")["labels"] == ["\udcff"]


def test_settings_are_what_differs():
    record = {"command": ["x.py", "--lr", "0.1", "--batch-norm", "--milestones=2", "--device",
                          "cpu", "IMAGE.CROP=97"],
              "options": {"lr": 0.1, "batch_norm": True, "milestones": [2, 3], "device": "cpu",
                          "epochs": 15, "IMAGE.CROP": 97}}
    assert settings(record) == ["lr 0.1", "batch_norm yes", "milestones 2 3", "IMAGE.CROP 97"]
    assert settings(record | {"defaults": {"lr": 0.1, "batch_norm": False, "milestones": [2, 3],
                                           "device": "auto", "epochs": 15, "IMAGE.CROP": 321}}
                    ) == ["batch_norm yes", "IMAGE.CROP 97"]


def test_stages_and_curves(finished, tmp_path):
    stages = {stage["title"]: stage for stage in read_stages(finished)}
    assert stages["DRS classifier"]["facts"] == ["2 min", "4 epochs"]
    assert not stages["DRS classifier"]["open"]
    assert stages["DRS maps"]["facts"] == ["8 images"]
    assert [curve["key"] for curve in read_curves(finished)] == ["cam", "classifier", "refine"]
    write_training(tmp_path, "refine", 30, 2)
    assert read_stages(tmp_path)[0]["open"]


def test_stretches_of_deeplab_are_iterations(tmp_path):
    for name, value in (("models/e/n/s/metrics", [{"epoch": 1, "loss": 2}, {"epoch": 2,
                                                                           "loss": 1}]),
                        ("logs/e/train", {"options": {"SOLVER.ITER_SAVE": 100,
                                                      "SOLVER.ITER_MAX": 150}})):
        path = tmp_path / "deeplab" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(value))
    assert read_curves(tmp_path)[0]["points"][1] == {"x": 200, "loss": 1}
    assert read_stages(tmp_path)[0]["facts"] == ["150 iterations"]


def test_durations():
    assert [duration(s) for s in (8.4, 59.4, 61, 3599, 12000)] == [
        "8 s", "59 s", "1 min", "1 h 00 min", "3 h 20 min"]


def test_scores_of_other_classes_are_shown_without_bars(finished):
    scores = read_scores(finished)
    assert all(row["class_iou"] for row in score_rows(scores, ["a", "b", "c"]))
    assert not any(row["class_iou"] for row in score_rows(scores, ["a", "b"]))
    assert score_table({}) is None and "| DRS | 8 of train_aug |" in score_table(scores)


def test_a_class_in_no_mask_has_no_iou(finished):
    """Not one of 0, which would be a bad one."""
    scores = {"drs": read_scores(finished)["drs"] | {
        "class_iou": [0.9, 0.5, 0.0, 0.0], "class_pixels": [9, 9, 9, 0]}}
    assert score_rows(scores, ["a", "b", "c"])[0]["class_iou"] == [0.9, 0.5, 0.0, None]


def test_the_page_is_at_the_alpha_of_the_scores(finished, demo, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for path in (run / "scores").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha": 0.35}))
    data = page_data(write_report(run, tmp_path, DataRoot(demo), ["val"], 1))
    assert data["alpha"] == 0.35


def test_maps_that_fit_no_image_size(demo, tmp_path):
    """Labels of another size than the image are left out, maps of any size are not."""
    root = DataRoot(demo)
    entry = root.entries("train_aug")[0]
    for folder in ("drs", "labels"):
        (tmp_path / folder).mkdir()
    save_maps(tmp_path / "drs" / f"{entry.id}.png", np.zeros((0, 3, 5), np.uint8), [])
    save_label(tmp_path / "labels" / f"{entry.id}.png", np.zeros((3, 5), np.uint8))
    results = {result.key: result for result in RESULTS}
    gallery = Gallery(root, [(results["drs"], tmp_path / "drs"),
                             (results["pseudo_labels"], tmp_path / "labels")],
                      None, None, {"drs": 0.2})
    record = gallery(entry.id)
    assert record["layers"] == {"drs": {"numbers": None, "classes": [], "labels": [],
                                        "doubt": 1.0, "alpha": 0.2}}


def test_index_of_predictions(demo, tmp_path):
    root = DataRoot(demo)
    first, second = (root.image(entry.id) for entry in root.entries("val")[:2])
    pictures = {"below__first": first, "second": second}  # first lies in a subfolder
    label = np.zeros((48, 48), np.uint8)
    label[:12], label[12:24] = 3, 255
    save_label(tmp_path / "below__first.png", label)
    path = write_index(tmp_path, pictures, root.classes)
    data = page_data(path)
    assert path == tmp_path / "index.html" and len(data["images"]) == 1
    assert data["images"][0]["id"] == first.name and data["images"][0]["labels"] == [3]
    html = path.read_text()
    assert re.search(rf"{root.classes[2]}</button></th>\s*<td data-title=\"images\">1</td>", html)
    assert "<b>25.0 %</b>" in html
    assert write_index(tmp_path, pictures, None).stat().st_size > 1000  # VOC's names


def test_numbers_survive_the_png():
    numbers = torch.arange(256, dtype=torch.uint8).reshape(16, 16).numpy()
    assert np.array_equal(decode(numbers_uri(numbers)), numbers)
