"""Shards of a list: together they are the run of the whole list, byte for byte."""

from pathlib import Path

import pytest
from helpers import MACHINE, run_stage, stage_error

from utils.loading import of_shard
from utils.provenance import read
from utils.stage import free, hold_path


@pytest.mark.parametrize("length, batch, total", [(8, 3, 2), (10, 1, 3), (7, 7, 4), (100, 8, 5)])
def test_shards_are_whole_batches_and_all_of_them(length, batch, total):
    shards = [of_shard(range(length), batch, (number, total)) for number in range(1, total + 1)]
    assert sorted(index for shard in shards for index in shard) == list(range(length))
    owners = {index: number for number, shard in enumerate(shards) for index in shard}
    for index in range(length):
        assert owners[index] == owners[index // batch * batch]
    assert of_shard([2, 5], batch, None) == [2, 5]


@pytest.mark.parametrize("script, folder, checkpoint", [
    ("make_localization_maps", "localization_maps", "classifier"),
    ("make_pseudo_labels", "pseudo_labels", "refine")])
def test_shards_make_what_one_run_makes(demo, run, tmp_path, script, folder, checkpoint):
    common = ("--data-root", demo, *MACHINE, "--checkpoint", run / checkpoint / "best.pth",
              "--batch-size", 3)
    run_stage(script, *common, "--run-dir", tmp_path / "one")
    whole, parts = tmp_path / "one" / folder, tmp_path / "parts" / folder
    counts = []
    for number in (2, 1, 3):  # in any order
        run_stage(script, *common, "--run-dir", tmp_path / "parts", "--shard", f"{number}/3")
        counts.append(len(list(parts.glob("*.png"))))
        # Each shard finds the folder made from what it is made from itself: the whole list.
        assert read(parts).digest() == read(whole).digest()
        assert (tmp_path / "parts" / "logs" / f"{folder}-shard{number}-of-3.json").is_file()
    assert counts == [3, 6, 8]
    before = {path.name: path.read_bytes() for path in whole.glob("*.png")}
    assert {path.name: path.read_bytes() for path in parts.glob("*.png")} == before
    times = {path: path.stat().st_mtime_ns for path in parts.glob("*.png")}
    run_stage(script, *common, "--run-dir", tmp_path / "parts", "--shard", "1/3")  # again
    run_stage(script, *common, "--run-dir", tmp_path / "parts")  # all: nothing is left
    assert {path: path.stat().st_mtime_ns for path in parts.glob("*.png")} == times


def held(folder: Path, name: str) -> object:
    folder.mkdir(parents=True, exist_ok=True)
    return hold_path(folder / name, str(folder))


def test_shards_work_side_by_side_but_not_beside_a_whole_run(demo, run, tmp_path):
    common = ("--data-root", demo, *MACHINE, "--checkpoint", run / "refine" / "best.pth",
              "--batch-size", 3, "--run-dir", tmp_path)
    other = held(tmp_path / "pseudo_labels", ".shard-1-of-2.lock")
    half_written = tmp_path / "pseudo_labels" / ".x.1-1.tmp.png"
    half_written.touch()
    run_stage("make_pseudo_labels", *common, "--shard", "2/2")
    assert half_written.exists()  # it is the other's
    for options in ((), ("--shard", "1/2")):
        assert "in use by process" in stage_error("make_pseudo_labels", *common, *options)
    free(other)
    whole = held(tmp_path / "pseudo_labels", ".lock")
    assert "in use by process" in stage_error("make_pseudo_labels", *common, "--shard", "1/2")
    free(whole)
    run_stage("make_pseudo_labels", *common)
    assert len(list((tmp_path / "pseudo_labels").glob("*.png"))) == 8
    assert not half_written.exists() and not list((tmp_path / "pseudo_labels").glob(".*lock*"))


@pytest.mark.parametrize("value", ["0/2", "3/2", "1", "a/b", "1/", "-1/2", "1/2/3"])
def test_bad_shards(demo, tmp_path, value, capsys):
    with pytest.raises(SystemExit) as caught:
        run_stage("make_pseudo_labels", "--data-root", demo, f"--shard={value}")
    assert caught.value.code == 2 and "must be I/N" in capsys.readouterr().err


def test_a_shard_overwrites_nothing(demo, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_stage("make_pseudo_labels", "--data-root", demo, "--shard", "1/2", "--overwrite")
    assert "--overwrite would remove" in capsys.readouterr().err
