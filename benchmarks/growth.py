"""How time and memory of the labelling and scoring stages grow with the number of images.

In: nothing. The scripts themselves are run, on a classifier of nearly no cost, over 100, 1,000 and
10,000 links to a few drawn photos. Out: a table of ms an image beyond the first run's start, and of
the peak memory of the process (its loading processes not counted). Linear in time means a constant
column, flat in memory the same.

    python -m benchmarks.growth --images 100 1000 10000
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.data_path import make_root

ROOT = Path(__file__).parents[1]
DRAWN = 20
TRAIN = ("--width", "0.03", "--epochs", "1", "--init", "none", "--val-list", "none",
         "--image-size", "64", "--milestones", "1")
SIZE = ("--image-size", "64")  # the network's own part is to be small; results are photo-sized


def link(drawn: Path, folder: Path, count: int) -> None:
    """A data root of `count` images, links to those of `drawn`."""
    lines = (drawn / "all.txt").read_text().splitlines()
    for name, suffix in (("JPEGImages", "jpg"), ("saliency_map", "png"),
                         ("SegmentationClassAug", "png")):
        link_files(drawn / name, folder / name, suffix, count)
    (folder / "all.txt").write_text("".join(
        f"{index:06d} {lines[index % DRAWN].split(maxsplit=1)[1]}\n" for index in range(count)))


def link_files(source: Path, target: Path, suffix: str, count: int) -> None:
    """A folder of `count` links to the drawn files of another."""
    target.mkdir(parents=True)
    files = [os.path.realpath(source / f"{index:06d}.{suffix}") for index in range(DRAWN)]
    for index in range(count):
        os.symlink(files[index % DRAWN], f"{target}/{index:06d}.{suffix}")


def measure(*command: object) -> tuple[float, float, float]:
    """Seconds by the clock, peak MiB, and seconds of processor time of a script."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed: {said.strip().splitlines()[-1]}")
    return (time.perf_counter() - start, usage.ru_maxrss / 1024,
            usage.ru_utime + usage.ru_stime)


def stages(root: Path, run: Path) -> dict[str, list[object]]:
    """The commands, in order."""
    common = ["--data-root", root, "--run-dir", run, "--list", "all"]
    return {
        "maps": ["make_localization_maps.py", *common, *SIZE],
        "labels": ["make_pseudo_labels.py", *common, *SIZE, "--checkpoint",
                   run / "classifier" / "best.pth"],
        "scoring labels": ["evaluate.py", *common, "--labels-dir", run / "pseudo_labels",
                           "--name", "labels"],
        "scoring maps": ["evaluate.py", *common, "--maps-dir", run / "localization_maps",
                         "--name", "maps"]}


def grown(drawn: Path, folder: Path, counts: Sequence[int]
          ) -> dict[str, list[tuple[float, float, float]]]:
    """Stage -> what `measure` finds over so many links to the images of `drawn`, for each count."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for count in counts:
        root, run = folder / f"{count}", folder / f"run{count}"
        link(drawn, root, count)
        measure("train_drs.py", "--data-root", drawn, "--run-dir", run, "--list", "all", *TRAIN)
        for stage, command in stages(root, run).items():
            found.setdefault(stage, []).append(measure(*command))
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000, 10000])
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "drawn").mkdir()
        make_root(folder / "drawn", None, DRAWN)
        found = grown(folder / "drawn", folder, args.images)
    print("| stage | " + " | ".join(f"{count:,}: s, ms an image, MiB" for count in args.images)
          + " |\n| --- |" + " ---: |" * len(args.images))
    for stage, rows in found.items():
        print(f"| {stage} | " + " | ".join(
            f"{seconds:.0f}, {1000 * seconds / count:.1f}, {memory:.0f}"
            for count, (seconds, memory, _) in zip(args.images, rows, strict=True)) + " |")


if __name__ == "__main__":
    main()
