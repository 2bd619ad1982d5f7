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

from utils.files import UserError
from utils.nodes import facts, require_same
from utils.torchrun import require_free

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

    scoring = ("--data-root", demo, "--labels-dir", tmp_path / "one" / "pseudo_labels", "--list",
               "train_aug")
    agents = [start(port, "evaluate.py", *scoring, "--run-dir", tmp_path / "two")
              for _ in range(2)]
    started += agents
    assert [status for status, _ in ends(*agents)] == [0, 0]
    run_stage("evaluate", *scoring, "--run-dir", tmp_path / "one")
    one, two = (tmp_path / name / "scores" / "pseudo_labels.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 3])
def test_a_command_for_one_of_the_machines(tmp_path, port, started, status):
    """It runs once, as a process of its own, and fails on every machine or on none."""
    code = (f"import os, sys; print(os.environ.get('WORLD_SIZE', 'alone'), "
            f"file=open({str(tmp_path / 'ran')!r}, 'a')); sys.exit({status})")
    started += [start(port, "-m", "utils.once", "-c", code, processes=1) for _ in range(2)]
    results = ends(*started)
    assert [ended != 0 for ended, _ in results] == [status != 0] * 2, results
    assert (tmp_path / "ran").read_text() == "alone\n"
    told = [said for _, said in results if "failed on the first machine (status 3)" in said]
    assert len(told) == (status != 0)


EPOCHS = 40
LONG = (*MACHINE, *TRAINING, "--epochs", EPOCHS, "--milestones", 30, "--val-list", "none")


def in_the_middle(folder: Path) -> None:
    """Wait for the first of the epochs."""
    metrics = folder / "classifier" / "metrics.json"
    wait_for(metrics.exists, "no epoch is trained")
    assert len(json.loads(metrics.read_text())) < EPOCHS


def kill_machine(agent: subprocess.Popen) -> None:
    """An agent and all of its processes at once."""
    for pid in {agent.pid} | descendants(agent.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    agent.communicate()


def as_unbroken(folder: Path, root: Path, results: list[tuple[int, str]]) -> None:
    """Whether a training has gone on, and ended as that of one process."""
    assert not any(status for status, _ in results), results
    assert "going on after epoch" in "".join(error for _, error in results)
    run_stage("train_drs", "--data-root", root, "--run-dir", folder / "one", *LONG)
    one, many = (losses(place / "classifier") for place in (folder / "one", folder))
    assert len(many) == EPOCHS and many == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_a_killed_process_is_started_again(demo, tmp_path, port, started):
    """By torchrun, with all the others."""
    started.append(start(port, "train_drs.py", "--data-root", demo, "--run-dir", tmp_path, *LONG,
                         machines=1, restarts=3))
    in_the_middle(tmp_path)
    os.kill(max(descendants(started[0].pid)), signal.SIGKILL)
    as_unbroken(tmp_path, demo, ends(*started))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["the one of --rdzv", "the other"])
def test_a_lost_machine(demo, tmp_path, port, started, lost):
    """The command on it is given again while the other goes on, unless they had met there."""
    common = ("train_drs.py", "--data-root", demo, "--run-dir", tmp_path, *LONG)

    def meets() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    started.append(start(port, *common, restarts=3))
    wait_for(meets, "nobody is at the port")  # so that the first is the one of --rdzv
    started.append(start(port, *common, restarts=3))
    in_the_middle(tmp_path)
    if lost == "the other":
        kill_machine(started.pop())
        started.append(start(port, *common, restarts=3))
        as_unbroken(tmp_path, demo, ends(*started))
    else:
        kill_machine(started.pop(0))
        (status, error), = ends(*started)
        last = error.splitlines()[-1]
        assert status == 1 and last.startswith(f"error: --rdzv 127.0.0.1:{port}: "), error
        assert "the same command on every machine" in last and "Traceback" not in error


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
    assert time.monotonic() - since < 30  # ten seconds, on a machine that does nothing else
    assert [status for status, _ in results] == [1, 1]
    lasts = [error.splitlines()[-1] for _, error in results]
    assert all(line.startswith("error: ") for line in lasts), lasts
    assert any("train_000000.jpg" in line for line in lasts)
    for _, error in results:
        assert sum(line.startswith("error") for line in error.splitlines()) == 1
        assert "Traceback" not in error


class Two:
    """A runtime of two machines, the second of which reports what it is told to."""

    def __init__(self, changed: dict[str, str]) -> None:
        self.changed = changed

    def gather(self, value: object) -> list:
        if isinstance(value, str):  # the digests
            return [value, "another"]
        host, mine = value
        return [value, ("second", mine | self.changed)]


@pytest.mark.parametrize("changed, said", [
    ({"train_drs.py": "code 0123456789ab"}, "train_drs.py is code .*, code 0123456789ab on second"),
    ({"utils/new.py": "code 0123456789ab"}, "utils/new.py is missing on .* on second"),
    ({"PyTorch": "1.0"}, "PyTorch is .*, 1.0 on second"),
    ({"the script": "train_refine.py"}, "the script is .*, train_refine.py on second"),
    ({"--lr": "2"}, "--lr is 1 on .* 2 on second"), ({"RUN.AMP": "off"}, "RUN.AMP is missing")])
def test_what_differs_on_another_machine_is_named(monkeypatch, changed, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(UserError, match=f"--nodes: {said}.*same code and the same command"):
        require_same(Two(changed), {"lr": 1})


def test_an_unknown_host_is_one_line(monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SystemExit, match=r"^error: --rdzv nowhere:29500: no machine of that name"):
        require_free("nowhere", 29500)


def test_a_machine_that_does_not_come_is_one_line(port, started):
    """Within ten minutes; here, within a second."""
    command = [sys.executable, "-m", "utils.torchrun", "--nnodes", "2", "--nproc-per-node", "1",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id",
               "test", "--rdzv-conf", "join_timeout=1", "train_drs.py"]
    started.append(subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    (status, error), = ends(*started)
    assert status == 1 and len(error.splitlines()) == 1
    assert f"--rdzv 127.0.0.1:{port}: the machines did not meet" in error


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
    (("--max-restarts", "-1"), "--max-restarts must be a number"),
    (("--demo", "huge"), "--demo must be small or large"),
    (("--demo", "large", "--data-root", "photos"), "--demo is for a run without --data-root"),
    (("--stages", "fixed"), "--stages: no stage 'fixed'")])
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
