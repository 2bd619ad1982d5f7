"""A training as it stands: what is trained, how far it has come, and its checkpoints.

In: model, optimizer, schedule and the record of what they are trained from. Out, in one folder:
last.pth after every epoch, best.pth on improvement, metrics.json, provenance.json, TensorBoard.
"""

import argparse
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils import checkpoint, outputs, provenance
from utils.engine import MEND
from utils.files import UserError, write_json
from utils.loading import DeviceBatches
from utils.logging import ScalarWriter
from utils.runtime import Runtime
from utils.stage import note

log = logging.getLogger("drs")


def named_groups(groups: Mapping[str, list[nn.Parameter]], lr: float, factors: Mapping[str, float],
                 weight_decay: float | Mapping[str, float] = 0.0) -> list[dict[str, Any]]:
    """Optimizer groups from named parameters; count and learning rate of each are logged.

    Args:
        groups: name -> parameters, every trainable parameter in exactly one.
        lr: base learning rate.
        factors: name -> factor on `lr`.
        weight_decay: of all, or by name.
    """
    result = []
    for name, parameters in groups.items():
        decay = weight_decay[name] if isinstance(weight_decay, Mapping) else weight_decay
        result.append({"name": name, "params": parameters, "lr": lr * factors[name],
                       "weight_decay": decay})
        log.info("parameters %-14s %3d tensors %11s elements  lr %g  weight decay %g", name,
                 len(parameters), f"{sum(p.numel() for p in parameters):,}", lr * factors[name],
                 decay)
    return result


def describe_network(args: argparse.Namespace, kind: str, num_classes: int) -> dict[str, Any]:
    """What the options of a training ask for, as `models.build` takes it.

    Raises:
        UserError: options of the paper's network with another one, or the reverse.
    """
    config: dict[str, Any] = {"network": kind, "num_classes": num_classes}
    where = getattr(args, "drs_where", None)
    if args.backbone is None:
        if args.output_stride not in (None, 8):
            raise UserError(f"--output-stride {args.output_stride}: vgg16, the paper's, has "
                            "8; leave it out, or choose --backbone vgg16_bn")
        if where is not None:
            raise UserError("--drs-where is for other networks (--backbone); in vgg16, the "
                            "paper's, DRS follows every convolution")
        config |= {"width": args.width, "batch_norm": args.batch_norm}
    else:
        if args.width != 1 or args.batch_norm:
            raise UserError(f"--width and --batch-norm are vgg16's; leave them out with --backbone "
                            f"{args.backbone}")
        config |= {"backbone": args.backbone, "output_stride": args.output_stride}
        if args.image_size < 64:
            raise UserError(f"--image-size {args.image_size}: --backbone {args.backbone} needs 64")
    if kind == "classifier":
        config |= {"drs": args.drs, "delta": args.delta}
        if where is not None:
            config["drs_where"] = where
    return config


def new_network(build: Callable[[Mapping[str, Any]], Any], args: argparse.Namespace, kind: str,
                num_classes: int) -> Any:
    """The network of a training, made by `build` (`models.build`): a `kind` with random weights.

    Raises:
        UserError: there is no such network, or not with these options.
    """
    config = describe_network(args, kind, num_classes)
    try:
        return build(config)
    except ValueError as error:
        if "backbone" not in config:
            raise
        raise UserError(f"--backbone {config['backbone']}: {error}".replace("\n", " ")) from error


