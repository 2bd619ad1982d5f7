"""Loaders of DeepLab: an endless shuffle counted in iterations, and plain images to predict.

Every random choice is a function of (seed, epoch, image): the result depends neither on workers
nor on processes nor on interruptions.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2.functional import pil_to_tensor

from datasets.images import read_image
from datasets.layout import IMAGE_SUFFIXES
from datasets.transforms import Transform
from datasets.voc import VOCDataset
from utils.files import UserError
from utils.runtime import Runtime


class IterationSampler(Sampler[tuple[int, int]]):
    """One stretch of an endless shuffle; yields (epoch, index) of this process's samples.

    The images are shuffled anew each epoch, and the epochs follow each other without a gap: batch
    n holds positions n * batch_size and on. `set_epoch(s)` selects stretch s, counted from 1.

    Args:
        length: images in the data set.
        batch_size: global batch; this process takes its contiguous share of each.
        total: batches in all.
        stretch: batches in one stretch; the last may be shorter.
    """

    def __init__(self, length: int, batch_size: int, total: int, stretch: int, seed: int,
                 rank: int = 0, world: int = 1) -> None:
        self.length, self.batch_size, self.total, self.stretch = length, batch_size, total, stretch
        self.seed, self.share = seed, batch_size // world
        self.first_of_rank = rank * self.share
        self.set_epoch(1)

    def set_epoch(self, epoch: int) -> None:
        """Select the stretch that is iterated over next."""
        first = (epoch - 1) * self.stretch
        self.batches = range(first, min(first + self.stretch, self.total))

    def __len__(self) -> int:
        return len(self.batches) * self.share

    def __iter__(self) -> Iterator[tuple[int, int]]:
        shuffled, order = -1, np.empty(0, dtype=np.int64)
        for batch in self.batches:
            first = batch * self.batch_size + self.first_of_rank
            for position in range(first, first + self.share):
                epoch, place = divmod(position, self.length)
                if epoch != shuffled:
                    shuffled = epoch
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
                yield epoch, int(order[place])


def training_loader(dataset: VOCDataset, batch_size: int, total: int, stretch: int, seed: int,
                    runtime: Runtime, num_workers: int) -> DataLoader:
    """Batches of `dataset` in `IterationSampler`'s order.

    Raises:
        UserError: the batch cannot be divided among the processes.
    """
    if batch_size % runtime.world:
        raise UserError(f"SOLVER.BATCH_SIZE {batch_size} is the global batch and cannot be "
                        f"divided among {runtime.world} processes")
    sampler = IterationSampler(len(dataset), batch_size, total, stretch, seed, runtime.rank,
                               runtime.world)
    return DataLoader(dataset, sampler.share, sampler=sampler, num_workers=num_workers,
                      pin_memory=runtime.device.type == "cuda",
                      persistent_workers=num_workers > 0)


class Pictures(Dataset):
    """Images without a data set around them; an unreadable one becomes {"error": message}."""

    def __init__(self, paths: Sequence[Path], transform: Transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        try:
            image, _ = read_image(path)
        except UserError as error:
            return {"error": str(error)}
        return self.transform({"id": path.stem, "size": (image.height, image.width),
                               "pixels": np.asarray(image), "image": pil_to_tensor(image)})


def find_pictures(source: Path) -> list[Path]:
    """The image `source`, or the images in the folder `source`.

    Raises:
        UserError: there are none, or two would have one name (a.jpg and a.png).
    """
    if source.is_dir():
        paths = sorted(path for path in source.iterdir()
                       if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    else:
        paths = [source] if source.is_file() else []
    if not paths:
        raise UserError(f"--input {source}: no image there ({', '.join(sorted(IMAGE_SUFFIXES))})")
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(path.stem, path)
        if other != path:
            raise UserError(f"--input: {other} and {path.name} would both become "
                            f"{path.stem}.png")
    return paths
