"""A training as it stands: what is trained, how far it has come, and its checkpoints.

In: model, optimizer, schedule and the record of what they are trained from. Out, in one folder:
last.pth after every epoch and within long ones, best.pth on improvement, metrics.json,
provenance.json, TensorBoard.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils import checkpoint, provenance
from utils.engine import MEND, check_finite
from utils.files import UserError, write_json
from utils.loading import DeviceBatches
from utils.logging import ScalarWriter, duration
from utils.runtime import Runtime
from utils.stage import expect_work

log = logging.getLogger("drs")
LOOK = 20  # batches from one question whether it is time to save to the next: processes must agree


class Figures(Protocol):
    """What is collected over an epoch (`labelling.image_scores.ImageScorer`); `update` takes the
    `state` of another one in."""

    def reset(self) -> None: ...
    def state(self) -> list[Tensor]: ...
    def update(self, *state: Any) -> None: ...


class Training:
    """The state of a training, between epochs and within one.

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
        self.loss = torch.zeros((), dtype=torch.float64, device=runtime.device)  # of this epoch
        self._start, self._lr, self._saved = time.monotonic(), 0.0, time.monotonic()
        self._begun: dict[str, Any] | None = None  # the epoch that last.pth was saved within
        self._replaces = True  # whether what lies in the folder is an older training's
        self._figures: Figures | None = None
        self._save_every = 0.0
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
            if (begun := state.rest.get("begun")) is not None:
                self._begun = begun | {"batches": int(begun["batches"])}
        except Exception as error:  # whatever damage there is: torch and we raise many types
            raise self._damaged(error) from error
        self._replaces = False
        return True

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"checkpoint {self.last}: damaged, training cannot go on from it "
                         f"({type(error).__name__}: {error}); use --overwrite to start over"
                         .replace("\n", " "))

    def epochs(self, total: int, batches: DeviceBatches, save_every: float = 0,
               figures: Figures | None = None) -> Iterator[int]:
        """The epochs that are left of `total`, counted from 1; `batches` are set to each.

        Args:
            save_every: minutes after which an epoch is saved in its middle; 0: it is not.
            figures: emptied at the start of each epoch; belong to what is saved within it.

        Raises:
            UserError: what last.pth says of the epoch that was begun is damaged.
        """
        done = len(self.history)
        self._save_every, self._figures = save_every, figures
        if not self._replaces:
            log.info("going on after %s of %d", self._reached(), total)
            if self.runtime.main:  # who was killed right after last.pth has not written these
                self._write_figures()
        expect_work(done < total)
        if done >= total:
            log.info("nothing to do: all %d are done", total)
        batches.foretell = total - done
        writer = self._writer = ScalarWriter(self.folder / "tensorboard", self.runtime.main)
        try:
            for epoch in range(done + 1, total + 1):
                self._begin(epoch, batches)
                yield epoch
                if batches.foretell and epoch < total:  # an epoch too short to time its batches
                    log.info("about %s for the %d %ss that are left",
                             duration((time.monotonic() - self._start) * (total - epoch)),
                             total - epoch, self.unit)
                    batches.foretell = 0
        finally:
            writer.close()

    def _begin(self, epoch: int, batches: DeviceBatches) -> None:
        """Set everything to the start of an epoch, or to where last.pth has left it."""
        self.loss.zero_()
        if self._figures is not None:
            self._figures.reset()
        begun, self._begun = self._begun, None
        if begun is None:
            batches.set_epoch(epoch)
            self._start, self._lr = time.monotonic(), self.optimizer.param_groups[0]["lr"]
            return
        try:
            if not 0 < begun["batches"] < len(batches):
                raise ValueError(f"batch {begun['batches']} of {len(batches)}")
            batches.set_epoch(epoch, begun["batches"])
            self._start = time.monotonic() - float(begun["seconds"])
            self._lr = float(begun["lr"])
            # Each process goes on with its own part; with several where there are fewer now.
            mine = slice(self.runtime.rank, None, self.runtime.world)
            for loss, part in zip(begun["losses"][mine], begun["figures"][mine], strict=True):
                self.loss += float(loss)
                if self._figures is not None:
                    self._figures.update(*part)
            check_finite(self.loss)
        except Exception as error:
            raise self._damaged(error) from error

    def _reached(self) -> str:
        """How far last.pth has come, in words."""
        if self._begun is None:
            return f"{self.unit} {len(self.history)}"
        return f"batch {self._begun['batches']} in {self.unit} {len(self.history) + 1}"

    def dry_run(self, batches: DeviceBatches, total: int) -> None:
        """Draw one batch, and say what the training would do.

        Raises:
            UserError: as `epochs`.
        """
        next(iter(batches))
        source = "the initial weights" if self._replaces else f"{self._reached()} of {self.last}"
        self._begin(len(self.history) + 1, batches)
        log.info("dry run: would train %d of %d %ss, %d batches each, from %s, into %s",
                 max(0, total - len(self.history)), total, self.unit, len(batches), source,
                 self.folder)

    def save_if_due(self, done: int) -> None:
        """Write last.pth within the epoch, if it is time; called after each optimizer step.

        Args:
            done: batches of the epoch that are trained.

        Raises:
            FloatingPointError: the loss or a weight is not finite; nothing is written.
        """
        if not self._save_every or self.runtime.world > 1 and done % LOOK:
            return
        due = time.monotonic() - self._saved >= 60 * self._save_every
        if not self.runtime.sum(torch.tensor(float(due))):
            return
        epoch = len(self.history) + 1
        check_finite(self.loss)
        self._check_weights(f"in {self.unit} {epoch}")
        parts = self.runtime.gather(
            (float(self.loss), self._figures.state() if self._figures is not None else []))
        if self.runtime.main:
            self._write_last({"batches": done, "losses": [loss for loss, _ in parts],
                              "figures": [figures for _, figures in parts], "lr": self._lr,
                              "seconds": time.monotonic() - self._start})
            log.info("saved after batch %d in %s %d", done, self.unit, epoch)
        self.runtime.barrier()
        self._saved = time.monotonic()

    def end_epoch(self, figures: Mapping[str, float], score: float | None = None) -> None:
        """Write the checkpoints and figures of an epoch that has been trained.

        Args:
            figures: what was measured: loss, steps, validation scores.
            score: the higher, the better; None: the last epoch counts as the best.

        Raises:
            FloatingPointError: a weight is not finite; nothing is written.
        """
        epoch = len(self.history) + 1
        self._check_weights(f"after {self.unit} {epoch}")
        figures = dict(figures)
        self.step += int(figures.pop("steps", 0))
        row = {"epoch": epoch, **figures, "lr": self._lr,
               "seconds": round(time.monotonic() - self._start, 2)}
        improved = score is None or score > self.best_score
        if score is not None:
            self.best_score = max(self.best_score, score)
        self.history.append(row)
        if self.runtime.main:
            # best.pth first: whoever is interrupted in between repeats the epoch, or its end, and
            # writes it again.
            if self.keep_best and improved:
                self._save(self.best, self._content())
            self._write_last(None)
            log.info("%s %d  %s%s", self.unit, epoch,
                     "  ".join(f"{name} {value:.4g}" for name, value in row.items()
                               if name != "epoch"), "  (best)" if score and improved else "")
            if self._writer is not None:
                self._writer.add({k: v for k, v in row.items() if k != "epoch"}, epoch)
        self.runtime.barrier()
        self._saved = time.monotonic()

    def _check_weights(self, when: str) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in self.model.state_dict().values()):
            raise FloatingPointError(
                f"the training diverged, weights are not finite {when}; {MEND}")

    def _save(self, path: Path, content: Mapping[str, Any]) -> None:
        if self._replaces:  # an older training, if any, ends here and not sooner
            for older in (self.last, self.best, self.final):
                older.unlink(missing_ok=True)
            self._replaces = False
        checkpoint.save(path, content)

    def _write_last(self, begun: Mapping[str, Any] | None) -> None:
        self._save(self.last, self._content() | {
            "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(), "begun": begun})
        self._write_figures()

    def _write_figures(self) -> None:
        write_json(self.folder / "metrics.json", self.history)
        self.record.write(self.folder)

    def _content(self) -> dict[str, Any]:
        config = cast("dict[str, Any]", self.model.config)
        return {"format": checkpoint.FORMAT, "network": dict(config),
                "classes": list(self.record.classes), "made_from": self.record.packed(),
                "model": self.model.state_dict(), "epoch": len(self.history),
                "step": self.step, "history": self.history,
                "best_score": None if self.best_score == -math.inf else self.best_score}

    def finish(self) -> None:
        """Write checkpoint_final.pth: the weights of the last epoch, and what rebuilds them."""
        if self.runtime.main:
            checkpoint.save(self.final, self._content())
            log.info("wrote %s", self.final)
        self.runtime.barrier()
