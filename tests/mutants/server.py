"""Runs pytest many times in one tree, each time in a fork of a process that has imported what takes
long to import. Nothing of the project is imported here, so every run sees the files as they are.

In, a line of JSON on stdin each: arguments, seconds, environment, output (a file). Out, a line on
stdout each: the exit status, or null if the time was up.
"""

import importlib
import json
import os
import signal
import sys
import time
from contextlib import suppress

HEAVY = ("torch", "torchvision", "torch.utils.tensorboard", "torch.distributed", "numpy", "cv2",
         "PIL.Image", "pytest", "pydantic", "yaml", "onnx", "onnxruntime", "matplotlib.pyplot",
         "requests", "jinja2")


def child(job: dict) -> None:
    """Never returns."""
    os.setsid()
    os.environ |= job["environment"]
    with open(job["output"], "wb") as output, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.path[0] = os.getcwd()  # instead of the folder of this file
    sys.argv = ["pytest", *job["arguments"]]
    # What starts processes by `spawn` runs the main module again, unless it has no file.
    del sys.modules["__main__"].__file__
    status = 1
    try:
        status = int(importlib.import_module("pytest").main(job["arguments"]))
    finally:
        sys.stdout.flush()
        os._exit(status)


def run(job: dict) -> int | None:
    """The exit status of one run; None: the time was up."""
    process = os.fork()
    if not process:
        child(job)
    end = time.monotonic() + job["seconds"]
    while not (done := os.waitpid(process, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.1)
    with suppress(ProcessLookupError):  # what the tests have left behind, too
        os.killpg(process, signal.SIGKILL)
    if not done[0]:
        os.waitpid(process, 0)
        return None
    return os.waitstatus_to_exitcode(done[1])


if __name__ == "__main__":
    for name in HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
