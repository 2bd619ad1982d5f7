"""Images a second of every stage on this machine, and the time that the paper's run would take.

The stages themselves run, with the paper's networks, over two lists of drawn photos, one three
times as long; what the longer takes more is the time of its images, and the start cancels out. Then
the stage's loader runs alone: where that takes most of the time, loading is what bounds the stage,
else the network. On a GPU also its peak memory, and its utilisation by nvidia-smi where there is
one (of the first GPU). `--quick` takes nearly no network, to see that all of it works.

    bash benchmarks/gpu.sh
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.data_path import make_root
from benchmarks.drs import resident_peak
from benchmarks.growth import DRAWN, ROOT, SIZE, TRAIN, link
from utils import loading
from utils.stage import launch

TIMES, BOUND = 3, 0.8  # the longer list; share of a stage's time from which its loader bounds it
TRAIN_AUG, VOC_TRAIN, VOC_VAL = 10_582, 1_464, 1_449
# Image by image, what the paper's run does; validation of the trainings counts as labels.
PAPER = {"classifier training": 15 * TRAIN_AUG, "maps": TRAIN_AUG,
         "refinement training": 30 * TRAIN_AUG, "labels": TRAIN_AUG + 45 * VOC_TRAIN,
         "scoring": TRAIN_AUG, "DeepLab training": 20_000 * 10, "DeepLab evaluation": VOC_VAL}
FULL = ("--init", "none", "--val-list", "none", "--epochs", "1")
SMALL = "MODEL: {NAME: small, BLOCKS: [1, 1, 1, 1], WIDTH: 0.125}"
STEP = 10  # images of a DeepLab step


def deeplab() -> ModuleType:
    """DeepLab's main.py as a module."""
    path = ROOT / "DeepLab-V2-PyTorch" / "main.py"
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("deeplab_main", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stages(root: Path, run: Path, count: int, quick: bool) -> dict[str, tuple[ModuleType, list]]:
    """Stage -> its script and command line, in order."""
    common = ["--data-root", root, "--run-dir", run, "--list", "all"]
    training, size = (TRAIN, SIZE) if quick else (FULL, ())
    config = run / "deeplab.yaml"
    config.write_text(f"DATASET: {{ROOT: {root}, LABEL_DIR: {root}/SegmentationClassAug}}\n"
                      f"EXP: {{OUTPUT_DIR: {run}/deeplab}}\nSPLIT: {{TRAIN: all, VAL: all}}\n"
                      f"SOLVER: {{ITER_MAX: {count // STEP}, ITER_SAVE: {count // STEP}}}\n"
                      + (SMALL if quick else ""))
    script, main = importlib.import_module, deeplab()
    return {
        "classifier training": (script("train_drs"), [*common, *training]),
        "maps": (script("make_localization_maps"), [*common, *size]),
        "refinement training": (script("train_refine"), [*common, *training]),
        "labels": (script("make_pseudo_labels"), [*common, *size]),
        "scoring": (script("evaluate"), [*common, "--labels-dir", run / "pseudo_labels"]),
        "DeepLab training": (main, ["train", "-c", config]),
        "DeepLab evaluation": (main, ["test", "-c", config])}


@contextmanager
def kept_loaders() -> Iterator[list[loading.DeviceBatches]]:
    """The loaders that stages make meanwhile."""
    made: list[loading.DeviceBatches] = []
    plain = loading._batches

    def keep(*args: Any, **kwargs: Any) -> loading.DeviceBatches:
        made.append(plain(*args, **kwargs))
        return made[-1]

    loading._batches = keep
    try:
        yield made
    finally:
        loading._batches = plain


@contextmanager
def utilisation() -> Iterator[list[float]]:
    """Percent of the time that the first GPU works; filled at the end, empty where none tells."""
    found: list[float] = []
    if not (torch.cuda.is_available() and shutil.which("nvidia-smi")):
        yield found
        return
    watch = subprocess.Popen(
        ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits",
         "-lms", "500"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield found
    finally:
        watch.terminate()
        found += [float(line) for line in watch.communicate()[0].split() if line.isdecimal()]


def timed(module: ModuleType, options: list) -> tuple[float, float]:
    """Seconds of a stage, and of its loader alone (0: it has none)."""
    with kept_loaders() as made:
        start = time.perf_counter()
        with redirect_stdout(sys.stderr):  # which has the stages' log
            launch(module.main, module.parse([str(option) for option in options]))
        seconds = time.perf_counter() - start
    start = time.perf_counter()
    for _ in made[0].loader if made else ():
        pass
    return seconds, time.perf_counter() - start if made else 0.0


def row(stage: str, runs: dict[int, dict[str, tuple[ModuleType, list]]]) -> tuple[str, float]:
    """A row of the table, and seconds an image."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    few, many = runs
    before, _ = timed(*runs[few][stage])
    with utilisation() as busy:
        seconds, alone = timed(*runs[many][stage])
    # Where it is too short to tell, with the start: never better than it is.
    each = (seconds - before) / (many - few) if seconds > before else seconds / many
    memory = torch.cuda.max_memory_allocated() / 2 ** 20 if on_gpu else resident_peak()
    bound = "-" if not alone else "loader" if alone / many > BOUND * each else "network"
    percent = f"{sum(busy) / len(busy):.0f}" if busy else "-"
    return (f"| {stage} | {1 / each:.3g} | {many / alone if alone else 0:.3g} | {bound} | "
            f"{memory:.0f} | {percent} | {PAPER[stage] * each / 3600:.2g} |"), each


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200,
                        help=f"of the shorter list; a multiple of {STEP}")
    parser.add_argument("--quick", action="store_true", help="ten images, nearly no network")
    args = parser.parse_args(argv)
    few = STEP if args.quick else args.images // STEP * STEP
    if not few:
        parser.error(f"--images {args.images}: there must be at least {STEP}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), {}
        (folder / "drawn").mkdir()
        make_root(folder / "drawn", None, DRAWN)
        for count in (few, TIMES * few):
            link(folder / "drawn", folder / f"{count}", count)
            (folder / f"run{count}").mkdir()
            runs[count] = stages(folder / f"{count}", folder / f"run{count}", count, args.quick)
        print(f"{device}, PyTorch {torch.__version__}, {few} and {TIMES * few} images"
              f"{', nearly no network' if args.quick else ''}\n\n| stage | images a second | its "
              "loader alone | bound by | peak MiB | GPU busy, % | the paper's run, hours |\n"
              "| --- | ---: | ---: | --- | ---: | ---: | ---: |", flush=True)
        total = 0.0
        for stage in PAPER:
            line, each = row(stage, runs)
            total += PAPER[stage] * each / 3600
            print(line, flush=True)
    print(f"\nThe paper's run: {total:.3g} hours" + (", if its networks were these" if args.quick
                                                    else ""))


if __name__ == "__main__":
    main()
