"""One dataset for all stages: it opens only the files that a stage asks for.

In: a `DataRoot` and entries of a list. Out: dict samples with "id", "size" (height, width of the
original), "image" (3, H, W) uint8, "labels" (C,) and, if asked for, "saliency" and "mask" (H, W),
"maps" (K, h, w) of the classes "map_class" (K,); and batches of them.
`python -m datasets.voc check ROOT` inspects a data root, `... make-list` writes lists.
"""

import argparse
import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datasets import transforms
from datasets.images import read_companion, read_image
from datasets.layout import DataRoot, Entry, label_vector
from labelling.labels import SALIENCY_THRESHOLD
from labelling.maps import load_maps
from utils.files import UserError
from utils.options import resolve_background

log = logging.getLogger("drs")


class VOCDataset(Dataset):
    """Samples of a list.

    Args:
        root: the data set.
        entries: the images.
        transform: its first half makes the samples, with random choices that depend on (seed,
            epoch, index) only; its second half is for who takes the batches to their device.
        saliency_dir, maps_dir, mask_dir: folders of the companions to open; None: not opened.
        seed: of the random choices.
        tolerant: an unreadable sample becomes {"error": message} instead of an exception, so
            that one bad file does not stop the labelling of the others.

    Raises:
        UserError: a companion file is missing (looked for at once, not an hour into training).
    """

    def __init__(self, root: DataRoot, entries: Sequence[Entry], transform: transforms.Transform, *,
                 saliency_dir: Path | None = None, maps_dir: Path | None = None,
                 mask_dir: Path | None = None, seed: int = 0, tolerant: bool = False) -> None:
        self.root, self.entries, self.transform = root, entries, transform
        self.saliency_dir, self.maps_dir, self.mask_dir = saliency_dir, maps_dir, mask_dir
        self.seed, self.tolerant = seed, tolerant
        for folder in (saliency_dir, maps_dir, mask_dir):
            if folder is not None:
                require_files(folder, entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng((self.seed, epoch, index))
        try:
            return self.transform.sample(self.load(index), rng)
        except UserError as error:
            if not self.tolerant:
                raise
            return {"error": str(error)}

    def load(self, index: int) -> dict[str, Any]:
        """The sample before its transform: "image" is Pillow's, the others are arrays."""
        entry = self.entries[index]
        image, orientation = read_image(self.root.image(entry.id))
        size = (image.height, image.width)
        sample: dict[str, Any] = {
            "id": entry.id, "size": size, "image": image,
            "labels": torch.from_numpy(label_vector(entry.labels, len(self.root.classes)))}
        name = f"{entry.id}.png"
        if self.saliency_dir is not None:
            saliency = read_companion(self.saliency_dir / name, size, orientation)
            sample["saliency"] = (saliency > SALIENCY_THRESHOLD).astype(np.uint8)
        if self.mask_dir is not None:
            sample["mask"] = read_companion(self.mask_dir / name, size, orientation)
        if self.maps_dir is not None:
            sample["maps"], classes = load_maps(self.maps_dir / name, len(self.root.classes))
            sample["map_class"] = torch.tensor(classes, dtype=torch.long)
        return sample


def validation_set(root: DataRoot, args: argparse.Namespace) -> VOCDataset | None:
    """The images whose masks choose the best checkpoint, or None where there are no masks.

    Args:
        args: with val_list, image_size and the labelling options.

    Raises:
        UserError: `--val-list` names a list that does not exist although masks do.
    """
    if args.val_list == "none" or not root.mask_dir.is_dir():
        return None
    if args.background is None and args.saliency_dir is None and not root.saliency_dir.is_dir():
        log.info("no saliency maps and no --background: no validation")
        return None
    return VOCDataset(root, root.entries(args.val_list), transforms.Evaluation(args.image_size),
                      saliency_dir=resolve_background(args, root.saliency_dir),
                      mask_dir=root.mask_dir)


def require_files(folder: Path, entries: Sequence[Entry]) -> None:
    """Check that `folder` has ID.png for every entry.

    Raises:
        UserError: naming the folder or the first missing file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    there = {path.name for path in folder.iterdir()}
    missing = [entry.id for entry in entries if f"{entry.id}.png" not in there]
    if missing:
        raise UserError(f"{folder / missing[0]}.png: missing"
                        + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""))


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: images, labels and whatever has one shape are stacked, the rest are lists.

    Localization maps stay sparse: "maps" (sum of K, h, w) uint8 holds those of all samples one
    after the other, "map_owner" and "map_class" (sum of K,) int64 say whose and of which class.
    Samples that failed are left out; their messages are listed under "errors".
    """
    good = [sample for sample in samples if "error" not in sample]
    batch: dict[str, Any] = {"errors": [s["error"] for s in samples if "error" in s]}
    for name in good[0] if good else ():
        values = [sample[name] for sample in good]
        if name in ("maps", "map_class"):
            batch[name] = torch.cat(values)
        elif isinstance(values[0], Tensor) and len({value.shape for value in values}) == 1:
            batch[name] = _stack(values)
        else:
            batch[name] = values
    if "maps" in batch:
        counts = torch.tensor([len(sample["maps"]) for sample in good])
        batch["map_owner"] = torch.arange(len(good)).repeat_interleave(counts)
    return batch


def _stack(values: list[Tensor]) -> Tensor:
    """One tensor of many; images that lie pixel by pixel stay so (channels_last)."""
    if values[0].dim() == 3 and not values[0].is_contiguous():
        return default_collate([value.permute(1, 2, 0) for value in values]).permute(0, 3, 1, 2)
    return default_collate(values)


if __name__ == "__main__":
    # By name: the commands use this module, and two that import each other are a circle.
    import_module("datasets.command").main()
