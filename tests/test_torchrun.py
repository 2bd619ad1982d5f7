"""One of several processes killed: all end, with one line; the same command goes on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import (
    ENVIRONMENT,
    MACHINE,
    NETWORK,
    ROOT,
    command,
    run_script,
    run_stage,
)
from test_processes import alive, descendants

from datasets.synthetic import generate
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


def kill_one(arguments: tuple[object, ...], sign: Path, pattern: str, rank: str = "1") -> None:
    """Run two processes, kill one as soon as `sign` holds a file like `pattern`; all must end, and
    one line, the last, say why."""
    process = subprocess.Popen(command(*arguments, processes=2), cwd=ROOT, env=ENVIRONMENT,
                               stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not any(sign.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    started = descendants(process.pid)
    victim, = (pid for pid in started if rank_of(pid) == rank)
    os.kill(victim, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    lines = said.splitlines()
    assert lines[-1] == (f"error: process {rank} was ended by SIGKILL (out of memory?); the same "
                         "command goes on from what is saved"), said
    assert sum("error" in line.lower() for line in lines) == 1 and "Traceback" not in said, said
    deadline = time.monotonic() + 30
    while any(map(alive, started)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in started if alive(pid)]


def losses(path: Path) -> list[float]:
    return [row["loss"] for row in checkpoint.read(path).rest["history"]]


def assert_same_training(one: Path, other: Path, **tolerance: float) -> None:
    states = [checkpoint.read(path).state for path in (one, other)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, **tolerance)
    assert losses(other) == pytest.approx(losses(one), rel=1e-4 if tolerance["rtol"] else 0)
    assert not [path for path in other.parents[1].rglob(".*") if path.is_file()]


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/stat").exists(),
                                                   reason="needs /proc")]


def test_threads_that_live_on_do_not_abort_what_is_done(tmp_path):
    """Of a process group that is kept, say; here one that PyTorch is busy in all the time."""
    script = tmp_path / "busy.py"
    script.write_text("""
import argparse, atexit, threading, time
from utils.stage import launch

def main(args):
    import torch
    from utils.runtime import setup

    def work():
        while True:
            torch.rand(1_000_000).sort()

    runtime = setup("cpu")
    atexit.register(lambda: print("tidied", flush=True))
    for _ in range(8):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    runtime.barrier()

launch(main, argparse.Namespace())
""")
    done = run_script(str(script), processes=2)
    assert done.stdout.count("tidied") == 2


def test_what_a_restart_has_mended_is_not_reported(tmp_path):
    """The error is that of the last restart."""
    script = tmp_path / "fails.py"
    script.write_text("""
import argparse, os
from utils.files import UserError
from utils.stage import launch

def main(args):
    raise UserError("after restart " + os.environ["TORCHELASTIC_RESTART_COUNT"])

launch(main, argparse.Namespace())
""")
    done = run_script("-m", "utils.torchrun", "--standalone", "--nproc-per-node", 1,
                      "--max-restarts", 2, script, check=False)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "error: after restart 2"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_process_ends_all_in_one_line(demo, unbroken, tmp_path, rank, request):
    if rank == "0" and not request.config.getoption("--every-crash-point"):
        pytest.skip("with --every-crash-point")
    last = tmp_path / "classifier" / "last.pth"
    kill_one(train(demo, tmp_path), last.parent, last.name, rank)
    assert len(losses(last)) < EPOCHS
    run_script(*train(demo, tmp_path), processes=2)
    assert_same_training(unbroken / "classifier" / "last.pth", last, rtol=0, atol=0)


def test_the_refinement_with_one_killed(demo, run, tmp_path):
    options = ("--data-root", demo, *MACHINE, *NETWORK, "--batch-size", "4", "--epochs", EPOCHS,
               "--lr", "0.001", "--val-list", "none", "--maps-dir", run / "localization_maps")
    last = tmp_path / "refine" / "last.pth"
    kill_one(("train_refine.py", *options, "--run-dir", tmp_path), last.parent, last.name)
    assert len(losses(last)) < EPOCHS
    run_script("train_refine.py", *options, "--run-dir", tmp_path, processes=2)
    run_stage("train_refine", *options, "--run-dir", tmp_path / "one")
    # Adam's first steps divide small gradients by themselves, rounding and all.
    assert_same_training(tmp_path / "one" / "refine" / "last.pth", last, rtol=1e-3, atol=2e-3)


def test_deeplab_with_one_killed(demo, tmp_path):
    def options(folder: Path) -> tuple[object, ...]:
        return ("DeepLab-V2-PyTorch/main.py", "train", "-c",
                "DeepLab-V2-PyTorch/configs/voc12.yaml", f"EXP.OUTPUT_DIR={folder}",
                f"DATASET.ROOT={demo}", f"DATASET.LABEL_DIR={demo / 'SegmentationClassAug'}",
                "IMAGE.CROP=33", "MODEL.NAME=small", "MODEL.BLOCKS=[1,1,1,1]", "MODEL.WIDTH=0.03",
                "MODEL.INIT_MODEL=none", "SOLVER.ITER_MAX=16", "SOLVER.ITER_SAVE=2",
                "SOLVER.ITER_SIZE=1", "SOLVER.BATCH_SIZE=4", "SOLVER.ONLINE_LABEL=off",
                "RUN.NUM_WORKERS=0", "RUN.DEVICE=cpu", "RUN.AMP=off")

    run_script(*options(tmp_path / "one"), processes=2)
    unbroken, = (tmp_path / "one" / "models").rglob("last.pth")
    last = tmp_path / "two" / unbroken.relative_to(tmp_path / "one")
    kill_one(options(tmp_path / "two"), last.parent, last.name)
    assert len(losses(last)) < 8 and not list(last.parent.glob("checkpoint_final.pth"))
    run_script(*options(tmp_path / "two"), processes=2)
    assert_same_training(unbroken, last, rtol=0, atol=0)


@pytest.mark.parametrize(("script", "folder", "network"), [
    ("make_localization_maps", "localization_maps", "classifier"),
    ("make_pseudo_labels", "pseudo_labels", "refine")])
def test_labelling_with_one_killed(run, tmp_path, script, folder, network):
    root = tmp_path / "data"
    generate(root, num_classes=3, train=300, val=1, single=1, size=48, workers=1)
    options = ("--data-root", root, *MACHINE, "--batch-size", "1", "--checkpoint",
               run / network / "best.pth")
    kill_one((f"{script}.py", *options, "--run-dir", tmp_path / "two"),
             tmp_path / "two" / folder, "[!.]*.png")
    made = {path.name: path.read_bytes() for path in (tmp_path / "two" / folder).glob("[!.]*.png")}
    assert 0 < len(made) < 300
    run_script(f"{script}.py", *options, "--run-dir", tmp_path / "two", processes=2)
    run_stage(script, *options, "--run-dir", tmp_path / "one")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "one" / folder).glob("*.png")}
    assert len(expected) == 300 and made.items() <= expected.items()
    assert expected == {path.name: path.read_bytes()
                        for path in (tmp_path / "two" / folder).glob("[!.]*.png")}
    assert not [path for path in (tmp_path / "two").rglob(".*") if path.is_file()]
