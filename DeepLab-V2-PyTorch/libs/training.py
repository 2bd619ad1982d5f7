"""DeepLab's training: from a configuration and a data set to checkpoint_final.pth."""

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.layout import DataRoot
from datasets.voc import VOCDataset
from libs import transforms
from libs.config import Config
from libs.data import training_loader
from libs.deeplab import MultiScale, build
from libs.init import initialise
from libs.losses import deeplab_loss
from libs.schedule import poly_schedule
from utils import checkpoint
from utils.engine import Batch, fit, named_groups
from utils.files import write_json
from utils.logging import ScalarWriter
from utils.runtime import Runtime

log = logging.getLogger("drs")
LABELS = "refined_pseudo_segmentation_labels"  # in the data root, as in the official project
NO_DECAY = ("batch_norm", "aspp_biases")


class TrainingFolder(checkpoint.TrainingFolder):
    """`last.pth` after every stretch of iterations, `checkpoint_final.pth` at the end.

    There is no best one: a choice by the score on val would be a choice on the reported split.
    """

    @property
    def final(self) -> Path:
        """The result of the training."""
        return self.folder / "checkpoint_final.pth"

    def clear(self) -> None:
        """Forget an earlier training."""
        super().clear()
        self.final.unlink(missing_ok=True)

    def save(self, state: dict[str, Any], best: bool) -> None:
        """Write `last.pth`."""
        super().save(state, best=False)

    def finish(self, model: nn.Module) -> None:
        """Write `checkpoint_final.pth`: the weights and what rebuilds the network."""
        checkpoint.save(self.final, self._record | {"model": model.state_dict()})
        log.info("wrote %s", self.final)


def network_config(config: Config, num_classes: int) -> dict[str, Any]:
    """The configured network with `num_classes` (background included), as `build` takes it."""
    model = config.MODEL
    return {"num_classes": num_classes, "blocks": model.BLOCKS, "width": model.WIDTH,
            "rates": model.ATROUS_RATES, "freeze_bn": model.FREEZE_BN, "scales": model.SCALES}


def loss_fn(network: nn.Module, batch: Batch, online: str) -> Tensor:
    """The training loss of one batch."""
    return deeplab_loss(network(batch["image"]), batch["mask"], batch["present"], online)["loss"]


def build_optimizer(model: MultiScale, config: Config) -> torch.optim.SGD:
    """SGD with the learning rate and weight decay of each parameter group."""
    solver = config.SOLVER
    factors = {"conv_weights": 1, "batch_norm": 1, "aspp_weights": solver.ASPP_FACTOR,
               "aspp_biases": 2 * solver.ASPP_FACTOR}
    groups = named_groups(model.parameter_groups(), solver.LR, factors,
                          weight_decay=solver.WEIGHT_DECAY)
    for group in groups:
        if group["name"] in NO_DECAY:
            group["weight_decay"] = 0.0
    return torch.optim.SGD(groups, lr=solver.LR, momentum=solver.MOMENTUM)


def train(config: Config, root: DataRoot, folder: Path, runtime: Runtime,
          overwrite: bool = False) -> None:
    """Train into `folder`: last.pth, checkpoint_final.pth, metrics.json, TensorBoard events.

    Goes on from `last.pth` if it is there.

    Args:
        overwrite: start over instead.

    Raises:
        UserError: a file is missing or unfit, or `last.pth` was trained with other options.
    """
    solver = config.SOLVER
    dataset = VOCDataset(
        root, root.entries(config.SPLIT.TRAIN),
        transforms.training(config.IMAGE.MEAN, config.IMAGE.SCALES, config.IMAGE.CROP),
        mask_dir=config.DATASET.LABEL_DIR or root.root / LABELS, seed=config.EXP.SEED)
    loader = training_loader(
        dataset, solver.BATCH_SIZE, solver.ITER_MAX * solver.ITER_SIZE,
        solver.ITER_SAVE * solver.ITER_SIZE, config.EXP.SEED, runtime, config.RUN.NUM_WORKERS)
    model = build(network_config(config, len(root.classes) + 1))
    store = TrainingFolder(folder, model.config, root.classes, config.shaping())
    if runtime.main:
        store.prepare(overwrite)
    runtime.barrier()
    if not store.last.exists():
        initialise(model, config.MODEL.INIT_MODEL)
    model = runtime.place(model)
    optimizer = build_optimizer(model, config)
    scheduler = poly_schedule(optimizer, solver.ITER_MAX, solver.POLY_POWER, solver.LR_DECAY)
    log.info("training on %d images, %d iterations of %d x %d images", len(dataset),
             solver.ITER_MAX, solver.ITER_SIZE, solver.BATCH_SIZE)
    writer = ScalarWriter(folder / "tensorboard", runtime.main)
    history = fit(model, runtime.distribute(model), loader,
                  partial(loss_fn, online=solver.ONLINE_LABEL), optimizer, scheduler, runtime,
                  store, epochs=math.ceil(solver.ITER_MAX / solver.ITER_SAVE),
                  accumulate=solver.ITER_SIZE, step_schedule=True, writer=writer,
                  unit=f"{solver.ITER_SAVE} iterations")
    writer.close()
    if runtime.main:
        write_json(folder / "metrics.json", history)
        store.finish(model)
