"""Processes that the work is shared out to: order, errors, and none that outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT, run_script
from PIL import Image

from labelling.labels import read_label
from utils.processes import map_in_processes


def double(number: int) -> int:
    return 2 * number


def fail(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    return number


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_results_come_in_order(processes):
    assert list(map_in_processes(double, range(50), processes)) == [2 * i for i in range(50)]


def test_an_error_arrives():
    with pytest.raises(ValueError, match="seven"):
        list(map_in_processes(fail, range(30), 2))


def test_beside_threads_of_opencv():
    """A forked worker would wait forever for threads that it does not have."""
    code = ("import cv2, numpy as np; from test_processes import double; "
            "from utils.processes import map_in_processes\n"
            "if __name__ == '__main__':\n"
            "    cv2.GaussianBlur(np.zeros((3000, 3000), np.float32), (0, 0), 3)\n"
            "    print(list(map_in_processes(double, range(3), 2)))\n")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True,
                          env=ENVIRONMENT | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "[0, 2, 4]\n"


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            child = int(stat.parent.name)
            found |= {child} | descendants(child)
    return found


def end(command: list[str], how: signal.Signals, under_way: Callable[[set[int]], bool]) -> None:
    """End a command by a signal when it is under way; no process of it may be left."""
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE)
    try:
        deadline, workers = time.monotonic() + 120, set()
        while not under_way(workers):
            assert process.poll() is None and time.monotonic() < deadline
            workers = descendants(process.pid)
            time.sleep(0.1)
    finally:
        process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]


SIGNALS = pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.mark.slow
@PROC
@SIGNALS
def test_no_worker_of_the_demo_data_outlives_its_parent(tmp_path, how):
    def drawing(workers: set[int]) -> bool:
        begun = (tmp_path / ".demo.unfinished" / "JPEGImages").glob("*.jpg")
        return len(workers) >= min(2, os.cpu_count() or 1) and any(begun)

    end([sys.executable, "-m", "datasets.synthetic", str(tmp_path / "demo"), "--train", "5000",
         "--val", "1", "--single", "1"], how, drawing)
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@PROC
@SIGNALS
def test_predictions_with_the_crf_end_at_once(demo, tmp_path, how):
    """With their loading processes, and long before all images are done."""
    photos, labels = tmp_path / "photos", tmp_path / "labels"
    photos.mkdir()
    Image.effect_noise((640, 480), 90).convert("RGB").save(photos / "0.png")
    for number in range(1, 300):
        (photos / f"{number}.png").hardlink_to(photos / "0.png")
    options = ("-c", "DeepLab-V2-PyTorch/configs/voc12.yaml", f"EXP.OUTPUT_DIR={tmp_path}",
               f"DATASET.ROOT={demo}", f"DATASET.LABEL_DIR={demo / 'SegmentationClassAug'}",
               "IMAGE.CROP=33", "MODEL.NAME=small", "MODEL.BLOCKS=[1,1,1,1]", "MODEL.WIDTH=0.03",
               "MODEL.INIT_MODEL=none", "SOLVER.ITER_MAX=1", "SOLVER.BATCH_SIZE=2",
               "SOLVER.ONLINE_LABEL=off", "RUN.NUM_WORKERS=2", "RUN.DEVICE=cpu", "RUN.AMP=off")
    run_script("DeepLab-V2-PyTorch/main.py", "train", *options)
    end([sys.executable, "DeepLab-V2-PyTorch/main.py", "predict", *options, "--crf", "--input",
         str(photos), "--output-dir", str(labels)], how,
        lambda workers: len(workers) >= 2 and any(labels.glob("[!.]*.png")))
    made = list(labels.glob("[!.]*.png"))
    assert 0 < len(made) < 250
    assert all(read_label(path).shape == (480, 640) for path in made)
    assert how == signal.SIGKILL or not [path for path in labels.rglob(".*") if path.is_file()]
