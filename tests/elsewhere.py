"""Run by test_nodes.py under torchrun: a stage in a working folder of this machine's own."""

import os
import sys

from helpers import MACHINE, TRAINING

import train_drs
from utils.stage import launch

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    launch(train_drs.main, train_drs.parse(["--data-root", sys.argv[2], "--run-dir", "run",
                                            *MACHINE, *TRAINING]))
