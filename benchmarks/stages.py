"""Whole stages around a network of nearly no cost, in floors: what a fast GPU's user waits for.

The scripts themselves, over links to a few photos of 500x375. Trainings: VGG-16 at a fiftieth of
its width and full size, by the seconds of their second and third epochs. The others, at 64x64: what
all images take beyond a tenth of them, so that the start does not count. One floor is Pillow's
decoding, a resize to 320 and a copy, on one core; a stage's floors are its seconds x cores / images
/ floor. What the narrow network itself takes: `benchmarks.networks --width 0.02`.

    python -m benchmarks.stages --photos FOLDER         without: 500x375 JPEGs drawn here
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks.data_path import Official, make_root
from benchmarks.growth import DRAWN, grown, link, link_files, measure
from datasets.layout import DataRoot

EPOCHS = 3
NARROW = ("--width", "0.02", "--epochs", EPOCHS, "--milestones", EPOCHS, "--init", "none",
          "--val-list", "none", "--list", "all")


def floor(root: DataRoot) -> float:
    """Seconds that no way gets below, for one image on one core: the fastest of five rounds."""
    official, rounds = Official(root), []
    for _ in range(5):
        start = time.process_time()
        for index in range(DRAWN):
            official.floor(index)
        rounds.append(time.process_time() - start)
    return min(rounds) / DRAWN


def trainings(root: Path, run: Path, images: int) -> dict[str, float]:
    """Stage -> seconds an image, without the first epoch."""
    found = {}
    for stage, script, output, options in (
            ("classifier training", "train_drs.py", "classifier", ()),
            ("refinement training", "train_refine.py", "refine", ("--maps-dir", root / "maps"))):
        measure(script, "--data-root", root, "--run-dir", run, *NARROW, *options)
        history = json.loads((run / output / "metrics.json").read_text(encoding="utf-8"))
        found[stage] = sum(epoch["seconds"] for epoch in history[1:]) / (EPOCHS - 1) / images
    return found


def labelling(drawn: Path, folder: Path, images: int) -> dict[str, float]:
    """Stage -> seconds an image, without the start."""
    some = images // 10
    return {stage: (of_all[0] - of_some[0]) / (images - some)
            for stage, (of_some, of_all) in grown(drawn, folder, (some, images)).items()}


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="JPEGs to measure with")
    args = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "drawn").mkdir()
        drawn = make_root(folder / "drawn", args.photos, DRAWN)
        each = floor(drawn)
        link(drawn.root, folder / "all", args.images)
        link_files(drawn.root / "maps", folder / "all" / "maps", "png", args.images)
        found = trainings(folder / "all", folder / "run", args.images) | labelling(
            drawn.root, folder, args.images)
    print(f"{args.images} images, {cores} cores, floor {1000 * each:.2f} ms\n\n"
          "| stage | ms an image | floors |\n| --- | ---: | ---: |")
    for stage, seconds in found.items():
        print(f"| {stage} | {1000 * seconds:.1f} | {seconds * cores / each:.1f} |")


if __name__ == "__main__":
    main()
