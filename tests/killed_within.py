"""Run by test_save_within.py, under torchrun as well: a training that saves after every batch and
whose last process is killed after its N-th, or never for 0. Arguments: N, script, its options."""

import importlib
import os
import signal
import sys

from utils import training
from utils.stage import launch

training.LOOK = 1
save = training.Training.save_if_due
left = int(sys.argv[1])


def save_and_die(self: training.Training, done: int) -> None:
    global left
    save(self, done)
    left -= 1
    if not left and self.runtime.rank == self.runtime.world - 1:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    training.Training.save_if_due = save_and_die
    stage = importlib.import_module(sys.argv[2])
    launch(stage.main, stage.parse([*sys.argv[3:], "--save-every", "1e-9"]))