def init_trunk(model: Any, source: str) -> None:
    """Give `model` its initial trunk: "imagenet", "none" (random) or a checkpoint file.

    Raises:
        UserError: the weights cannot be fetched or do not fit.
    """
    if source == "none":
        log.info("initial weights: random")
        return
    if source == "imagenet":
        try:
            model.load_imagenet()
        except (OSError, RuntimeError) as error:  # no network, or a broken download
            raise UserError(
                f"--init imagenet: torchvision's ImageNet weights cannot be loaded ({error}); "
                f"download {model.imagenet_file} into ~/.cache/torch/hub/checkpoints/, or use "
                "--init none or --init FILE") from error
        log.info("initial weights: torchvision's, trained on ImageNet")
        return
    try:
        names = model.load_trunk(checkpoint.weights(Path(source))[1] if "backbone" in model.config
                                 else checkpoint.read(source).state)
    except ValueError as error:
        raise UserError(f"--init {source}: {error}") from error
    log.info("initial weights: %d trunk tensors of %s; head and DRS at random", len(names), source)


def training_record(args: argparse.Namespace, root: Any, entries: Sequence[Any], runtime: Runtime
                    ) -> provenance.Record:
    """What a training with these options, data set and entries of a list is made from."""
    record = outputs.made_from(args, root, entries, runtime.precision)
    note(images=len(entries))
    if args.init in ("imagenet", "none"):
        record.inputs["initial weights"] = args.init
    else:
        record.add_file("initial weights", Path(args.init))
    if getattr(args, "maps_dir", None) is not None:
        provenance.upstream(record, "localization maps", args.maps_dir,
                            [entry.id for entry in entries])
    return record


