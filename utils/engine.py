"""The loops: one epoch of training, a whole training with resume, and inference over a list."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from utils.logging import ScalarWriter, get_logger, progress

log = get_logger()
Batch = dict[str, Any]
CHECK_INTERVAL = 20  # steps between looks at the loss: each look makes the CPU wait for the GPU


class _Runtime(Protocol):
    device: torch.device
    main: bool

    def autocast(self) -> torch.autocast: ...
    def sum(self, values: Tensor) -> Tensor: ...


class _Store(Protocol):
    def resume(self) -> dict[str, Any] | None: ...
    def save(self, state: dict[str, Any], best: bool) -> None: ...


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device, images in channels_last."""
    moved = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            layout = torch.channels_last if value.dim() == 4 else torch.preserve_format
            value = value.to(device, non_blocking=True, memory_format=layout)
        moved[name] = value
    return moved


def train_epoch(network: nn.Module, batches: Iterable[Batch],
                loss_fn: Callable[[nn.Module, Batch], Tensor], optimizer: Optimizer,
                runtime: _Runtime, scaler: torch.amp.GradScaler, *, accumulate: int = 1,
                after_step: Callable[[], None] | None = None) -> dict[str, float]:
    """Train over `batches` once.

    Args:
        loss_fn: (network, batch) -> scalar loss; runs under autocast.
        accumulate: batches whose gradients are added up before each step; the loss is divided
            by it.
        after_step: called after each optimizer step (a schedule that counts steps).

    Returns:
        {"loss": the mean over batches and processes, "steps": optimizer steps made}.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    total = torch.zeros(2, device=runtime.device, dtype=torch.float64)
    steps = 0
    optimizer.zero_grad(set_to_none=True)
    for index, batch in enumerate(batches, start=1):
        with runtime.autocast():
            loss = loss_fn(network, to_device(batch, runtime.device))
        scaler.scale(loss / accumulate).backward()
        total += torch.stack((loss.detach().double(), torch.ones_like(total[0])))
        if index % CHECK_INTERVAL == 1:
            _check(total[0], index)
        if index % accumulate == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            steps += 1
            if after_step is not None:
                after_step()
    total = runtime.sum(total)
    _check(total[0], index=-1)
    return {"loss": float(total[0] / total[1].clamp(min=1)), "steps": steps}


def _check(loss: Tensor, index: int) -> None:
    if not math.isfinite(float(loss)):
        where = f"by batch {index}" if index > 0 else "in this epoch"
        raise FloatingPointError(f"the loss became {float(loss)} {where}: lower --lr, or train "
                                 "with --amp off")


def fit(model: nn.Module, network: nn.Module, loader: DataLoader,
        loss_fn: Callable[[nn.Module, Batch], Tensor], optimizer: Optimizer,
        scheduler: LRScheduler, runtime: Any, store: _Store, *, epochs: int,
        validate: Callable[[], dict[str, float]] | None = None, accumulate: int = 1,
        step_schedule: bool = False, writer: ScalarWriter | None = None,
        unit: str = "epoch") -> list[dict[str, float]]:
    """Train for `epochs`, going on from the store's last checkpoint if there is one.

    Args:
        model: the bare model, which is saved; `network` is the same or its distributed wrapper,
            which is trained.
        loader: its sampler has `set_epoch`.
        store: where checkpoints go (`utils.checkpoint.TrainingFolder`).
        validate: run after each epoch; the checkpoint with the highest "miou" it returns is
            kept as the best. Without it the last is.
        step_schedule: the scheduler counts optimizer steps instead of epochs.
        unit: what a pass over the loader is called in the log.

    Returns:
        One dict of figures per epoch: loss, lr, seconds, validation figures.
    """
    scaler = runtime.scaler()
    history: list[dict[str, float]] = []
    best_score, step = -math.inf, 0
    state = store.resume()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # empty where the run before did not train in fp16
            scaler.load_state_dict(state["scaler"])
        history, step = state["history"], state["step"]
        best_score = -math.inf if state["best_score"] is None else state["best_score"]
        log.info("going on after %s %d of %d", unit, len(history), epochs)
    for epoch in range(len(history) + 1, epochs + 1):
        start = time.monotonic()
        loader.sampler.set_epoch(epoch)
        network.train()
        lr = optimizer.param_groups[0]["lr"]
        batches = progress(loader, f"{unit} {epoch}/{epochs}", enabled=runtime.main)
        figures = train_epoch(network, batches, loss_fn, optimizer, runtime, scaler,
                              accumulate=accumulate,
                              after_step=scheduler.step if step_schedule else None)
        if not step_schedule:
            scheduler.step()
        step += int(figures.pop("steps"))
        figures = {"epoch": epoch, **figures, "lr": lr}
        score = None
        if validate is not None:
            network.eval()
            figures |= validate()
            score = figures["miou"]
        figures["seconds"] = round(time.monotonic() - start, 2)
        history.append(figures)
        improved = score is None or score > best_score
        if score is not None:
            best_score = max(best_score, score)
        if runtime.main:
            store.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "scheduler": scheduler.state_dict(), "scaler": scaler.state_dict(),
                        "epoch": epoch, "step": step, "history": history,
                        "best_score": None if best_score == -math.inf else best_score},
                       best=improved)
            log.info("%s %d/%d  %s%s", unit, epoch, epochs,
                     "  ".join(f"{name} {value:.4g}" for name, value in figures.items()
                               if name != "epoch"), "  (best)" if score and improved else "")
            if writer is not None:
                writer.add({k: v for k, v in figures.items() if k != "epoch"}, epoch)
        runtime.barrier()
    return history


def predict(model: nn.Module, loader: Iterable[Batch], runtime: Any,
            forward: Callable[[nn.Module, Batch], list[Tensor]], desc: str
            ) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Run `forward` over the loader without gradients; yield each batch with its results."""
    model.eval()
    for batch in progress(loader, desc, enabled=runtime.main):
        batch = to_device(batch, runtime.device)
        results: list[Tensor] = []
        if "image" in batch:  # else every image of the batch was unreadable
            with torch.inference_mode(), runtime.autocast():
                results = forward(model, batch)
        yield batch, results


def named_groups(groups: dict[str, list[nn.Parameter]], lr: float,
                 factors: dict[str, float], **shared: float) -> list[dict[str, Any]]:
    """Optimizer groups from named parameters; count and lr of each are logged.

    Args:
        groups: name -> parameters, every trainable parameter in exactly one.
        lr: base learning rate.
        factors: name -> factor on `lr`.
        shared: further settings of every group, such as weight_decay.
    """
    result = []
    for name, parameters in groups.items():
        group = {"name": name, "params": parameters, "lr": lr * factors[name], **shared}
        log.info("parameters %-14s %3d tensors %11s elements  lr %g", name, len(parameters),
                 f"{sum(p.numel() for p in parameters):,}", group["lr"])
        result.append(group)
    return result
