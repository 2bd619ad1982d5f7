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


def test_beside_threads_of_opencv():
    """A forked worker would wait forever for threads that it does not have."""
    code = ("import cv2, numpy as np; from test_processes import double; "
            "from utils.processes import map_in_processes\n"
            "if __name__ == '__main__':\n"
            "    cv2.GaussianBlur(np.zeros((3000, 3000), np.float32), (0, 0), 3)\n"
            "    print(list(map_in_processes(double, range(3), 2)))\n")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True,
                          env=ENVIRONMENT | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "[0, 2, 4]\n"


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
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE)
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
