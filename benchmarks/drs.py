"""What DRS costs in training: the classifier with plain activations, fixed and learnable DRS.

In: nothing. Out: a table; each way's time for a training step (forward, loss, backward) as a ratio
to the plain network's, measured in turn in one process, and its peak memory, each in a process of
its own. "written out" is DRS as the formula stands in `models/drs.py`, which autograd
differentiates.

    python -m benchmarks.drs --amp off bf16 --repeats 7
    python -m benchmarks.drs --networks resnet18 --ways plain fixed learnable --amp off
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from models import build, suppression
from models.classifier import classification_loss

# name -> DRS mode, whether the fused step is used
WAYS = {"plain": ("none", True), "fixed": ("fixed", True), "learnable": ("learnable", True),
        "fixed, written out": ("fixed", False), "learnable, written out": ("learnable", False)}
CLASSES = 20
MEBI = 2 ** 20
T = TypeVar("T")


def make_step(name: str, way: str, args: argparse.Namespace, amp: str) -> Callable[[], Tensor]:
    """A function that makes one training step of the named network, without the optimizer, and
    returns the loss."""
    mode, fused = WAYS[way]
    device = torch.device(args.device)
    torch.manual_seed(0)
    which = {"width": args.width} if name == "vgg16" else {"backbone": name}
    model = build({"network": "classifier", "num_classes": CLASSES, "drs": mode, **which})
    model = model.to(device, memory_format=torch.channels_last)
    network = torch.compile(model) if args.compile else model
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size).to(
        device, memory_format=torch.channels_last)
    labels = (torch.rand(args.batch_size, CLASSES) < 0.1).float().to(device)

    def step() -> Tensor:
        suppression.ENABLED = fused
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16"):
            loss = classification_loss(network(images), labels)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    return step


def times(name: str, args: argparse.Namespace, amp: str) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each way's steps, all ways in turn."""
    steps = {way: make_step(name, way, args, amp) for way in args.ways}
    for step in steps.values():
        step()
    measured: dict[str, list[tuple[float, float]]] = {way: [] for way in steps}
    for _ in range(args.repeats):
        for way, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            measured[way].append((time.perf_counter() - wall, time.process_time() - cpu))
    return measured


def peak_memory(name: str, way: str, args: argparse.Namespace, amp: str) -> tuple[float, float]:
    """MiB at the peak of two steps, and how much of it the network and its steps are."""
    torch.set_num_threads(args.threads)
    if args.device == "cuda":
        step = make_step(name, way, args, amp)
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() / MEBI
        return peak, peak
    before = resident_peak()
    step = make_step(name, way, args, amp)
    step()
    step()
    return resident_peak(), resident_peak() - before


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    """What `function` returns in a process of its own: memory once taken is not given back."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def resident_peak() -> float:
    """MiB that this process has held at most (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", metavar="NAME", default=["vgg16"],
                        help="vgg16, the paper's, or as --backbone of train_drs.py")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--amp", nargs="+", choices=("off", "bf16"), default=["off", "bf16"])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--width", type=float, default=1.0, help="of vgg16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-memory", action="store_true", help="measure times only")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"{args.device}, {args.threads} threads, batch {args.batch_size} at {args.image_size}, "
          f"width {args.width}, PyTorch {torch.__version__}{', compiled' * args.compile}; "
          f"ratios to {args.ways[0]}", flush=True)
    for name in args.networks:
        for amp in args.amp:
            report(name, args, amp)


def report(name: str, args: argparse.Namespace, amp: str) -> None:
    """Measure one network in one precision, and print its lines."""
    base = args.ways[0]
    measured = times(name, args, amp)
    for way in args.ways:
        # Median over the repeats of the ratio to the same repeat's baseline.
        wall, cpu = (statistics.median(one[i] / other[i] for one, other in zip(
            measured[way], measured[base], strict=True)) for i in (0, 1))
        print(f"{name:19}{amp:5}{way:24}{min(one[0] for one in measured[way]):8.2f} s   "
              f"x {wall:.2f} wall   x {cpu:.2f} CPU", flush=True)
    memory: dict[str, tuple[float, float]] = {}
    for way in args.ways if not args.no_memory else ():
        memory[way] = in_own_process(peak_memory, name, way, args, amp)
        peak, own = memory[way]
        print(f"{name:19}{amp:5}{way:24}{peak:8.0f} MiB x {peak / memory[base][0]:.2f}   without "
              f"the libraries {own:6.0f} x {own / memory[base][1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
