"""What a stage's network costs, the straightforward way of the official code against ours.

Each row: a training step (forward, loss, backward, optimizer) or the making of maps, labels or
predictions, with drawn inputs and full-size networks of random weights. The official way is written
out here from its description: float32, the plain memory layout, DRS as its formula stands, and, in
inference, one image at a time, gradients recorded, all classes enlarged and combined in NumPy.
Ours is channels_last, with the fused suppression; in float32, in bf16, and compiled. All ways of a
stage take turns in one process; a ratio above 1 is ours being faster. Peak memory is that of a
process of its own for each way, without the libraries.

    python -m benchmarks.networks --ways float32 bf16 compiled --memory
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.drs import in_own_process, resident_peak
from labelling.rule import background_scores, fuse
from models import suppression
from models.classifier import Classifier, classification_loss
from models.refine import RefineNet, refinement_loss
from utils.runtime import setup

sys.path.insert(0, str(Path(__file__).parents[1] / "DeepLab-V2-PyTorch"))

from libs.deeplab import build as build_deeplab
from libs.inference import most_probable
from libs.losses import deeplab_loss
from libs.resnet import ConvBN

CLASSES, SIZE, SCALES, PHOTO, ALPHA = 20, 320, (256, 320, 384), (375, 500), 0.2
WAYS = ("float32", "bf16", "compiled")
OFFICIAL = "official"
DEEPLAB = {"num_classes": CLASSES + 1, "blocks": (3, 4, 23, 3), "width": 1.0,
           "rates": (6, 12, 18, 24), "freeze_bn": True, "scales": (0.5, 0.75)}


def images(count: int, height: int, width: int) -> Tensor:
    """(B, 3, H, W) normal noise, the same each time."""
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def present(count: int) -> Tensor:
    """(B, C) with two classes in each image."""
    labels = torch.zeros(count, CLASSES)
    for row in range(count):
        labels[row, [row % CLASSES, (row + 7) % CLASSES]] = 1
    return labels


class Way:
    """How a stage is run: layout, precision, compiled or not, and VGG-16's width."""

    def __init__(self, name: str, device: str, width: float) -> None:
        self.name, self.official, self.width = name, name == OFFICIAL, width
        self.runtime = setup(device, "bf16" if name == "bf16" else "off")

    def place(self, model: nn.Module) -> Any:
        """The network on the device, in this way's layout."""
        return model.to(self.runtime.device) if self.official else self.runtime.move(model)

    def network(self, model: Any) -> Any:
        """What is called in place of the network."""
        return torch.compile(model) if self.name == "compiled" else model

    def batch(self, tensor: Tensor) -> Tensor:
        """Inputs on the device, in this way's layout."""
        if self.official or tensor.dim() != 4:
            return tensor.to(self.runtime.device)
        return tensor.to(self.runtime.device, memory_format=torch.channels_last)

    def step(self, model: nn.Module, loss: Callable[[Any], Tensor]) -> Callable[[], None]:
        """A training step."""
        model = self.place(model).train()
        network = self.network(model)
        optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9)

        def run() -> None:
            with self.runtime.autocast():
                value = loss(network)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

        return run


def classifier_step(way: Way) -> tuple[Callable[[], None], int]:
    """Step 1, learnable DRS, batch 4."""
    x, y = way.batch(images(4, SIZE, SIZE)), way.batch(present(4))
    network = Classifier(CLASSES, width=way.width)
    return way.step(network, lambda net: classification_loss(net(x), y)), 4


def refinement_step(way: Way) -> tuple[Callable[[], None], int]:
    """Step 2, batch 4."""
    x, there = way.batch(images(4, SIZE, SIZE)), present(4)
    owner, number = (way.batch(part) for part in there.nonzero().T)
    stored = way.batch(torch.rand(len(owner), SIZE, SIZE).mul(255).byte())

    def plain_loss(net: Any) -> Tensor:
        maps = F.interpolate(net(x), (SIZE, SIZE), mode="bilinear", align_corners=True)
        dense = torch.zeros_like(maps)
        dense[owner, number] = stored / 255
        strongest = dense.amax(1, keepdim=True)
        return F.mse_loss(maps, torch.where(dense == strongest, dense, torch.zeros_like(dense)))

    def loss(net: Any) -> Tensor:
        return refinement_loss(net(x), stored, owner, number)

    return way.step(RefineNet(CLASSES, way.width), plain_loss if way.official else loss), 4


