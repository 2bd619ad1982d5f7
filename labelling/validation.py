"""How good a network's pseudo labels are, measured during training to choose a checkpoint."""

from collections.abc import Iterable
from typing import Any

import torch

from labelling.labels import background_scores, fuse
from labelling.metrics import ConfusionMatrix
from utils.engine import predict


def pseudo_label_scores(model: Any, loader: Iterable[dict[str, Any]], runtime: Any, *,
                        num_classes: int, alpha: float, background_score: float
                        ) -> dict[str, float]:
    """mIoU of the pseudo labels by the rule without its ignore steps, at one scale.

    Args:
        model: has `localization_maps`.
        loader: batches with image, labels, mask and, if that is the background cue, saliency, all
            of one square size.

    Returns:
        {"miou", "precision", "recall"} over the images of all processes.
    """
    matrix = ConfusionMatrix(num_classes + 1)

    def forward(network: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
        size = tuple(batch["image"].shape[2:])
        return network.localization_maps(batch["image"], batch["labels"],
                                         [size] * len(batch["image"]), [size[0]])

    for batch, results in predict(model, loader, runtime, forward, "validation"):
        for i, scores in enumerate(results):
            saliency = batch["saliency"][i].squeeze() if "saliency" in batch else None
            background = background_scores(tuple(scores.shape[1:]), saliency, background_score)
            label = fuse(scores, batch["labels"][i].nonzero()[:, 0],
                         background.to(scores.device), alpha=alpha, ignore=False)
            matrix.update(label, batch["mask"][i].squeeze())
    matrix.counts = runtime.sum(matrix.counts)
    scores = matrix.scores()
    return {"miou": scores.miou, "precision": scores.precision, "recall": scores.recall}