class Training:
    """The state of a training, between epochs.

    Args:
        folder: where the checkpoints lie.
        model: the bare network, with `config`; not its distributed or compiled form.
        optimizer, scheduler: whose state belongs to the checkpoint.
        record: what the network is trained from; going on with anything else is refused.
        runtime: device and processes.
        keep_best: whether the epoch with the best score is kept as best.pth.
        unit: what an epoch is called in the log.
    """

    def __init__(self, folder: Path, model: nn.Module, optimizer: Optimizer,
                 scheduler: LRScheduler, record: provenance.Record, runtime: Runtime,
                 keep_best: bool = True, unit: str = "epoch") -> None:
        self.folder, self.last, self.best = folder, folder / "last.pth", folder / "best.pth"
        self.final = folder / "checkpoint_final.pth"
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.record, self.runtime, self.keep_best = record, runtime, keep_best
        self.unit = unit
        self.scaler = runtime.scaler()
        self.history: list[dict[str, float]] = []
        self.best_score, self.step = -math.inf, 0
        self._start, self._lr = time.monotonic(), 0.0
        self._writer: ScalarWriter | None = None

    def resume(self, overwrite: bool = False) -> bool:
        """Go on from last.pth; False where there is none, or where it is to be replaced.

        Nothing is deleted to start over: the old checkpoints go when the first new one comes.

        Raises:
            UserError: last.pth is damaged, or was trained from something else.
        """
        self.record.announce()
        if overwrite or not self.last.exists():
            return False
        state = checkpoint.read(self.last)
        theirs = provenance.Record.of(state.rest.get("made_from"), self.last)
        changed = theirs.differences(self.record) + theirs.list_differences(self.record)
        if changed:
            raise UserError(f"{self.last} was trained from something else: {'; '.join(changed)}: "
                            "use the same, another --output-dir, or --overwrite")
        try:
            self.model.load_state_dict(state.state)
            self.optimizer.load_state_dict(state.rest["optimizer"])
            if state.rest["scheduler"].keys() != self.scheduler.state_dict().keys():
                raise ValueError("it is of another schedule")
            self.scheduler.load_state_dict(state.rest["scheduler"])
            if state.rest["scaler"]:  # empty where the run before did not train in fp16
                self.scaler.load_state_dict(state.rest["scaler"])
            self.history = [{str(k): float(v) for k, v in row.items()}
                            for row in state.rest["history"]]
            self.step, score = int(state.rest["step"]), state.rest["best_score"]
            self.best_score = -math.inf if score is None else float(score)
        except Exception as error:  # whatever damage there is: torch and we raise many types
            raise UserError(f"checkpoint {self.last}: damaged, training cannot go on from it "
                            f"({type(error).__name__}: {error}); use --overwrite to start over"
                            .replace("\n", " ")) from error
        return True

    def epochs(self, total: int, batches: DeviceBatches) -> Iterator[int]:
        """The epochs that are left of `total`, counted from 1; `batches` are set to each."""
        done = len(self.history)
        if done:
            log.info("going on after %s %d of %d", self.unit, done, total)
            if self.runtime.main:  # who was killed right after last.pth has not written these
                self._write_figures()
        if done >= total:
            log.info("nothing to do: all %d are done", total)
        writer = self._writer = ScalarWriter(self.folder / "tensorboard", self.runtime.main)
        try:
            for epoch in range(done + 1, total + 1):
                self._start, self._lr = time.monotonic(), self.optimizer.param_groups[0]["lr"]
                batches.set_epoch(epoch)
                yield epoch
        finally:
            writer.close()

    def dry_run(self, batches: DeviceBatches, total: int) -> None:
        """Draw one batch, and say what the training would do."""
        next(iter(batches))
        log.info("dry run: would train %d of %d %ss, %d batches each, from %s, into %s",
                 max(0, total - len(self.history)), total, self.unit, len(batches),
                 f"{self.unit} {len(self.history)} of {self.last}" if self.history
                 else "the initial weights", self.folder)

    def end_epoch(self, figures: Mapping[str, float], score: float | None = None) -> None:
        """Write the checkpoints and figures of an epoch that has been trained.

        Args:
            figures: what was measured: loss, steps, validation scores.
            score: the higher, the better; None: the last epoch counts as the best.

        Raises:
            FloatingPointError: a weight is not finite; nothing is written.
        """
        epoch = len(self.history) + 1
        if not all(bool(torch.isfinite(value).all()) for value in self.model.state_dict().values()):
            raise FloatingPointError(f"the training diverged, weights are not finite after "
                                     f"{self.unit} {epoch}; {MEND}")
        figures = dict(figures)
        self.step += int(figures.pop("steps", 0))
        row = {"epoch": epoch, **figures, "lr": self._lr,
               "seconds": round(time.monotonic() - self._start, 2)}
        improved = score is None or score > self.best_score
        if score is not None:
            self.best_score = max(self.best_score, score)
        self.history.append(row)
        if self.runtime.main:
            self._write(improved)
            log.info("%s %d  %s%s", self.unit, epoch,
                     "  ".join(f"{name} {value:.4g}" for name, value in row.items()
                               if name != "epoch"), "  (best)" if score and improved else "")
            if self._writer is not None:
                self._writer.add({k: v for k, v in row.items() if k != "epoch"}, epoch)
        self.runtime.barrier()

    def _write(self, improved: bool) -> None:
        if len(self.history) == 1:  # an older training, if any, ends here and not sooner
            for path in (self.last, self.best, self.final):
                path.unlink(missing_ok=True)
        content = self._content()
        # best.pth first: whoever is interrupted in between repeats the epoch and writes it again.
        if self.keep_best and improved:
            checkpoint.save(self.best, content)
        checkpoint.save(self.last, content | {
            "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict()})
        self._write_figures()

    def _write_figures(self) -> None:
        write_json(self.folder / "metrics.json", self.history)
        self.record.write(self.folder)

    def _content(self) -> dict[str, Any]:
        config = cast("dict[str, Any]", self.model.config)
        return {"format": checkpoint.FORMAT, "network": dict(config),
                "classes": list(self.record.classes), "made_from": self.record.plain(),
                "model": self.model.state_dict(), "epoch": len(self.history),
                "step": self.step, "history": self.history,
                "best_score": None if self.best_score == -math.inf else self.best_score}

    def finish(self) -> None:
        """Write checkpoint_final.pth: the weights of the last epoch, and what rebuilds them."""
        if self.runtime.main:
            checkpoint.save(self.final, self._content())
            log.info("wrote %s", self.final)
        self.runtime.barrier()
