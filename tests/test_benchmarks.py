"""Measurements that run elsewhere than here must at least run."""

import subprocess

import pytest
import torch
from helpers import ENVIRONMENT, ROOT

from benchmarks import gpu, scale


@pytest.mark.slow
def test_the_measurement_on_a_gpu_runs_without_one():
    done = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--quick"],
                          env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()
            if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == list(gpu.PAPER)
    hours = [float(row[-1]) for row in rows[2:]]
    assert all(float(row[1]) > 0 and float(row[4]) > 100 for row in rows[2:])
    assert {row[3] for row in rows[2:]} <= {"loader", "network", "-"} and min(hours) > 0
    assert float(done.stdout.split("The paper's run: ")[1].split()[0]) == pytest.approx(
        sum(hours), rel=0.1)


def test_operations_are_counted():
    """A convolution by hand; and what is known of the networks' relations."""
    layer, x = torch.nn.Conv2d(3, 5, 3, bias=False), torch.ones(1, 3, 10, 10)
    assert scale.teraflops(lambda: layer(x)) * 1e12 == 2 * 5 * 8 * 8 * 3 * 9
    each = scale.operations()
    squares = sum(side ** 2 for side in scale.SCALES) / scale.SIDE ** 2
    # A training step is a forward pass and two of its size backwards, without the first layer's.
    assert each["classifier training"] / each["maps"] == pytest.approx(3 / squares, rel=0.02)
    assert each["refinement training"] == pytest.approx(each["classifier training"], rel=0.01)


def test_a_long_list_is_read(tmp_path):
    seconds, mib = scale.list_of(2000, tmp_path)
    assert seconds > 0 and mib >= 0
