"""From logits to labels: streams of (sample, logits) and (sample, label), one image at a time.

Nothing is held for more than a few images, however long the list.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from labelling.crf import CRFParams, crf_labels
from utils import engine
from utils.files import UserError, atomic_write, write_json
from utils.logging import progress
from utils.runtime import Runtime

Sample = dict[str, Any]


def run_network(model: nn.Module, loader: DataLoader, runtime: Runtime, desc: str,
                errors: list[str] | None = None) -> Iterator[tuple[Sample, Tensor]]:
    """(sample, logits (C, h, w) float32 on the device) of each image of a loader of batch 1.

    Args:
        errors: the messages of images that could not be read are added here.
    """
    def forward(network: nn.Module, batch: engine.Batch) -> list[Tensor]:
        return list(network(batch["image"]).float()) if "image" in batch else []

    for batch, results in engine.predict(model, loader, runtime, forward, desc):
        if errors is not None:
            errors += batch["errors"]
        for logits in results:
            yield _only(batch), logits


def _only(batch: engine.Batch) -> Sample:
    """The one sample of a batch, without its network input."""
    return {name: values[0] for name, values in batch.items() if name not in ("image", "errors")}


def class_probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (C, h, w) -> softmax at the image's size, (C, *size)."""
    return F.interpolate(logits[None].float(), size, mode="bilinear",
                         align_corners=False)[0].softmax(dim=0)


def segment(stream: Iterable[tuple[Sample, Tensor]], crf: CRFParams | None = None,
            processes: int = 1) -> Iterator[tuple[Sample, np.ndarray]]:
    """(sample, logits) -> (sample, label (H, W) uint8 at the image's size).

    Args:
        stream: samples have "size" and, for the CRF, "pixels".
        crf: refine the probabilities by a CRF; None: their maximum.
        processes: of the CRF.
    """
    if crf is None:
        for sample, logits in stream:
            label = class_probabilities(logits, sample["size"]).argmax(dim=0)
            yield sample, label.to(torch.uint8).cpu().numpy()
    else:
        yield from crf_labels(
            ((sample, sample["pixels"], class_probabilities(logits, sample["size"]).cpu().numpy())
             for sample, logits in stream), processes, crf)


class LogitStore:
    """Logits on disk: ID.npz with "logits" (C, h, w) float16, compressed, one file an image.

    Args:
        folder: where they lie.
        origin: the fingerprint of the checkpoint they come from. It is written beside them, so
            that the logits of another checkpoint are never taken for them.
    """

    def __init__(self, folder: Path, origin: str) -> None:
        self.folder, self.stamp, self.origin = folder, folder / "made_by.json", origin

    def record(self, stream: Iterable[tuple[Sample, Tensor]]) -> Iterator[tuple[Sample, Tensor]]:
        """Pass the stream on, storing its logits on the way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stamp.unlink(missing_ok=True)
        for sample, logits in stream:
            with atomic_write(self.folder / f"{sample['id']}.npz") as tmp:
                np.savez_compressed(tmp, logits=logits.half().cpu().numpy())
            yield sample, logits

    def finish(self) -> None:
        """Declare the logits complete; once, after all processes have stored theirs."""
        write_json(self.stamp, {"checkpoint": self.origin})

    def replay(self, loader: DataLoader, runtime: Runtime, desc: str
               ) -> Iterator[tuple[Sample, Tensor]]:
        """The stored logits of each image of a loader of batch 1.

        Raises:
            UserError: they are missing, unfinished, or those of another checkpoint.
        """
        hint = "run `main.py test --save-logits` first"
        if not self.stamp.is_file():
            raise UserError(f"{self.folder}: no complete stored logits; {hint}")
        if json.loads(self.stamp.read_text()) != {"checkpoint": self.origin}:
            raise UserError(f"{self.folder}: the stored logits are of another checkpoint; {hint}")
        for batch in progress(loader, desc, enabled=runtime.main):
            sample = _only(batch)
            path = self.folder / f"{sample['id']}.npz"
            try:
                with np.load(path) as arrays:
                    logits = torch.from_numpy(arrays["logits"])
            except (OSError, KeyError, ValueError) as error:
                raise UserError(f"{path}: no stored logits ({error}); {hint}") from error
            yield sample, logits
