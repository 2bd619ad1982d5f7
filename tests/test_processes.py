"""Processes that the work is shared out to: order, errors, and none that outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT

from utils.processes import map_in_processes


def double(number: int) -> int:
    return 2 * number


def fail(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    return number


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_results_come_in_order(processes):
    assert list(map_in_processes(double, range(50), processes)) == [2 * i for i in range(50)]


def test_an_error_arrives():
    with pytest.raises(ValueError, match="seven"):
        list(map_in_processes(fail, range(30), 2))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            child = int(stat.parent.name)
            found |= {child} | descendants(child)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path, how):
    """Of the demo data's pool and of the loading processes of a stage alike."""
    command = [sys.executable, "-m", "datasets.synthetic", str(tmp_path / "demo"), "--train",
               "5000", "--val", "1", "--single", "1"]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT,
                                                                signal.default_int_handler))
    try:
        deadline, workers = time.monotonic() + 60, set()
        while len(workers) < min(2, os.cpu_count() or 1):
            assert process.poll() is None and time.monotonic() < deadline
            workers = descendants(process.pid)
            time.sleep(0.1)
        time.sleep(1)
    finally:
        process.send_signal(how)
    process.wait(timeout=20)
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]
    assert not (tmp_path / "demo").exists()
