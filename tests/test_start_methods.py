"""Every stage with a loading process that shares no memory with ours: forkserver and spawn.

They are the defaults of Python 3.14 on Linux and of macOS and Windows. What such a process is
given must be picklable, and it must come to the same result as without.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ENVIRONMENT, ROOT, TRAINING

from utils import checkpoint

# Stages as JSON on the command line, one after the other in one process.
PROGRAM = """
import importlib, json, multiprocessing, sys
from utils.stage import launch
multiprocessing.set_start_method(sys.argv[1])
multiprocessing.set_forkserver_preload(["torch", "datasets.voc"])
for module, arguments in json.loads(sys.argv[2]):
    module = importlib.import_module(module)
    launch(module.main, module.parse(arguments))
"""
CONFIG = """
EXP: {{ID: tiny, OUTPUT_DIR: {out}}}
DATASET: {{ROOT: {root}, LABEL_DIR: {root}/SegmentationClassAug}}
IMAGE: {{CROP: 33, SCALES: [0.75, 1.0]}}
MODEL: {{NAME: small, BLOCKS: [1, 1, 1, 1], WIDTH: 0.125}}
SOLVER: {{ITER_MAX: 2, ITER_SAVE: 2, ITER_SIZE: 1, BATCH_SIZE: 4, LR: 0.001, LR_DECAY: 1}}
RUN: {{NUM_WORKERS: 1, DEVICE: cpu, AMP: off}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_stages_by_any_start_method(demo, run, tmp_path, method):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(out=tmp_path / "out", root=demo))
    final = tmp_path / "out/models/tiny/small/train_aug/checkpoint_final.pth"
    common = ["--data-root", str(demo), "--run-dir", str(tmp_path), "--device", "cpu", "--amp",
              "off", "--num-workers", "1"]
    stages = [("train_drs", [*common, *TRAINING]), ("make_localization_maps", common),
              ("train_refine", [*common, *TRAINING]), ("make_pseudo_labels", common),
              ("main", ["train", "-c", str(config)]), ("main", ["test", "-c", str(config)]),
              ("main", ["predict", "-c", str(config), "--checkpoint", str(final), "--input",
                        str(demo / "JPEGImages"), "--output-dir", str(tmp_path / "predicted")])]
    paths = f"{ROOT}:{ROOT / 'DeepLab-V2-PyTorch'}"
    done = subprocess.run([sys.executable, "-c", PROGRAM, method, json.dumps(stages)], cwd=ROOT,
                          env=ENVIRONMENT | {"PYTHONPATH": paths}, capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == 0, done.stderr
    expected = sorted(path.name for path in (run / "localization_maps").glob("*.png"))
    assert sorted(path.name for path in (tmp_path / "localization_maps").glob("*.png")) == expected
    assert len(list((tmp_path / "pseudo_labels").glob("*.png"))) == len(expected)
    assert len(list((tmp_path / "predicted").glob("*.png"))) == len(
        list((demo / "JPEGImages").iterdir()))
    for name in ("classifier", "refine"):
        found, same = (checkpoint.read(Path(folder) / name / "last.pth").state
                       for folder in (tmp_path, run))
        assert all(torch.equal(found[key], same[key]) for key in same)
