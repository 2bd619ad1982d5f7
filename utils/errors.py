"""Errors as one line, from one process or from several under `utils.torchrun`."""

import os
import sys
from pathlib import Path

from utils.files import UserError

ERROR_FILE = "DRS_ERROR_FILE"  # environment variable, see `error_file`
# What PyTorch says of a process that is gone, by gloo, NCCL or the store.
LOST = ("connection closed", "connection reset", "connection refused", "connection was closed",
        "broken pipe", "gloo", "nccl", "failed to recv", "failed to send", "store")
PATIENCE = 10  # seconds; torchrun looks after its processes several times a second


def is_of_a_connection(error: BaseException) -> bool:
    """Whether the error may be what this process sees of another one's death."""
    words = str(error).lower()
    return isinstance(error, RuntimeError) and (
        type(error).__name__.startswith("Dist") or any(sign in words for sign in LOST))


def another_failed_first() -> bool:
    """Whether another of the processes has handed its line over."""
    path = error_file()
    return path is not None and path.is_file()


def error_file() -> Path | None:
    """Where the first process to fail leaves its line under `utils.torchrun`; a file for each
    restart of the processes, so that what a restart has mended is not reported."""
    start = os.environ.get(ERROR_FILE)
    return Path(f"{start}{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}") if start else None


def fail(line: str) -> None:
    """End with an error of one line. Under `utils.torchrun` the first process to fail hands its
    line over, to be printed once, after all else."""
    handed_over = error_file()
    if handed_over is None:
        sys.exit(line)
    try:
        with open(handed_over, "x", encoding="utf-8") as file:
            file.write(line)
    except FileExistsError:
        pass
    sys.exit(1)


def explain(error: BaseException) -> str | None:
    """The one line for an error that the user can mend; None for any other."""
    text = str(error).strip()
    if isinstance(error, UserError):
        # A data loading process wraps the message in its traceback: keep the message.
        # And one line it is, whatever a name from outside may hold.
        return " ".join(text.rpartition("UserError: ")[2].splitlines()).strip()
    if isinstance(error, FloatingPointError):
        return text
    if type(error).__name__ == "OutOfMemoryError":  # torch's; it may not be imported here
        return f"out of GPU memory; lower --batch-size ({text.splitlines()[0]})"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return "out of memory; lower --batch-size, --image-size or --num-workers"
    return None
