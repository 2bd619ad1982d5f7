"""From logits to labels: streams of (sample, logits) and (sample, label), one image at a time.

Nothing is held for more than a few images, however long the list.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelling.crf import CRFParams, crf_labels
from libs.transforms import nearest
from utils import engine, provenance
from utils.files import UserError, atomic_write
from utils.loading import DeviceBatches
from utils.logging import progress
from utils.runtime import Runtime

Sample = dict[str, Any]


def run_network(model: nn.Module, batches: DeviceBatches, runtime: Runtime, desc: str,
                errors: list[str] | None = None) -> Iterator[tuple[Sample, Tensor]]:
    """(sample, logits (C, h, w) float32 on the device) of each image of batches of one.

    Args:
        errors: the messages of images that could not be read are added here.
    """
    def forward(network: nn.Module, batch: engine.Batch) -> list[Tensor]:
        return list(network(batch["image"]).float()) if "image" in batch else []

    for batch, results in engine.predict(model, batches, runtime, forward, desc):
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


def most_probable(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The argmax of `class_probabilities`, in the memory of a few rows: (*size) uint8.

    The logits are interpolated along rows once, then along columns for one strip after the other:
    the rows of the result that lie between the same two rows of logits. A class takes part in a
    strip only where it can win: interpolation stays between its two ends, so a class that is
    nowhere above what another has at both ends is below that one everywhere in between.

    Args:
        logits: (C, h, w), C at most 256.
        size: height and width of the result.
    """
    height, rows = size[0], logits.shape[1]
    wide = F.interpolate(logits[None].float(), (rows, size[1]), mode="bilinear",
                         align_corners=False)[0]
    # As F.interpolate with align_corners=False: pixels are areas, the outer ones reach the border.
    source = (torch.arange(height, dtype=torch.float32) + 0.5) * (rows / height) - 0.5
    source = source.clamp(min=0, max=rows - 1)
    upper = source.long()
    result = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    bounds = [0, *((upper[1:] != upper[:-1]).nonzero()[:, 0] + 1).tolist(), height]
    for first, last in pairwise(bounds):
        above = int(upper[first])
        below = min(above + 1, rows - 1)
        ends = torch.stack((wide[:, above], wide[:, below]))
        able = (ends.amax(dim=0) >= ends.amin(dim=0).amax(dim=0)).any(dim=1).nonzero()[:, 0]
        weight = (source[first:last] - above).to(logits.device)[:, None]
        strip = result[first:last]
        best = torch.full_like(strip, -torch.inf, dtype=torch.float32)
        for index in able.tolist():  # a running maximum: several times as fast as argmax
            score = torch.lerp(ends[0, index], ends[1, index], weight)
            strip.masked_fill_(score > best, index)
            torch.maximum(best, score, out=best)
    return result


def segment(stream: Iterable[tuple[Sample, Tensor]], crf: CRFParams | None = None
            ) -> Iterator[tuple[Sample, np.ndarray]]:
    """(sample, logits) -> (sample, label (H, W) uint8 at the image's own size).

    Args:
        stream: samples have "size" and, for the CRF, "pixels", which may be smaller: the CRF works
            at their size, and the nearest of its labels is taken.
        crf: refine the probabilities by a CRF; None: their maximum.
    """
    if crf is None:
        for sample, logits in stream:
            yield sample, most_probable(logits, sample["size"]).cpu().numpy()
    else:
        for sample, label in crf_labels(
                ((sample, sample["pixels"],
                  class_probabilities(logits, sample["pixels"].shape[:2]))
                 for sample, logits in stream), crf):
            yield sample, nearest(label.cpu().numpy(), sample["size"])


class LogitStore:
    """Logits on disk: ID.npz with "logits" (C, h, w) float16, compressed, one file an image.

    Args:
        folder: where they lie.
        made_from: what the logits come from. It is kept beside them once they are complete, so
            that those of another checkpoint or list are never taken for them.
    """

    def __init__(self, folder: Path, made_from: provenance.Record) -> None:
        options = {name: value for name, value in made_from.options.items() if name != "crf"}
        self.folder = folder
        self.made_from = replace(made_from, options=options)

    def record(self, stream: Iterable[tuple[Sample, Tensor]]) -> Iterator[tuple[Sample, Tensor]]:
        """Pass the stream on, storing its logits in the folder on the way."""
        (self.folder / provenance.RECORD).unlink(missing_ok=True)
        for sample, logits in stream:
            with atomic_write(self.folder / f"{sample['id']}.npz") as tmp:
                np.savez_compressed(tmp, logits=logits.half().cpu().numpy())
            yield sample, logits

    def finish(self) -> None:
        """Declare the logits complete; once, after all processes have stored theirs."""
        self.made_from.write(self.folder)

    def replay(self, batches: DeviceBatches, runtime: Runtime, desc: str
               ) -> Iterator[tuple[Sample, Tensor]]:
        """The stored logits of each image.

        Raises:
            UserError: they are missing, unfinished, damaged, or made from something else.
        """
        hint = "run `main.py test --save-logits` first"
        theirs = provenance.read(self.folder)
        if theirs is None:
            raise UserError(f"{self.folder}: no complete stored logits; {hint}")
        changed = theirs.differences(self.made_from) + theirs.list_differences(self.made_from)
        if changed:
            raise UserError(f"{self.folder}: the stored logits are made from something else "
                            f"({'; '.join(changed)}); {hint}")
        return self._replay(batches, runtime, desc, hint)

    def _replay(self, batches: DeviceBatches, runtime: Runtime, desc: str, hint: str
                ) -> Iterator[tuple[Sample, Tensor]]:
        labels = len(self.made_from.classes) + 1
        for batch in progress(batches, desc, enabled=runtime.main):
            sample = _only(batch)
            path = self.folder / f"{sample['id']}.npz"
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    logits = torch.from_numpy(arrays["logits"])
            except Exception as error:  # NumPy and zipfile raise a dozen types, by the damage
                raise UserError(f"{path}: no stored logits ({error}); {hint}") from error
            if (logits.dim() != 3 or len(logits) != labels or 0 in logits.shape
                    or not logits.is_floating_point() or not logits.isfinite().all()):
                raise UserError(f"{path}: damaged, no logits of {labels} labels; {hint}")
            yield sample, logits.to(runtime.device)
