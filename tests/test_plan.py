"""What a run on any data root is planned to be, and the chain that run.sh makes of it."""

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT

from datasets import plan


def settings_of(root: Path, *options: str) -> tuple[dict, str]:
    settings, said = plan.plan(plan.parse([str(root), "--run-dir", str(root.parent / "run"),
                                           *options]))
    return settings, "\n".join(said)


def test_the_papers_numbers_are_the_papers():
    assert plan.schedule(10_582) == {
        "BATCH": 10, "EPOCHS": 15, "MILESTONES": "5 10", "REFINE_EPOCHS": 30,
        "REFINE_MILESTONES": "10 20", "ITERATIONS": 20_000}


@pytest.mark.parametrize(("images", "epochs"), [(3, 300), (100, 154), (1_000, 49), (82_081, 5)])
def test_fewer_images_are_seen_more_often(images, epochs):
    found = plan.schedule(images)
    assert found["EPOCHS"] == epochs and found["BATCH"] == min(images, 10)
    first, second = map(int, str(found["MILESTONES"]).split())
    assert 1 < first < second <= epochs
    assert plan.schedule(images, plan.QUICK)["EPOCHS"] <= max(2, epochs / 5)
    assert isinstance(found["ITERATIONS"], int)  # is said as 1060, not as 1060.0


@pytest.mark.parametrize(("gpu", "side", "config"), [(True, 320, "voc12.yaml"),
                                                     (False, 160, "demo.yaml")])
def test_a_first_look_is_quick_without_a_gpu_too(demo, monkeypatch, gpu, side, config):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    settings, said = settings_of(demo, "--quick")
    assert (settings["SIDE"], settings["CONFIG"]) == (side, config)
    assert ("small DeepLab" in said) == (not gpu)
    assert settings_of(demo)[0]["CONFIG"] == "voc12.yaml"


@pytest.mark.parametrize(("gpu", "init"), [(False, "imagenet"), (True, "none")])
def test_without_gpu_and_weights_the_networks_are_the_demos(demo, monkeypatch, gpu, init):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings, said = settings_of(demo, "--quick", "--init", "none")
    assert plan.SMALL.items() <= settings.items() and "small networks" in said
    assert "random weights" in said
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert not plan.SMALL.keys() & settings_of(demo, "--quick", "--init", init)[0].keys()


def test_nothing_to_tell_apart_is_said_before_the_trainings(demo, own_demo, tmp_path):
    assert "nothing to tell apart" not in settings_of(own_demo)[1]
    photos = tmp_path / "one class"
    shutil.copytree(demo / "JPEGImages", photos)
    (photos / "labels.csv").write_text("image,label\n" + "".join(
        f"{path.name},cat\n" for path in sorted(photos.glob("train_*"))))
    assert "nothing to tell apart" in settings_of(photos)[1]


def test_options_of_the_trainings_count_more_than_what_is_planned(demo, tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "run.sh"), "--data-root", str(demo), "--run-dir", str(tmp_path / "run"),
         "--init", "none", "--stages", "data", "--train-args",
         "--epochs 3 --milestones 2 3 --width 0.0625 --image-size 32 --num-workers 0"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "would train 3 of 3 epochs" in done.stderr, done.stderr[-3000:]


def test_everything_is_there(demo):
    settings, said = settings_of(demo)
    assert (settings["BACKGROUND"], settings["SCORED"], settings["VAL"]) == (
        "saliency", "train", "val")
    assert "left out" not in said and "8 images" in said


def test_photos_without_masks_and_saliency(own_demo):
    for folder in ("SegmentationClassAug", "saliency_map"):
        shutil.rmtree(own_demo / folder)
    settings, said = settings_of(own_demo, "--init", "none")
    assert settings["BACKGROUND"] == "crf" and not {"SCORED", "VAL"} & settings.keys()
    assert settings["INIT_MODEL"] == "none" and settings["ONLINE_LABEL"] == "off"
    for words in ("scores of the labels", "DeepLab's scores", "--background saliency"):
        assert words in said
    assert "download" not in said  # no advice for VOC in someone's photos


def test_the_background_cue_can_be_chosen(own_demo):
    assert settings_of(own_demo, "--background", "threshold")[0]["BACKGROUND"] == "threshold"
    assert "MAKE_SALIENCY" not in settings_of(own_demo, "--background", "saliency")[0]
    shutil.rmtree(own_demo / "saliency_map")
    settings, said = settings_of(own_demo, "--background", "saliency")
    assert settings["BACKGROUND"] == "saliency" and settings["MAKE_SALIENCY"] == "yes"
    assert settings["SALIENCY_DIR"] == own_demo.parent / "run" / "saliency"
    assert "make_saliency.py" in said


def test_a_share_is_held_out_by_the_seed(own_demo):
    settings, _ = settings_of(own_demo, "--val-share", "0.25", "--seed", "3")
    train, val = (Path(settings[name]).read_text().splitlines() for name in ("LIST", "VAL"))
    assert len(train) + len(val) == 8 and 1 <= len(val) <= 2
    assert not {line.split()[0] for line in train} & {line.split()[0] for line in val}
    before = sorted(path for path in own_demo.rglob("*"))
    assert settings_of(own_demo, "--val-share", "0.25", "--seed", "3")[0] == settings
    assert sorted(path for path in own_demo.rglob("*")) == before  # nothing written there


@pytest.mark.skipif((ROOT / "checkpoints" / "u2net.onnx").exists(), reason="u2net.onnx is here")
def test_saliency_maps_are_made_before_all_else(own_demo):
    shutil.rmtree(own_demo / "saliency_map")
    done = subprocess.run(
        ["bash", str(ROOT / "run.sh"), "--data-root", str(own_demo), "--background", "saliency",
         "--init", "none", "--run-dir", str(own_demo.parent / "run"), "--stages", "data"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "== make_saliency.py" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: ") and "u2net" in done.stderr


@pytest.mark.slow
def test_the_chain_on_a_folder_of_photos(demo, tmp_path):
    """One subfolder per class, nothing else: labels, a segmentation network, the page."""
    photos = tmp_path / "photos"
    for number, path in enumerate(sorted((demo / "JPEGImages").glob("train_*"))):
        folder = photos / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    (photos / "film.mov").write_bytes(b"?")
    done = subprocess.run(
        ["bash", str(ROOT / "run.sh"), "--data-root", "photos", "--run-dir", "run", "--quick",
         "--init", "none", "--train-args", "--width 0.0625 --image-size 32", "--stages",
         "data,drs,maps,refine,labels,evaluate,report"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "8 images, 2 classes (cat, dog)" in done.stderr and "film.mov" in done.stderr
    labels = {path.name for path in (tmp_path / "run" / "pseudo_labels").glob("*.png")}
    assert len(labels) == 8 and all(name.startswith(("cat__", "dog__")) for name in labels)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert "seconds" in done.stdout and "report.html" in done.stdout
