"""What DRS does to the localization maps of another network: mIoU, precision and recall.

The demo's drawn creatures at a smaller size, and for each seed: pictures of its own; a plain
network trained from scratch on pictures with one creature, which stands in for weights of ImageNet;
from there one classifier for each way of suppression, all with the same steps (recalibrated: DRS
joins the plain CAM's network, which is not trained any further); their maps, scored against the
masks at alpha 0.2 and at each one's own best alpha. The scripts themselves are run, so that an
interrupted measurement goes on where it was. With several seeds, they share the cores.

    python -m benchmarks.backbones --backbone resnet18 --seeds 0 1
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.growth import ROOT

PICTURES = "--classes 6 --train 400 --val 8 --single 1500 --size 160"
NETWORK = "--image-size 128 --resize 144 --val-list none --num-workers 0"
PRETRAINING = "--list single --drs none --init none --batch-size 16"
TRAINING = "--epochs 16 --milestones 12 15 --batch-size 8"
# Family -> its last two stages.
LAST = {"resnet": "layer3.* layer4.*",
        "regnet": "trunk_output.block3.* trunk_output.block4.*"}
WAYS = {"plain CAM": "--drs none",
        "fixed 0.85": "--drs fixed --delta 0.85",
        "fixed 0.85, last two stages": "--drs fixed --delta 0.85 --drs-where {last}",
        "fixed 0.7": "--drs fixed --delta 0.7",
        "fixed 0.7, last two stages": "--drs fixed --delta 0.7 --drs-where {last}",
        "learnable": "--drs learnable",
        "learnable, last two stages": "--drs learnable --drs-where {last}",
        "recalibrated, 0.85, last two stages":
            "--drs fixed --delta 0.85 --drs-where {last} --recalibrate",
        "recalibrated, 0.7, last two stages":
            "--drs fixed --delta 0.7 --drs-where {last} --recalibrate"}
ALPHA = 0.2
Figures = tuple[float, float, float]  # mIoU, precision, recall in [0, 1]


def measure(args: argparse.Namespace, seed: int, threads: int) -> dict[str, list[object]]:
    """Way -> [figures at `ALPHA`, the best alpha, figures there] of one seed."""
    folder, backbone = args.work_dir.resolve(), args.backbone

    def script(name: str, *arguments: object) -> None:
        log = folder / f"{backbone}-seed{seed}.log"
        with open(log, "a", encoding="utf-8") as output:
            command = [sys.executable, *name.split(), *map(str, arguments)]
            print(*command, file=output, flush=True)
            if subprocess.run(command, cwd=ROOT, stdout=output, stderr=output,
                              env=os.environ | {"OMP_NUM_THREADS": str(threads)}).returncode:
                raise SystemExit(f"{name} failed: see {log}")

    data, run = folder / f"data{seed}", folder / f"{backbone}-seed{seed}"
    run.mkdir(parents=True, exist_ok=True)
    common = ["--data-root", data, "--run-dir", run]
    network = [*common, *NETWORK.split(), "--backbone", backbone, "--seed", seed]
    last = next((names for family, names in LAST.items() if backbone.startswith(family)), None)
    script("-m datasets.synthetic", data, *PICTURES.split(), "--seed", seed)
    epochs = args.pretraining_epochs
    script("train_drs.py", *network, *PRETRAINING.split(), "--lr", args.pretraining_lr,
           "--epochs", epochs, "--milestones", epochs * 3 // 4, epochs,
           "--output-dir", run / "pretrained")
    results: dict[str, list[object]] = {}
    for way, options in WAYS.items():
        if last is None and "{last}" in options:
            continue
        name = way.replace(", ", "-").replace(" ", "-")
        start = "plain-CAM" if "--recalibrate" in options else "pretrained"
        script("train_drs.py", *network, *TRAINING.split(), "--lr", args.lr,
               *options.format(last=last).split(),
               "--init", run / start / "last.pth", "--output-dir", run / name)
        script("make_localization_maps.py", *common, "--checkpoint", run / name / "last.pth",
               "--image-size", NETWORK.split()[1], "--output-dir", run / f"{name}-maps")
        script("evaluate.py", *common, "--list", "train_aug", "--name", name,
               "--alpha", ALPHA, "--maps-dir", run / f"{name}-maps")
        scores = json.loads((run / "scores" / f"{name}.json").read_text(encoding="utf-8"))
        best = max(scores["sweep"], key=lambda at: at["miou"])
        results[way] = [figures(scores), best["alpha"], figures(best)]
    return results


def figures(scores: dict[str, float]) -> Figures:
    """mIoU, precision and recall of a result, or of a point of its sweep."""
    return scores["miou"], scores["precision"], scores["recall"]


def cells(seeds: list[Figures]) -> str:
    """Cells of the table: each figure in percent, seed by seed."""
    return " | ".join(" / ".join(f"{100 * value:.1f}" for value in values)
                      for values in zip(*seeds, strict=True))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backbones", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--pretraining-epochs", type=int, default=8)
    parser.add_argument("--pretraining-lr", type=float, default=0.02)
    parser.add_argument("--lr", type=float, default=0.01, help="of the classifiers")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "runs" / "backbones",
                        help="where pictures, checkpoints and maps go (default: %(default)s)")
    args = parser.parse_args()
    threads = max(1, len(os.sched_getaffinity(0)) // len(args.seeds))
    with ThreadPoolExecutor(len(args.seeds)) as pool:
        seeds = list(pool.map(lambda seed: measure(args, seed, threads), args.seeds))
    print(f"{args.backbone}, seeds {' / '.join(map(str, args.seeds))}\n\n"
          f"| | mIoU at alpha {ALPHA} | precision | recall | best alpha | mIoU there | precision | "
          "recall |\n| --- |" + " ---: |" * 7)
    for way in seeds[0]:
        at, best, there = zip(*(results[way] for results in seeds), strict=True)
        print(f"| {way} | {cells(at)} | {' / '.join(map(str, best))} | {cells(there)} |")


if __name__ == "__main__":
    main()
