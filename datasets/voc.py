"""One dataset for all stages: it opens only the files that a stage asks for.

In: a `DataRoot` and entries of a list. Out: dict samples with "id", "size" (height, width of the
original), "image" (3, H, W), "labels" (C,) and, if asked for, "saliency", "maps", "mask".
`python -m datasets.voc check ROOT` inspects a data root, `... make-list` writes lists.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from datasets import transforms
from datasets.images import read_companion, read_image
from datasets.layout import DataRoot, Entry, label_vector
from labelling.labels import SALIENCY_THRESHOLD
from labelling.maps import dense_maps, load_maps
from utils.files import UserError
from utils.options import resolve_background

log = logging.getLogger("drs")

class VOCDataset(Dataset):
    """Samples of a list.

    Args:
        root: the data set.
        entries: the images.
        transform: applied to each sample; its random choices depend on (seed, epoch, index) only.
        saliency_dir, maps_dir, mask_dir: folders of the companions to open; None: not opened.
        pixels: also keep the image itself as "pixels", (H, W, 3) uint8.
        seed: of the random choices.
        tolerant: an unreadable sample becomes {"error": message} instead of an exception, so
            that one bad file does not stop the labelling of the others.

    Raises:
        UserError: a companion file is missing (looked for at once, not an hour into training).
    """

    def __init__(self, root: DataRoot, entries: Sequence[Entry], transform: transforms.Transform, *,
                 saliency_dir: Path | None = None, maps_dir: Path | None = None,
                 mask_dir: Path | None = None, pixels: bool = False, seed: int = 0,
                 tolerant: bool = False) -> None:
        self.root, self.entries, self.transform = root, entries, transform
        self.saliency_dir, self.maps_dir, self.mask_dir = saliency_dir, maps_dir, mask_dir
        self.pixels, self.seed, self.tolerant = pixels, seed, tolerant
        for folder in (saliency_dir, maps_dir, mask_dir):
            if folder is not None:
                require_files(folder, entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        try:
            sample = self.load(index)
        except UserError as error:
            if not self.tolerant:
                raise
            return {"error": str(error)}
        with torch.random.fork_rng(devices=[]):
            state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)
            torch.default_generator.manual_seed(int(state[0]))
            return self.transform(sample)

    def load(self, index: int) -> dict[str, Any]:
        """The sample before its transform."""
        entry = self.entries[index]
        image, orientation = read_image(self.root.image(entry.id))
        size = (image.height, image.width)
        sample: dict[str, Any] = {
            "id": entry.id, "size": size,
            "image": tv_tensors.Image(F.pil_to_tensor(image)),
            "labels": torch.from_numpy(label_vector(entry.labels, len(self.root.classes)))}
        if self.pixels:
            sample["pixels"] = np.asarray(image)
        name = f"{entry.id}.png"
        if self.saliency_dir is not None:
            saliency = read_companion(self.saliency_dir / name, size, orientation)
            sample["saliency"] = tv_tensors.Mask(
                torch.from_numpy(saliency > SALIENCY_THRESHOLD).to(torch.uint8))
        if self.mask_dir is not None:
            mask = read_companion(self.mask_dir / name, size, orientation)
            sample["mask"] = tv_tensors.Mask(torch.from_numpy(mask))
        if self.maps_dir is not None:
            maps, classes = load_maps(self.maps_dir / name, len(self.root.classes))
            sample["maps"] = transforms.Maps(torch.from_numpy(
                dense_maps(maps, classes, len(self.root.classes))))
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
    return VOCDataset(root, root.entries(args.val_list), transforms.evaluation(args.image_size),
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

    Samples that failed are left out; their messages are listed under "errors".
    """
    good = [sample for sample in samples if "error" not in sample]
    batch: dict[str, Any] = {"errors": [s["error"] for s in samples if "error" in s]}
    for name in good[0] if good else ():
        values = [sample[name] for sample in good]
        same = isinstance(values[0], torch.Tensor) and len({v.shape for v in values}) == 1
        batch[name] = default_collate([v.as_subclass(torch.Tensor) for v in values]) \
            if same else values
    return batch


if __name__ == "__main__":
    from datasets.check import main

    main()
