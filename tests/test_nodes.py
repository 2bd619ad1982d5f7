"""Several machines, played by several torchrun agents on this one: results, losses, errors."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, MACHINE, ROOT, TRAINING, run_stage
from test_processes import descendants

from utils.nodes import facts

DEADLINE = 200  # seconds for what takes half a minute on a machine with nothing else to do


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    """The agents that a test starts; what it leaves running ends with it."""
    agents: list[subprocess.Popen] = []
    yield agents
    for agent in agents:
        for pid in {agent.pid} | descendants(agent.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        agent.wait()


def start(port: int, script: str, *args: object, processes: int = 2, restarts: int = 0,
          machines: int = 2) -> subprocess.Popen:
    """One of the machines."""
    command = [sys.executable, "-m", "utils.torchrun", "--nnodes", str(machines),
               "--nproc-per-node", str(processes), "--rdzv-backend", "c10d",
               "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test", "--max-restarts",
               str(restarts), script, *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ends(*agents: subprocess.Popen) -> list[tuple[int, str]]:
    """Exit status and stderr of each."""
    errors = [agent.communicate(timeout=DEADLINE)[1] for agent in agents]
    return [(agent.returncode, error) for agent, error in zip(agents, errors, strict=True)]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in json.loads((folder / "metrics.json").read_text())]


def wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.slow
def test_two_machines_are_as_one_process(demo, run, tmp_path, port, started):
    common = ("--data-root", demo, "--run-dir", tmp_path / "two", *MACHINE)
    refined = ("--checkpoint", run / "refine" / "best.pth", "--batch-size", 3)
    started += [start(port, "train_drs.py", *common, *TRAINING) for _ in range(2)]
    (status, first), (other, second) = ends(*started)
    assert status == other == 0, first + second
    assert losses(tmp_path / "two" / "classifier") == pytest.approx(
        losses(run / "classifier"), rel=1e-5)
    # One of them logs, and it has written each epoch once.
    assert ("epoch 1" in first) + ("epoch 1" in second) == 1
    log = (tmp_path / "two" / "logs" / "classifier.log").read_text()
    assert log.count("epoch 1 ") == 1 and "processes 4" in log

    labelling = ("make_pseudo_labels.py", *common, *refined)
    agents = [start(port, *labelling) for _ in range(2)]
    started += agents
    assert [status for status, _ in ends(*agents)] == [0, 0]
    run_stage("make_pseudo_labels", "--data-root", demo, "--run-dir", tmp_path / "one", *MACHINE,
              *refined)
    paths = sorted((tmp_path / "one" / "pseudo_labels").glob("*.png"))
    assert len(paths) == 8
    for path in paths:
        assert path.read_bytes() == (tmp_path / "two" / "pseudo_labels" / path.name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("agents", [1])  # two were tried without success
def test_a_killed_process_is_started_again(demo, tmp_path, port, started, agents):
    """By torchrun, with all the others; the end is that of the unbroken training."""
    options = ("--data-root", demo, *MACHINE, *TRAINING, "--epochs", 60, "--milestones", 50)
    run_stage("train_drs", *options, "--run-dir", tmp_path / "one")
    options += ("--run-dir", tmp_path / "many")
    for _ in range(agents):
        started.append(start(port, "train_drs.py", *options, machines=agents, restarts=3))
    metrics = tmp_path / "many" / "classifier" / "metrics.json"
    wait_for(metrics.exists, "no epoch is trained")
    os.kill(max(descendants(started[-1].pid)), signal.SIGKILL)
    assert len(json.loads(metrics.read_text())) < 60  # in the middle
    results = ends(*started)
    assert [status for status, _ in results] == [0] * agents, results
    assert "going on after epoch" in "".join(error for _, error in results)
    one, many = (losses(tmp_path / name / "classifier") for name in ("one", "many"))
    assert len(many) == 60 and many == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_other_options_are_named(demo, tmp_path, port, started):
    common = ("--data-root", demo, "--run-dir", tmp_path, *MACHINE, *TRAINING)
    started += [start(port, "train_drs.py", *common, "--seed", seed, processes=1)
                for seed in (1, 2)]
    for status, error in ends(*started):
        last = error.splitlines()[-1]
        assert status == 1 and last.startswith("error: --nodes: --seed is "), error
        assert "the same command" in last and "Traceback" not in error
    assert not (tmp_path / "classifier").exists()


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_named(demo, tmp_path, port, started):
    """The same relative path, in two working folders."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        agent = start(port, str(ROOT / "tests" / "elsewhere.py"), tmp_path / name, demo,
                      processes=1)
        started.append(agent)
    for status, error in ends(*started):
        last = error.splitlines()[-1]
        assert status == 1 and "does not see" in last and "--run-dir" in last, error
        assert "Traceback" not in error


@pytest.mark.slow
def test_a_failure_on_one_machine_ends_all_in_one_line(own_demo, tmp_path, port, started):
    (own_demo / "JPEGImages" / "train_000000.jpg").write_bytes(b"nothing")
    common = ("--data-root", own_demo, "--run-dir", tmp_path, *MACHINE, *TRAINING, "--val-list",
              "none")
    started += [start(port, "train_drs.py", *common) for _ in range(2)]
    wait_for(lambda: any(agent.poll() is not None for agent in started), "nothing fails")
    since = time.monotonic()
    results = ends(*started)
    assert time.monotonic() - since < 10
    assert [status for status, _ in results] == [1, 1]
    lasts = [error.splitlines()[-1] for _, error in results]
    assert all(line.startswith("error: ") for line in lasts), lasts
    assert any("train_000000.jpg" in line for line in lasts)
    for _, error in results:
        assert sum(line.startswith("error") for line in error.splitlines()) == 1
        assert "Traceback" not in error


def test_a_port_in_use_is_one_line():
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        agent = start(foreign.getsockname()[1], "train_drs.py")
        (status, error), = ends(agent)
    assert status == 1 and "in use by another program" in error.splitlines()[-1], error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("options, message", [
    (("--nodes", "2"), "--nodes 2 needs --rdzv HOST:PORT"),
    (("--nodes", "2", "--rdzv", "host"), "--rdzv must be HOST:PORT"),
    (("--nodes", "x"), "--nodes must be a number"),
    (("--rdzv", "host:1"), "--rdzv is for --nodes 2 or more"),
    (("--max-restarts", "-1"), "--max-restarts must be a number")])
def test_bad_options_of_run_sh(options, message):
    done = subprocess.run(["bash", str(ROOT / "run.sh"), *options], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_every_file_of_the_code_is_compared():
    found = facts({"alpha": 0.2, "SOLVER.LR": 0.1})
    for path in ("train_drs.py", "models/drs.py", "datasets/voc.py", "labelling/rule.py",
                 "utils/engine.py", "DeepLab-V2-PyTorch/main.py",
                 "DeepLab-V2-PyTorch/libs/losses.py"):
        assert found[path].startswith("code ")
    assert (found["--alpha"], found["SOLVER.LR"]) == ("0.2", "0.1")