def maps(way: Way, size: tuple[int, int] = (SIZE, SIZE), rule: bool = False
         ) -> tuple[Callable[[], None], int]:
    """Localization maps of 4 images; with `rule`, labels at the photo's size."""
    model = way.place((RefineNet if rule else Classifier)(CLASSES, width=way.width)).eval()
    x, y = way.batch(images(4, SIZE, SIZE)), way.batch(present(4))
    background = background_scores(size, torch.zeros(size), 0.0)

    def official() -> None:
        for image, labels in zip(x, y.cpu().numpy(), strict=True):
            result = np.zeros((CLASSES, *size), np.float32)
            for scale in SCALES:
                scaled = F.interpolate(image[None], (scale, scale), mode="bilinear")
                found = F.relu(model.class_maps(scaled))
                found = F.interpolate(found, size, mode="bilinear", align_corners=True)
                found = found / (found.amax((2, 3), keepdim=True) + 1e-5)
                scores = found[0].detach().cpu().numpy() * labels[:, None, None]
                result = np.maximum(result, scores)
            if rule:
                result[result < ALPHA] = 0
                np.concatenate((background.numpy()[None], result)).argmax(0).astype(np.uint8)
            else:
                (result * 255).astype(np.uint8)

    if not way.official:
        model.class_maps = way.network(model.class_maps)

    def ours() -> None:
        with torch.inference_mode(), way.runtime.autocast():
            for scores, labels in zip(model.localization_maps(x, y, [size] * 4, SCALES), y,
                                      strict=True):
                if rule:
                    fuse(scores, labels.nonzero()[:, 0], background.to(scores.device),
                         alpha=ALPHA).cpu()
                else:
                    (scores * 255).byte().cpu()

    return official if way.official else ours, 4


def labels(way: Way) -> tuple[Callable[[], None], int]:
    """Refined maps and the label rule."""
    return maps(way, PHOTO, rule=True)


def deeplab(way: Way) -> nn.Module:
    """ResNet-101 at three scales; in the official way, batch norm is a layer of its own."""
    network = build_deeplab(DEEPLAB)
    for module in network.modules():
        if way.official and isinstance(module, ConvBN):
            layers = nn.Sequential(module.conv, module.bn, *[nn.ReLU()] * module.relu)
            # A function, because a module would become a part of `module`.
            module.forward = lambda x, layers=layers: layers(x)  # type: ignore[method-assign]
    return network


def deeplab_step(way: Way) -> tuple[Callable[[], None], int]:
    """Step 3, 5 crops of 321."""
    x = way.batch(images(5, 321, 321))
    mask = way.batch(torch.arange(5 * 321 * 321).reshape(5, 321, 321) % (CLASSES + 1))
    there = way.batch(torch.ones(5, CLASSES + 1))
    return way.step(deeplab(way), lambda net: deeplab_loss(
        net(x), mask, there, "official")["loss"]), 5


def deeplab_labels(way: Way) -> tuple[Callable[[], None], int]:
    """One image of 513x513 segmented, and enlarged."""
    model = way.network(way.place(deeplab(way)).eval())
    x = way.batch(images(1, 513, 513))

    def run() -> None:
        with torch.inference_mode(), way.runtime.autocast():
            logits = model(x)
            if way.official:
                F.interpolate(logits, (513, 513), mode="bilinear",
                              align_corners=False).softmax(1).cpu().numpy().argmax(1)
            else:
                most_probable(logits[0].float(), (513, 513)).cpu()

    return run, 1


STAGES = {"classifier, step": classifier_step, "maps": maps, "refinement, step": refinement_step,
          "labels": labels, "DeepLab, step": deeplab_step, "DeepLab, evaluation": deeplab_labels}


def prepared(stage: str, way: str, device: str, width: float
             ) -> tuple[Callable[[], None], int]:
    """A function that runs the stage once, and for how many images."""
    torch.manual_seed(0)
    run, count = STAGES[stage](Way(way, device, width))

    def once() -> None:
        suppression.ENABLED = way != OFFICIAL
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    return once, count


def peak(stage: str, way: str, device: str, width: float, threads: int) -> float:
    """MiB at the peak of two runs, in this process."""
    torch.set_num_threads(threads)
    before = resident_peak()
    once, _ = prepared(stage, way, device, width)
    once()
    once()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2 ** 20
    return resident_peak() - before


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--ways", nargs="+", choices=WAYS,
                        help="default: float32, and bf16 where --amp auto takes it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peak memory, too")
    parser.add_argument("--width", type=float, default=1.0,
                        help="of VGG-16; those of DeepLab are left as they are")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.ways is None:
        fast = setup(args.device).amp_dtype is torch.bfloat16
        args.ways = ["float32", "bf16"] if fast else ["float32"]
    ways, threads = [OFFICIAL, *args.ways], torch.get_num_threads()
    print(f"{args.device}, {threads} threads, PyTorch {torch.__version__}\n\n| stage | official, "
          "s an image | " + " | ".join(f"{way}, times as fast" for way in args.ways)
          + (" | official, MiB | " + " | ".join(f"{way}, MiB" for way in args.ways)
             if args.memory else "") + " |", flush=True)
    print("| --- |" + " ---: |" * (len(ways) * (2 if args.memory else 1)))
    for stage in args.stages:
        runs = {way: prepared(stage, way, args.device, args.width) for way in ways}
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(args.repeats + 1):
            for way, (once, count) in runs.items():
                start = time.perf_counter()
                once()
                if repeat:  # the first warms up, and compiles
                    taken[way].append((time.perf_counter() - start) / count)
        row = [stage, f"{statistics.median(taken[OFFICIAL]):.3f}"]
        for way in args.ways:
            ratios = [a / b for a, b in zip(taken[OFFICIAL], taken[way], strict=True)]
            row.append(f"{statistics.median(ratios):.2f}")
        del runs
        for way in ways if args.memory else ():
            mib = in_own_process(peak, stage, way, args.device, args.width, threads)
            row.append(f"{mib:.0f}")
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
