"""A million images: how long each stage takes to start, in what memory, and what it would cost.

Measured: the stages themselves with --dry-run (everything opened, recorded and checked, one batch
drawn) on a folder of links to a few drawn photos, and a list of a million lines; the processor time
that an image takes outside the network (`benchmarks.data_path`); the size of its files. Counted:
the networks' floating point operations. Calculated from these, on the assumptions of the command
line, and marked so: seconds per million images on 1, 8 and 64 GPUs.

    python -m benchmarks.scale --images 20000 200000 --lines 1000000
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data_path import Timer, make_root
from benchmarks.data_path import run as run_data_path
from benchmarks.growth import DRAWN, SIZE, TRAIN, link, link_files, measure
from benchmarks.networks import CLASSES, DEEPLAB, SCALES
from benchmarks.networks import SIZE as SIDE
from datasets.lists import Entry, read_list
from datasets.pictures import Pictures
from models.classifier import Classifier, classification_loss
from models.refine import RefineNet

sys.path.insert(0, str(Path(__file__).parents[1] / "DeepLab-V2-PyTorch"))

from libs.deeplab import build as build_deeplab

MILLION = 1_000_000
GPUS = (1, 8, 64)
# Stages that `benchmarks.data_path` does not time, and those whose loading is much like theirs.
LOADED_AS = {"DeepLab training": "classifier training", "DeepLab evaluation": "labels"}
DEEPLAB_SIDES = {"step": 321, "evaluation": 513}
CONFIG = """
DATASET: {{ROOT: {root}, LABEL_DIR: {root}/SegmentationClassAug}}
EXP: {{OUTPUT_DIR: {run}/deeplab}}
SPLIT: {{TRAIN: all, VAL: all}}
MODEL: {{NAME: small, BLOCKS: [1, 1, 1, 1], WIDTH: 0.125}}
RUN: {{DEVICE: cpu}}
"""


# Measured

def start_commands(root: Path, run: Path, checkpoint: Path) -> dict[str, list[object]]:
    """The stages over a data root as `benchmarks.growth.link` makes it, nothing written."""
    labelling = [*SIZE, "--checkpoint", checkpoint]
    common = ["--data-root", root, "--run-dir", run, "--list", "all", "--dry-run"]
    (run / "deeplab.yaml").write_text(CONFIG.format(root=root, run=run))
    maps = root / "maps"
    return {
        "train_drs.py": ["train_drs.py", *common, *TRAIN],
        "make_localization_maps.py": ["make_localization_maps.py", *common, *labelling],
        "train_refine.py": ["train_refine.py", *common, *TRAIN, "--maps-dir", maps],
        "make_pseudo_labels.py": ["make_pseudo_labels.py", *common, *labelling],
        "evaluate.py": ["evaluate.py", *common, "--maps-dir", maps],
        "DeepLab's train": ["DeepLab-V2-PyTorch/main.py", "train", "-c", run / "deeplab.yaml",
                            "--dry-run"]}


def starts(drawn: Path, folder: Path, count: int) -> dict[str, tuple[float, float, float]]:
    """Stage -> seconds, peak MiB and processor seconds of its start over `count` images."""
    root, run, trained = folder / f"{count}", folder / f"run{count}", folder / "trained"
    run.mkdir()
    link(drawn, root, count)
    link_files(drawn / "maps", root / "maps", "png", count)
    measure("train_drs.py", "--data-root", drawn, "--run-dir", trained, "--list", "all", *TRAIN)
    commands = start_commands(root, run, trained / "classifier" / "best.pth")
    return {stage: measure(*command) for stage, command in commands.items()}


def list_of(lines: int, folder: Path) -> tuple[float, float]:
    """Processor seconds to read a long list, and MiB at the peak beyond the images' names."""
    pictures = Pictures()
    for index in range(lines):
        name = f"{index:07d}.jpg"
        pictures.by_id.add(name[:-4], f"{folder}/{name}")
        pictures._relative[name[:-4]] = name
    path = folder / "long.txt"
    path.write_text("".join(f"{index:07d} {index % CLASSES}\n" for index in range(lines)))
    before, start = resident_mib(), time.process_time()
    entries = list(read_list(path, pictures, {str(i): i for i in range(CLASSES)}))
    seconds = time.process_time() - start
    assert len(entries) == lines and isinstance(entries[-1], Entry), entries[-1]
    return seconds, resident_mib() - before


