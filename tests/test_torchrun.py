"""One of several processes killed: all end, with one line; the same command goes on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import ENVIRONMENT, MACHINE, NETWORK, ROOT, command, run_script
from test_processes import alive, descendants

from utils import checkpoint

EPOCHS = 8


def train(root: Path, folder: Path) -> tuple[object, ...]:
    return ("train_drs.py", "--data-root", root, "--run-dir", folder, *MACHINE, *NETWORK,
            "--batch-size", "4", "--epochs", EPOCHS, "--lr", "0.01", "--val-list", "none")


def rank_of(pid: int) -> str | None:
    """The rank of a process that torchrun started, None if it is none."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = [line for line in environment if line.startswith(b"RANK=")]
    return found[0].partition(b"=")[2].decode() if found else None


@pytest.fixture(scope="module")
def unbroken(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run_script(*train(demo, folder), processes=2)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_process_ends_all_in_one_line(demo, unbroken, tmp_path, rank, request):
    if rank == "0" and not request.config.getoption("--every-crash-point"):
        pytest.skip("with --every-crash-point")
    process = subprocess.Popen(command(*train(demo, tmp_path), processes=2), cwd=ROOT,
                               env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline, started = time.monotonic() + 120, set()
    while not (tmp_path / "classifier" / "last.pth").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    started = descendants(process.pid)
    victim, = (pid for pid in started if rank_of(pid) == rank)
    os.kill(victim, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = said.splitlines()
    assert lines[-1] == (f"error: process {rank} was ended by SIGKILL (out of memory?); the same "
                         "command goes on from what is saved"), said
    assert sum("error" in line.lower() for line in lines) == 1 and "Traceback" not in said, said
    deadline = time.monotonic() + 10
    while any(map(alive, started)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in started if alive(pid)]
    assert len(checkpoint.read(tmp_path / "classifier" / "last.pth").rest["history"]) < EPOCHS
    run_script(*train(demo, tmp_path), processes=2)
    ends = [checkpoint.read(folder / "classifier" / "last.pth") for folder in (unbroken, tmp_path)]
    assert all(torch.equal(value, ends[1].state[name]) for name, value in ends[0].state.items())
    assert [row["loss"] for row in ends[0].rest["history"]] == [
        row["loss"] for row in ends[1].rest["history"]]
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
