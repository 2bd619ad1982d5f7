"""The loops, without state of their own: one epoch of training, and inference over a list."""

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from utils.logging import progress

Batch = dict[str, Any]
MEND = ("what earlier epochs saved is untouched; start over with --overwrite and a lower --lr, or "
        "with --amp off")
CHECK_INTERVAL = 20  # steps between looks at the loss: each look makes the CPU wait for the GPU


class Batches(Iterable[Batch], Sized, Protocol):
    """Batches on the device (`utils.loading.DeviceBatches`)."""

    weight: float
    done: int


class Machine(Protocol):
    """What the loops need of `utils.runtime.Runtime`."""

    @property
    def device(self) -> torch.device: ...
    @property
    def main(self) -> bool: ...
    @property
    def world(self) -> int: ...
    def autocast(self) -> torch.autocast: ...
    def sum(self, values: Tensor) -> Tensor: ...


class Trained(Protocol):
    """What is trained (`utils.training.Training`).

    Attributes:
        loss: () float64, this process's share of the sum of the epoch's losses so far.
    """

    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    runtime: Any  # a Machine
    loss: Tensor

    def save_if_due(self, done: int) -> None: ...


def train_epoch(network: nn.Module, batches: Batches,
                loss_fn: Callable[[nn.Module, Batch], Tensor], training: Trained, *,
                accumulate: int = 1, after_step: Callable[[], None] | None = None
                ) -> dict[str, float]:
    """Train over `batches` once, or over what is left of them.

    Args:
        batches: their `weight` is what this process's loss counts in the mean over processes.
        training: told after each optimizer step how many batches are done.
        loss_fn: (network, batch) -> scalar loss, a mean over the batch's images; runs under
            autocast.
        accumulate: batches whose gradients are added up before each step; the loss is divided
            by it.
        after_step: called after each optimizer step (a schedule that counts steps).

    Returns:
        {"loss": the mean over batches and all their images, "steps": optimizer steps made}.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    runtime: Machine = training.runtime
    optimizer, scaler = training.optimizer, training.scaler
    network.train()
    optimizer.zero_grad(set_to_none=True)
    left = progress(batches, "training", len(batches) - batches.done, enabled=runtime.main)
    for index, batch in enumerate(left, start=batches.done + 1):
        with runtime.autocast():
            loss = loss_fn(network, batch) * batches.weight
        scaler.scale(loss / accumulate).backward()
        training.loss += loss.detach().double() / runtime.world
        if index % CHECK_INTERVAL == 1:
            check_finite(training.loss)
        if index % accumulate == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if after_step is not None:
                after_step()
            if index < len(batches):
                training.save_if_due(index)
    total = runtime.sum(training.loss)
    check_finite(total)
    return {"loss": float(total) / max(1, len(batches)), "steps": len(batches) // accumulate}


@torch.no_grad()
def renew_statistics(network: nn.Module, batches: Batches,
                     loss_fn: Callable[[nn.Module, Batch], Tensor], training: Trained
                     ) -> dict[str, float]:
    """One pass over `batches` in which no weight changes: the statistics that batch norm has stored
    become their means over the batches. Arguments, result and errors are those of `train_epoch`."""
    runtime: Machine = training.runtime
    norms = [module for module in network.modules()
             if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    network.train()
    for index, batch in enumerate(progress(batches, "statistics", enabled=runtime.main), start=1):
        for norm in norms:
            norm.momentum = 1 / index
        with runtime.autocast():
            loss = loss_fn(network, batch) * batches.weight
        training.loss += loss.double() / runtime.world
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    total = runtime.sum(training.loss)
    check_finite(total)
    return {"loss": float(total) / max(1, len(batches)), "steps": 0}


def check_finite(loss: Tensor) -> None:
    """Raises FloatingPointError where a loss is not finite."""
    if not math.isfinite(float(loss)):
        raise FloatingPointError(f"the training diverged, its loss became {float(loss)}; {MEND}")


def predict(model: nn.Module, batches: Batches, runtime: Machine,
            forward: Callable[[nn.Module, Batch], list[Tensor]], desc: str
            ) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Run `forward` over the batches without gradients; yield each batch with its results."""
    model.eval()
    for batch in progress(batches, desc, enabled=runtime.main):
        results: list[Tensor] = []
        if "image" in batch:  # else every image of the batch was unreadable
            with torch.inference_mode(), runtime.autocast():
                results = forward(model, batch)
        yield batch, results
