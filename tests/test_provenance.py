"""Old and foreign results never pass for new ones: every input of every stage, changed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import MACHINE, TRAINING, run_stage, stage_error
from PIL import Image

from utils import provenance
from utils.files import UserError


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the run folder; provenance is not impressed by the move."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()
            and path.suffix in (".png", ".pth")}


def spoil(path: Path) -> None:
    """The same picture file, one byte longer."""
    path.write_bytes(path.read_bytes() + b"\0")


def correct_a_class(root: Path) -> None:
    path = root / "ImageSets" / "Segmentation" / "train_aug.txt"
    lines = path.read_text().splitlines()
    name, *labels = lines[0].split()
    lines[0] = f"{name} {'1' if labels == ['0'] else '0'}"
    path.write_text("\n".join(lines) + "\n")


def reorder_classes(root: Path) -> None:
    path = root / "classes.txt"
    path.write_text("\n".join(reversed(path.read_text().split())) + "\n")
    shutil.rmtree(root / "Annotations")


def labels(root: Path, run: Path) -> tuple:
    return ("make_pseudo_labels", "--data-root", root, "--run-dir", run, *MACHINE)


@pytest.mark.parametrize(("change", "words"), [
    (lambda root: spoil(next((root / "saliency_map").glob("train_*"))), "saliency of 1 images"),
    (lambda root: spoil(root / "JPEGImages" / "train_000000.jpg"), "image of 1 images"),
    (correct_a_class, "labels of 1 images changed (train_000000 was"),
    (reorder_classes, "other classes or another order")])
def test_labels_made_from_something_that_changed(own_demo, own_run, change, words):
    run_stage(*labels(own_demo, own_run))
    before = content(own_run / "pseudo_labels")
    change(own_demo)
    message = stage_error(*labels(own_demo, own_run))
    assert words in message and ("--overwrite" in message or "checkpoint" in message)
    assert content(own_run / "pseudo_labels") == before


def test_another_saliency_folder(demo, own_run, tmp_path):
    run_stage(*labels(demo, own_run))
    shutil.copytree(demo / "saliency_map", tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        with Image.open(path) as image:
            Image.fromarray(255 - np.asarray(image)).save(path)
    message = stage_error(*labels(demo, own_run), "--saliency-dir", tmp_path / "other")
    assert "saliency" in message and "--overwrite" in message
    run_stage(*labels(demo, own_run), "--saliency-dir", tmp_path / "other", "--overwrite")


def test_another_data_root_in_the_same_run_folder(own_demo, own_run, demo):
    run_stage(*labels(demo, own_run))
    for path in (own_demo / "JPEGImages").iterdir():
        spoil(path)
    assert "image of 8 images changed" in stage_error(*labels(own_demo, own_run))


def test_moved_and_copied_folders_are_not_stale(demo, own_run, tmp_path):
    run_stage(*labels(demo, own_run))
    moved_data = shutil.copytree(demo, tmp_path / "elsewhere" / "data")
    moved_run = shutil.move(own_run, tmp_path / "elsewhere" / "run")
    stamps = {path: path.stat().st_mtime_ns for path in (moved_run / "pseudo_labels").glob("*.png")}
    run_stage(*labels(moved_data, moved_run))
    run_stage("train_refine", "--data-root", moved_data, "--run-dir", moved_run, *MACHINE,
              *TRAINING)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_new_maps_reach_the_refinement(demo, own_run):
    """Not "going on after epoch 2 of 2"."""
    maps = ("make_localization_maps", "--data-root", demo, "--run-dir", own_run, *MACHINE)
    refine = ("train_refine", "--data-root", demo, "--run-dir", own_run, *MACHINE, *TRAINING)
    run_stage(*refine)  # finished, unchanged: nothing to do
    before = content(own_run / "refine")
    run_stage(*maps, "--scales", "1", "--overwrite")
    message = stage_error(*refine)
    assert "localization maps" in message and "--overwrite" in message
    assert content(own_run / "refine") == before
    run_stage(*refine, "--overwrite")
    assert content(own_run / "refine") != before


def test_other_initial_weights(demo, own_run):
    start = ("train_drs", "--data-root", demo, "--run-dir", own_run, *MACHINE, *TRAINING)
    message = stage_error(*start, "--init", own_run / "refine" / "last.pth")
    assert "initial weights" in message and "was none" in message


@pytest.mark.parametrize("folder", ["SegmentationClassAug", "saliency_map", "JPEGImages"])
@pytest.mark.parametrize("stage", ["train_drs", "train_refine"])
def test_what_chooses_the_best_checkpoint(own_demo, own_run, capsys, folder, stage):
    """Masks and saliency maps of validation images shape best.pth as well."""
    train = (stage, "--data-root", own_demo, "--run-dir", own_run, *MACHINE, *TRAINING)
    run_stage(*train)  # finished
    provenance.main(provenance.parse([str(own_run)]))
    assert "OUT OF DATE" not in capsys.readouterr().out
    first = (own_demo / "ImageSets" / "Segmentation" / "train.txt").read_text().split()[0]
    path = next((own_demo / folder).glob(f"{first}.*"))
    size = path.stat().st_size
    spoil(path)
    kind = {"SegmentationClassAug": "mask", "saliency_map": "saliency"}.get(folder, "image")
    before = content(own_run / "classifier")
    assert (f"validation {kind} of 1 images changed ({first} was {size} bytes, "
            f"is {size + 1} bytes") in stage_error(*train)
    assert content(own_run / "classifier") == before
    provenance.main(provenance.parse([str(own_run)]))
    assert "OUT OF DATE" in capsys.readouterr().out
    lines = (own_demo / "ImageSets" / "Segmentation" / "train.txt").read_text().splitlines()
    (own_demo / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(lines[1:]))
    assert f"1 validation images are no longer listed ({first})" in stage_error(*train)


def test_a_record_from_before_validation_was_noted(own_run):
    record = dict(vars(provenance.read(own_run / "localization_maps")))
    del record["validation"]
    assert provenance.Record.of(record, own_run).validation == {}


def test_the_digest_tells_what_files_were_made_from(tmp_path):
    """Also where the files themselves are of one size: so a change travels down the chain."""
    def record(checkpoint: str = "one", labels: tuple[int, ...] = (0,)) -> provenance.Record:
        return provenance.Record("maps", {"scales": [1]}, ["cat", "dog"],
                                 {"checkpoint": checkpoint}, {"a": {"labels": list(labels)}})

    (tmp_path / "a.png").write_bytes(b"maps")
    seen = set()
    for made_from in (record(), record("two"), record(labels=(1,))):
        made_from.write(tmp_path)
        below = provenance.Record("labels", {}, ["cat", "dog"], images={"a": {}})
        provenance.upstream(below, "maps", tmp_path, ["a"])
        seen.add((below.inputs["maps"], below.images["a"]["maps"]))
    assert len({inputs for inputs, _ in seen}) == 2  # what all files share: the checkpoint
    assert len({made for _, made in seen}) == 3  # what one was made from: its labels, too


def test_maps_asked_for_later_are_written(demo, own_run, tmp_path):
    """--save-maps on a finished run is no silent nothing."""
    run_stage(*labels(demo, own_run))
    before = content(own_run / "pseudo_labels")
    run_stage(*labels(demo, own_run), "--save-maps", tmp_path / "maps")
    assert len(list((tmp_path / "maps").glob("*.png"))) == 8
    assert content(own_run / "pseudo_labels") == before


def test_overwrite_deletes_nothing_before_all_is_known_to_be_right(demo, own_run):
    train = ("train_drs", "--data-root", demo, "--run-dir", own_run, *MACHINE, *TRAINING)
    before = content(own_run / "classifier")
    for wrong in (("--init", "/nonexistent.pth"), ("--batch-size", "99"), ("--val-list", "none2"),
                  ("--list", "nowhere"), ("--amp", "fp16")):
        stage_error(*train, "--overwrite", *wrong)
        assert content(own_run / "classifier") == before, wrong


def test_dry_run_writes_nothing(demo, own_run, tmp_path, caplog):
    def everything() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = everything()
    common = ("--data-root", demo, "--run-dir", own_run, *MACHINE, "--dry-run")
    for stage in (("train_drs", *common, *TRAINING, "--overwrite"),
                  ("train_refine", *common, *TRAINING), ("make_localization_maps", *common),
                  ("make_pseudo_labels", *common), ("make_pseudo_labels", *common, "--run-dir",
                                                    tmp_path / "new", "--checkpoint",
                                                    own_run / "refine" / "best.pth"),
                  ("evaluate", "--data-root", demo, "--run-dir", own_run, "--dry-run",
                   "--maps-dir", own_run / "localization_maps")):
        run_stage(*stage)
    assert everything() == before and not (tmp_path / "new").exists()
    assert "--batch-size 99" in stage_error("train_drs", *common, *TRAINING, "--batch-size", 99)
    assert everything() == before


def test_the_chain_is_printed(own_demo, own_run, capsys):
    run_stage(*labels(own_demo, own_run))
    run_stage("train_refine", "--data-root", own_demo, "--run-dir", own_run, *MACHINE, *TRAINING,
              "--overwrite")
    provenance.main(provenance.parse([str(own_run)]))
    text = capsys.readouterr().out
    assert "from checkpoint" in text and "from localization maps" in text
    # The labels come from a refinement network that has been trained anew since.
    part = text[text.index(f"{own_run / 'pseudo_labels'}:"):]
    assert "by   " in part
    spoil(own_demo / "JPEGImages" / "train_000001.jpg")
    provenance.main(provenance.parse([str(own_run)]))
    part = capsys.readouterr().out.split(f"{own_run / 'pseudo_labels'}:")[1]
    assert "OUT OF DATE: 1 images" in part.splitlines()[-1] or "OUT OF DATE" in part


def test_a_damaged_record_can_be_overwritten(demo, own_run):
    run_stage(*labels(demo, own_run))
    (own_run / "pseudo_labels" / provenance.RECORD).write_text("[1]")
    assert "provenance.json" in stage_error(*labels(demo, own_run))
    run_stage(*labels(demo, own_run), "--overwrite")


def test_a_record_in_a_checkpoint():
    record = provenance.Record("test", {"scales": [1.0]}, ["cat"], images={"a": {"labels": [1]}},
                               validation={"b": {"mask": 7}})
    packed, source = record.packed(), Path("last.pth")
    assert provenance.Record.of(packed, source) == record
    assert provenance.Record.of(packed | {"images": record.images}, source) == record  # of old
    for damaged in ("{", "[" * 10**5, "7", '{"a": 1}', "{\"a\": {}"):
        with pytest.raises(UserError, match="last.pth"):
            provenance.Record.of(packed | {"images": damaged}, source)
