"""The training loss: cross entropy against the pseudo label and against an online pseudo label.

Source: DRS paper, section "Experiments"; the official code's form, which the numbers come from.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from labelling.labels import IGNORE

ONLINE_MODES = ("official", "masked", "off")


@lru_cache(maxsize=64)
def _nearest(length: int, out: int) -> Tensor:
    """The `out` positions that Pillow's nearest resize reads of `length`.

    Position i is floor((i + 0.5) * length / out), with Pillow's habit of adding up steps in
    float64: where the exact value is a whole number, the sum may lie a little under it.
    """
    steps = np.full(out, length / out)
    steps[0] /= 2
    return torch.from_numpy(np.cumsum(steps).astype(np.int64))


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest resize by Pillow's convention: (B, H, W) -> (B, *size), `size` = (height, width)."""
    rows, columns = (_nearest(length, out).to(labels.device)
                     for length, out in zip(labels.shape[1:], size, strict=True))
    return labels[:, rows[:, None], columns]


def online_labels(logits: Tensor, present: Tensor, mode: str = "official") -> Tensor:
    """The network's own prediction among the classes present, as a label.

    Args:
        logits: (B, C, h, w); no gradient flows back.
        present: (B, C), 1 for the background and the classes of the image, 0 otherwise.
        mode: "official" multiplies the logits by `present`: a zeroed absent class then beats a
            present class whose logit is negative. The published numbers come from it.
            "masked" takes absent classes out of the maximum.

    Returns:
        (B, h, w) int64.
    """
    logits, present = logits.detach(), present[:, :, None, None]
    if mode == "official":
        return (logits * present).argmax(dim=1)
    if mode == "masked":
        return logits.masked_fill(present == 0, -torch.inf).argmax(dim=1)
    raise ValueError(f"no online label in mode {mode!r}; modes: {', '.join(ONLINE_MODES)}")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the pixels that are not 255, 0 if there are none.

    With several processes, the sum over this one's pixels is divided by what its share of the
    images has on average over all of them. Weighted by images, as `train_epoch` does, and averaged
    over processes, the gradients are then those of one process with the whole batch.
    """
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    count = (labels != IGNORE).sum().to(total.dtype)
    if dist.is_initialized():
        everywhere = torch.stack((count, count.new_tensor(float(len(labels)))))
        dist.all_reduce(everywhere)
        count = everywhere[0] * len(labels) / everywhere[1]
    return total / count.clamp(min=1)


def deeplab_loss(maps: list[Tensor], labels: Tensor, present: Tensor,
                 online: str = "official") -> dict[str, Tensor]:
    """Both terms, each summed over the logit maps.

    Args:
        maps: logits (B, C, h_i, w_i), one for each scale and their maximum.
        labels: pseudo labels (B, H, W) int64, 255 = ignore.
        present: see `online_labels`.
        online: "official", "masked" or "off" (no online term).

    Returns:
        "loss" to minimise, and its parts "pseudo" and "online" (the latter unless off).
    """
    maps = [logits.float() for logits in maps]
    parts = {"pseudo": torch.stack([cross_entropy(logits, resize_labels(
        labels, (logits.shape[2], logits.shape[3]))) for logits in maps]).sum()}
    if online != "off":
        parts["online"] = torch.stack([F.cross_entropy(logits, online_labels(
            logits, present, online)) for logits in maps]).sum()
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}
