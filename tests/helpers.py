"""What several test files share: running stages, in a process of their own or in this one."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from utils.stage import launch

ROOT = Path(__file__).resolve().parents[1]
# A network and a training that take a second. One thread, as torchrun gives each process, and no
# loading processes: starting those would take longer than the work.
NETWORK = ("--width", "0.0625", "--image-size", "32", "--init", "none")
TRAINING = (*NETWORK, "--batch-size", "4", "--epochs", "2", "--milestones", "2", "--lr", "0.01")
ONNX_MACHINE = ("--device", "cpu", "--num-workers", "0")  # for networks that are not PyTorch's
MACHINE = (*ONNX_MACHINE, "--amp", "off")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                            "PYTHONPATH": str(ROOT)}


def command(script: str, *args: object, processes: int = 1) -> list[str]:
    """The command line of a script (or "-m", module), under torchrun for several processes."""
    launcher = [] if processes == 1 else [
        "-m", "utils.torchrun", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *launcher, script, *map(str, args)]


def run_script(script: str, *args: object, processes: int = 1, check: bool = True
               ) -> subprocess.CompletedProcess:
    """Run a script of the project in a process of its own; `check`: it must succeed."""
    done = subprocess.run(command(script, *args, processes=processes), cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


def run_stage(name: str, *args: object) -> None:
    """Run a stage in this process; it ends as the script would, errors included."""
    module = importlib.import_module(name)
    launch(module.main, module.parse([str(arg) for arg in args]))


def stage_error(name: str, *args: object) -> str:
    """The one-line error message with which a stage must end."""
    with pytest.raises(SystemExit) as caught:
        run_stage(name, *args)
    message = caught.value.code
    # sys.exit with a text: the interpreter prints it to stderr and exits with status 1.
    assert isinstance(message, str) and message.startswith("error: "), message
    assert "\n" not in message
    return message


def files_below(folder: Path) -> set[str]:
    """The files below a folder, relative to it, logs left out."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")
            if path.is_file() and "logs" not in path.parts}


class Late(BaseException):
    """No `Exception`, so that nobody takes it for an error of a file."""


@contextmanager
def soon(seconds: int = 20) -> Iterator[None]:
    """Fail if the block has not ended by then."""
    def late(*_: object) -> None:
        raise Late(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
