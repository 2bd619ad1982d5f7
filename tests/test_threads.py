"""Work shared by threads ends with its stage, wherever a signal meets it."""

import os
import signal
import time
from pathlib import Path

import pytest

from utils.files import atomic_write
from utils.stage import launch
from utils.threads import ordered_map


def assert_quiet(folder: Path, at_most: int) -> None:
    """A few files, all whole, and none that comes later."""
    before = sorted(folder.iterdir())
    assert len(before) <= at_most and not [path for path in before if path.name[0] == "."]
    time.sleep(0.5)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_while_a_thread_starts_leaves_no_work(tmp_path, number):
    """The thread works already while the main thread waits to hear that it has started."""
    def work(index: int) -> None:
        with atomic_write(tmp_path / str(index)) as tmp:
            if index == 0:
                os.kill(os.getpid(), number)
            tmp.write_text("half")
            time.sleep(1)

    with pytest.raises(SystemExit) as caught:
        launch(lambda _: list(ordered_map(work, range(10**6), threads=2)), None)
    assert caught.value.code == 128 + number
    assert_quiet(tmp_path, 6)  # of the 8 that were handed out, on however busy a machine


def test_work_that_nobody_waits_for_ends_with_the_stage(tmp_path):
    """Whatever keeps the iteration alive, such as the traceback of an exception."""
    kept = []

    def work(index: int) -> int:
        with atomic_write(tmp_path / str(index)) as tmp:
            tmp.write_text("half")
            time.sleep(0.5)
        return index

    def stage(_: None) -> None:
        kept.append(ordered_map(work, range(10**6), threads=2))
        assert next(kept[0]) == 0
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        launch(stage, None)
    assert caught.value.code == 130
    assert_quiet(tmp_path, 6)
