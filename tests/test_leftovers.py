"""Temporary files of processes that are gone are swept by the next run; those of others stay."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers import run_stage
from PIL import Image

from datasets import command, plan
from reporting import screenshot
from utils import checkpoint
from utils.stage import launch

Command = Callable[[Path, Path, Path, pytest.MonkeyPatch], Path]  # demo, run, folder -> its output


def make_plan(demo: Path, run: Path, folder: Path, _: pytest.MonkeyPatch) -> Path:
    launch(plan.main, plan.parse([str(demo), "--run-dir", str(folder), "--val-share", "0.25"]))
    return folder / "lists" / "val.txt"


def make_list(demo: Path, run: Path, folder: Path, _: pytest.MonkeyPatch) -> Path:
    output = folder / "list.txt"
    launch(command.run, command.parse(["make-list", str(demo), "--from-xml", "--num-workers", "0",
                                       "--output", str(output)]))
    return output


def export_weights(demo: Path, run: Path, folder: Path, _: pytest.MonkeyPatch) -> Path:
    output = folder / "official.pth"
    checkpoint.main(["export", str(run / "classifier" / "best.pth"), str(output)])
    return output


def take_picture(demo: Path, run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    output = folder / "page.png"
    monkeypatch.setattr(screenshot, "browser", nullcontext)
    monkeypatch.setattr(screenshot, "open_page", lambda *_: None)
    monkeypatch.setattr(screenshot, "capture", lambda *_: Image.new("RGB", (9, 9)))
    monkeypatch.setattr(sys, "argv", ["screenshot", "page.html", str(output)])
    screenshot.main()
    return output


def score(demo: Path, run: Path, folder: Path, _: pytest.MonkeyPatch) -> Path:
    run_stage("evaluate", "--data-root", demo, "--run-dir", folder, "--labels-dir",
              demo / "SegmentationClassAug")
    return folder / "scores" / "SegmentationClassAug.json"


def show(demo: Path, run: Path, folder: Path, _: pytest.MonkeyPatch) -> Path:
    run_stage("report", "--data-root", demo, "--run-dir", folder, "--rows", "1")
    return folder / "report.html"


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.parametrize("write", [make_plan, make_list, export_weights, take_picture, score, show])
def test_the_next_run_sweeps(demo, run, tmp_path, monkeypatch, gone, write):
    output = write(demo, run, tmp_path, monkeypatch)
    left = output.with_name(f".{output.stem}.{gone}-1.tmp{output.suffix}")
    lives = output.with_name(f".{output.stem}.{os.getppid()}-1.tmp{output.suffix}")
    other = output.with_name(f".other.{gone}-1.tmp{output.suffix}")
    left.write_bytes(b"half")
    if write not in (score, show):  # their folders are locked: nobody else writes there
        lives.write_bytes(b"half")
        other.write_bytes(b"half")
    before = output.stat().st_ino
    assert write(demo, run, tmp_path, monkeypatch) == output
    assert output.stat().st_ino != before and not left.exists()
    assert write in (score, show) or (lives.exists() and other.exists())
