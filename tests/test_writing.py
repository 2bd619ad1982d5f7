"""The pool of writers: all on disk at the end, errors in the stage, nothing half written."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT

from labelling.labels import read_label, save_label
from utils.files import UserError, atomic_write, output_folder
from utils.stage import hold, launch
from utils.writing import Writers


def test_everything_is_on_disk_at_the_end(tmp_path):
    labels = np.arange(40, dtype=np.uint8)[:, None, None].repeat(6, 1).repeat(5, 2)
    with Writers(threads=3, waiting=5) as writers:
        for index, label in enumerate(labels):
            writers.submit(save_label, tmp_path / f"{index}.png", label)
    assert len(list(tmp_path.iterdir())) == 40
    assert all((read_label(tmp_path / f"{i}.png") == label).all() for i, label in enumerate(labels))


def test_flush_waits(tmp_path):
    with Writers() as writers:
        writers.submit(time.sleep, 0.2)
        writers.submit(save_label, tmp_path / "a.png", np.zeros((4, 4)))
        writers.flush()
        assert (tmp_path / "a.png").exists()


def test_few_wait_at_a_time():
    go, begun = threading.Event(), []

    def write(number: int) -> None:
        begun.append(number)
        go.wait(10)

    threading.Timer(0.3, go.set).start()
    with Writers(threads=2, waiting=4) as writers:
        for number in range(4):
            writers.submit(write, number)
        start = time.monotonic()
        writers.submit(write, 4)  # has to wait for the first
        assert time.monotonic() - start > 0.1
    assert sorted(begun) == list(range(5))


def fail(message: str) -> None:
    raise UserError(message)


def test_errors_surface_at_the_end_or_before(tmp_path):
    with pytest.raises(UserError, match="first"), Writers() as writers:
        writers.submit(fail, "first")
        writers.submit(save_label, tmp_path / "a.png", np.zeros((4, 4)))
    begun = []
    with pytest.raises(UserError, match="early"), Writers(threads=1) as writers:
        writers.submit(fail, "early")
        for number in range(200):
            time.sleep(0.005)
            writers.submit(begun.append, number)
    assert len(begun) < 200


def test_an_error_of_the_stage_is_not_hidden(tmp_path):
    with pytest.raises(ValueError, match="stage"), Writers() as writers:
        writers.submit(fail, "writer")
        raise ValueError("stage")


def test_threads_do_not_share_temporary_names(tmp_path):
    met, names = threading.Barrier(4, timeout=10), []

    def write(text: str) -> None:
        with atomic_write(tmp_path / "a.txt") as tmp:
            names.append(tmp)
            tmp.write_text(text)
            met.wait()
            assert tmp.read_text() == text

    with Writers(threads=4) as writers:
        for number in range(4):
            writers.submit(write, str(number))
    assert len(set(names)) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


# A stage that writes large maps without end; `limit` in bytes stands for a full disk.
STAGE = """
import resource, sys
from pathlib import Path
import numpy as np
from labelling.maps import save_maps
from utils.stage import launch
from utils.writing import Writers

def stage(args):
    folder, limit = args
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    noise = np.random.default_rng(0).integers(0, 256, (2, 300, 300), dtype=np.uint8)
    with Writers() as writers:
        for index in range(10**9):
            if index == 40:  # more than may wait: some are written
                print("going", flush=True)
            writers.submit(save_maps, Path(folder) / f"{index}.png", noise, [1, 4])
    print("recorded as finished", flush=True)

launch(stage, (sys.argv[1], int(sys.argv[2])))
"""


def start(folder: Path, limit: int = 0) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", STAGE, str(folder), str(limit)], cwd=ROOT,
                            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def test_a_full_disk_is_one_line(tmp_path):
    stage = start(tmp_path, 50_000)
    out, err = stage.communicate(timeout=60)
    assert stage.returncode == 1 and "recorded" not in out
    assert err.strip().splitlines()[-1].startswith(f"error: cannot write {tmp_path}")
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_interrupted_all_files_are_whole(tmp_path):
    from labelling.maps import load_maps

    stage = start(tmp_path)
    assert stage.stdout.readline() == "going\n"
    stage.send_signal(signal.SIGINT)
    out, err = stage.communicate(timeout=60)
    assert stage.returncode == 130 and "Traceback" not in err and "recorded" not in out
    files = list(tmp_path.iterdir())
    assert files and not [path for path in files if path.name.startswith(".")]
    assert all(load_maps(path, 5)[0].shape == (2, 300, 300) for path in files)


@pytest.mark.parametrize("waiting", [1, 32])
def test_a_signal_while_a_thread_starts_loses_no_write(tmp_path, waiting):
    """The thread works already while `submit` still waits to hear that it has started."""
    def write(path: Path) -> None:
        with atomic_write(path) as tmp:
            if path.name == "0":
                os.kill(os.getpid(), signal.SIGTERM)
            tmp.write_text("half")
            time.sleep(0.8)

    def stage(_: None) -> None:
        with Writers(threads=2, waiting=waiting) as writers:
            for number in range(10**6):
                writers.submit(write, tmp_path / str(number))

    with pytest.raises(SystemExit) as caught:
        launch(stage, None)
    assert caught.value.code == 143
    before = sorted(tmp_path.iterdir())  # one or two, some more on a busy machine; all whole
    assert {path.name for path in before} <= set("012345")
    time.sleep(1)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_when_all_is_done_leaves_nothing(tmp_path, monkeypatch, number):
    """Python runs the handler of one that is pending in the next call, here the first of those
    that tidy up."""
    change = signal.signal

    def late(*args: object) -> object:
        monkeypatch.setattr(signal, "signal", change)
        os.kill(os.getpid(), number)
        return change(*args)

    def stage(_: None) -> None:
        hold(output_folder(tmp_path / "out"))
        monkeypatch.setattr(signal, "signal", late)

    launch(stage, None)
    assert not list((tmp_path / "out").iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """Else a machine that loses power may keep an empty file under the final name."""
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names)))
    with atomic_write(tmp_path / "a.txt") as tmp:
        tmp.write_text("content")
    assert done == ["sync", "name"]
