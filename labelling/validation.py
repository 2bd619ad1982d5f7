"""How good a network's pseudo labels are, measured during training to choose a checkpoint."""

import argparse
from typing import Any

import torch

from labelling.metrics import ConfusionMatrix
from labelling.rule import background_scores, fuse
from utils.engine import predict
from utils.loading import DeviceBatches
from utils.logging import get_logger
from utils.runtime import Runtime

log = get_logger()


def validate(model: Any, batches: DeviceBatches | None, args: argparse.Namespace,
             runtime: Runtime) -> dict[str, float]:
    """mIoU of the pseudo labels by the rule without its ignore steps, at one scale.

    Args:
        model: has `localization_maps`.
        batches: with image, labels, mask and, if that is the background cue, saliency, all of one
            square size. None: there is nothing to validate on.
        args: with alpha and background_score.

    Returns:
        {"miou", "precision", "recall"} over the images of all processes; {} without batches.
    """
    if batches is None:
        return {}
    num_classes = len(batches.dataset.root.classes)
    matrix = ConfusionMatrix(num_classes + 1)

    def forward(network: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
        size = tuple(batch["image"].shape[2:])
        return network.localization_maps(batch["image"], batch["labels"],
                                         [size] * len(batch["image"]), [size[0]])

    for batch, results in predict(model, batches, runtime, forward, "validation"):
        for i, scores in enumerate(results):
            saliency = batch["saliency"][i].squeeze() if "saliency" in batch else None
            height, width = scores.shape[1:]
            background = background_scores((height, width), saliency, args.background_score)
            label = fuse(scores, batch["labels"][i].nonzero()[:, 0],
                         background.to(scores.device), alpha=args.alpha, ignore=False)
            matrix.update(label.cpu(), batch["mask"][i].squeeze().cpu())
    matrix.counts = runtime.sum(matrix.counts)
    result = matrix.scores()
    return {"miou": result.miou, "precision": result.precision, "recall": result.recall}
