"""The order of the images, and the loaders that bring them to the device.

Every random choice in training is a function of (seed, epoch, image), drawn where the sample is
made. So the result depends neither on the number of processes or workers nor on interruptions.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from utils.files import UserError
from utils.logging import duration
from utils.processes import end_with_parent
from utils.runtime import Runtime

log = logging.getLogger("drs")
Batch = dict[str, Any]
WARM_UP, TIMED = 3, 10  # steps from which the time of a training is foretold


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches from an endless row of shuffles; yields lists of (epoch, index), this rank's share.

    Batch n holds positions n * batch_size and on. Each shuffle depends on (seed, its number) only,
    and its number travels with the index, so that workers can seed each sample by it.

    Args:
        length: images in the data set.
        batch_size: global batch; each of `world` processes takes its contiguous share, of which
            some are larger by one image where it cannot be divided.
        seed: of the shuffles.
        stretch: batches until the loop pauses (to save, to validate). None: one pass over the
            images, whose incomplete last batch is dropped, so that every pass is a new shuffle.
        total: batches in all; the last stretch may be shorter. None: no end.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1,
                 stretch: int | None = None, total: int | None = None) -> None:
        self.used = length if stretch else length // batch_size * batch_size  # of each shuffle
        self.length, self.batch_size, self.seed, self.total = length, batch_size, seed, total
        self.stretch = stretch or length // batch_size
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        # What the mean over this share counts in the mean over processes, which is what
        # DistributedDataParallel takes: by images, so that the result is that of one process.
        self.weight = (self.share.stop - self.share.start) * world / batch_size
        self.set_epoch(1)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Select the stretch, counted from 1, that is iterated over next, without its first `done`
        batches; its length remains that of the whole."""
        first, last = (epoch - 1) * self.stretch, epoch * self.stretch
        self.batches = range(first, last if self.total is None else min(last, self.total))
        self.done = done

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled, order = -1, np.empty(0, dtype=np.int64)
        for batch in self.batches[self.done:]:
            keys = []
            for position in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                number, place = divmod(position, self.used)
                if number != shuffled:
                    shuffled = number
                    order = np.random.default_rng((self.seed, number)).permutation(self.length)
                keys.append((number, int(order[place])))
            yield keys[self.share]


class DeviceBatches:
    """A loader whose batches arrive on the device, prepared by the data set's transform.

    Attributes:
        weight: what a mean over this process's images counts in the mean over processes.
        done: batches of this epoch that are left out, because they were trained before.
        foretell: how many epochs, from the one that comes next, the log is to say the time of.
    """

    def __init__(self, loader: DataLoader, runtime: Runtime) -> None:
        self.loader, self.device = loader, runtime.device
        self.dataset: Any = loader.dataset
        self.weight: float = getattr(loader.batch_sampler, "weight", 1.0)
        self.done = self.foretell = 0

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Select the epoch of a training loader, without its first `done` batches."""
        order: Any = self.loader.batch_sampler
        order.set_epoch(epoch, done)
        self.done = done

    def dry_run(self, todo: int, folder: Path) -> None:
        """Draw one batch, and say what a labelling stage would do."""
        for _ in self:
            break
        log.info("dry run: would write %d images in %d batches to %s", todo, len(self), folder)

    def __iter__(self) -> Iterator[Batch]:
        transform, start = self.dataset.transform, 0.0
        for index, batch in enumerate(self.loader):
            if self.foretell and index == WARM_UP:
                start = time.monotonic()
            elif self.foretell and index == WARM_UP + TIMED:
                each = (time.monotonic() - start) / TIMED
                log.info("%.2g s a batch: about %s in all, if validation takes none", each,
                         duration(each * (len(self) * self.foretell - self.done)))
                self.foretell = 0
            batch = {name: value.to(self.device, non_blocking=True)
                     if isinstance(value, torch.Tensor) else value
                     for name, value in batch.items()}
            # Without "image", every image of the batch was unreadable.
            yield transform.batch(batch) if "image" in batch else batch


def training_batches(dataset: Any, batch_size: int, runtime: Runtime, seed: int,
                     num_workers: int | None, collate: Callable, stretch: int | None = None,
                     total: int | None = None) -> DeviceBatches:
    """Shuffled batches without end; see `ShuffledBatches`. `dataset` is a Dataset with a length.

    Raises:
        UserError: there are fewer images than a batch holds, or fewer in a batch than processes.
    """
    if len(dataset) < batch_size and not stretch:
        raise UserError(f"--batch-size {batch_size} is larger than the list "
                        f"({len(dataset)} images): make it smaller or add images")
    if batch_size < runtime.world:
        raise UserError(f"a global batch of {batch_size} leaves some of {runtime.world} processes "
                        "without an image: use fewer processes, or a larger --batch-size "
                        "(DeepLab: SOLVER.BATCH_SIZE)")
    order = ShuffledBatches(len(dataset), batch_size, seed, runtime.rank, runtime.world,
                            stretch, total)
    return _batches(dataset, order, runtime, num_workers, collate, persistent=True)


def of_shard(todo: Sequence[int], batch_size: int, shard: tuple[int, int] | None) -> list[int]:
    """Those of the images `todo` that belong to shard I of N, which are whole batches of the list:
    of N batches that follow each other, each shard has one. None: all."""
    number, total = shard or (1, 1)
    return [index for index in todo if index // batch_size % total == number - 1]


def inference_batches(dataset: Any, todo: Sequence[int], batch_size: int, runtime: Runtime,
                      num_workers: int | None, collate: Callable) -> DeviceBatches:
    """The images `todo` (indices) in batches, every batch on exactly one process.

    The batches are cut from the whole data set, and one that holds any image to do is done whole:
    the company that an image keeps, which its last digit may depend on, is always the same.
    """
    wanted = set(todo)
    batches = [list(range(start, min(start + batch_size, len(dataset))))
               for start in range(0, len(dataset), batch_size)]
    mine = [batch for batch in batches if not wanted.isdisjoint(batch)]
    return _batches(dataset, mine[runtime.rank::runtime.world], runtime, num_workers, collate)


def _batches(dataset: Any, order: Any, runtime: Runtime, num_workers: int | None,
             collate: Callable, persistent: bool = False) -> DeviceBatches:
    if num_workers is None:
        num_workers = min(runtime.cores, len(order))
        log.info("%d data loading processes (--num-workers)", num_workers)
    loader = DataLoader(dataset, batch_sampler=order, num_workers=num_workers, collate_fn=collate,
                        pin_memory=runtime.device.type == "cuda", worker_init_fn=end_with_parent,
                        persistent_workers=persistent and num_workers > 0)
    return DeviceBatches(loader, runtime)