def resident_mib() -> float:
    """The peak of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def processor_ms(root_folder: Path, images: int) -> dict[str, float]:
    """Stage -> ms of one core an image takes outside the network, loading and writing."""
    torch.set_num_threads(1)
    timer = Timer(torch.device("cpu"))
    root = make_root(root_folder, None, images)
    for again in range(2):
        if again:
            timer.seconds.clear()
        run_data_path(root, timer)
    return {stage: timer.ms(stage, "sample") + timer.ms(stage, "collate")
            + timer.ms(stage, "result")
            for stage in dict.fromkeys(stage for stage, _ in timer.seconds)}


# Counted

def teraflops(run: Callable[[], object]) -> float:
    """Floating point operations of a call, in 10^12; a multiplication and addition are two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


def operations() -> dict[str, float]:
    """Stage -> 10^12 operations of the full network an image; backward passes counted, too."""
    labels = torch.ones(1, CLASSES)
    with torch.device("meta"):
        classifier, refine = Classifier(CLASSES), RefineNet(CLASSES)
        deeplab = build_deeplab(DEEPLAB)
        labels, image = labels.to("meta"), torch.empty(1, 3, SIDE, SIDE)
        crops = {name: torch.empty(1, 3, side, side) for name, side in DEEPLAB_SIDES.items()}
    scaled = [torch.empty(1, 3, side, side, device="meta") for side in SCALES]

    def maps(network: Classifier | RefineNet) -> None:
        with torch.inference_mode():
            for x in scaled:
                network.class_maps(x)

    def evaluate() -> None:
        with torch.inference_mode():
            deeplab.eval()(crops["evaluation"])

    return {
        "classifier training": teraflops(
            lambda: classification_loss(classifier(image), labels).backward()),
        "maps": teraflops(lambda: maps(classifier)),
        "refinement training": teraflops(lambda: refine(image).sum().backward()),
        "labels": teraflops(lambda: maps(refine)),
        "DeepLab training": teraflops(
            lambda: sum(part.sum() for part in deeplab.train()(crops["step"])).backward()),
        "DeepLab evaluation": teraflops(evaluate)}


# Calculated

def seconds(operations_each: float, ms_each: float, args: argparse.Namespace
            ) -> tuple[float, float]:
    """Seconds per million images by the network and by the loading, on one GPU."""
    return (operations_each * MILLION / (args.tflops * args.utilisation),
            ms_each / 1000 * MILLION / args.cores)


def main(argv: list[str] | None = None) -> None:
    """Measure, count, calculate; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--lines", type=int, default=MILLION, help="of the long list")
    parser.add_argument("--photos", type=int, default=24, help="drawn, to measure loading with")
    parser.add_argument("--tflops", type=float, default=300,
                        help="assumed: a GPU's peak in bf16, 10^12 operations a second")
    parser.add_argument("--utilisation", type=float, default=0.3, help="assumed: share reached")
    parser.add_argument("--cores", type=int, default=8, help="assumed: CPU cores for each GPU")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("drawn", "long", "photos"):
            (folder / part).mkdir()
        make_root(folder / "drawn", None, DRAWN)
        found = [starts(folder / "drawn", folder, count) for count in args.images]
        print("Measured, start of each stage (--dry-run):\n\n| stage | "
              + " | ".join(f"{count:,} images: s, of them processor, MiB" for count in args.images)
              + " |\n| --- |" + " ---: |" * len(args.images))
        for stage in found[0]:
            print(f"| `{stage}` | " + " | ".join(
                f"{clock:.0f}, {processor:.0f}, {memory:.0f}"
                for clock, memory, processor in (row[stage] for row in found)) + " |")
        taken, memory = list_of(args.lines, folder / "long")
        print(f"\nA list of {args.lines:,} lines: {taken:.1f} s of processor, {memory:.0f} MiB "
              "beyond the images' names.\n", flush=True)
        loading = processor_ms(folder / "photos", args.photos)
    print(f"Calculated, for {args.tflops:g} TFLOP/s at {args.utilisation:.0%} and {args.cores} "
          "cores a GPU; loading measured on this machine:\n\n| one pass over a million images | "
          "10^12 operations an image | network, s on "
          + " / ".join(map(str, GPUS)) + " GPUs | loading, ms an image | loading, s on "
          + " / ".join(map(str, GPUS)) + " GPUs |\n| --- | ---: | ---: | ---: | ---: |")
    for stage, each in operations().items():
        ms = loading[LOADED_AS.get(stage, stage)]
        cells = [" / ".join(f"{value / count:,.0f}" for count in GPUS)
                 for value in seconds(each, ms, args)]
        print(f"| {stage} | {each:.2f} | {cells[0]} | {ms:.1f} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
