"""A training as it stands: what is trained, how far it has come, and its checkpoints.

In: model, optimizer, schedule and the record of what they are trained from. Out, in one folder:
last.pth after every epoch, best.pth on improvement, metrics.json, provenance.json, TensorBoard.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils import checkpoint, provenance
from utils.engine import MEND
from utils.files import UserError, write_json
from utils.loading import DeviceBatches
from utils.logging import ScalarWriter, duration
from utils.runtime import Runtime

log = logging.getLogger("drs")


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
        batches.foretell = total - done
        writer = self._writer = ScalarWriter(self.folder / "tensorboard", self.runtime.main)
        try:
            for epoch in range(done + 1, total + 1):
                self._start, self._lr = time.monotonic(), self.optimizer.param_groups[0]["lr"]
                batches.set_epoch(epoch)
                yield epoch
                if batches.foretell and epoch < total:  # an epoch too short to time its batches
                    log.info("about %s for the %d %ss that are left",
                             duration((time.monotonic() - self._start) * (total - epoch)),
                             total - epoch, self.unit)
                    batches.foretell = 0
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
