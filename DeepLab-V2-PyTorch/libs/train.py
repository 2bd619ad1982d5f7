"""DeepLab's training: from a configuration and a data set to checkpoint_final.pth.

There is no best checkpoint: a choice by the score on val would be a choice on the reported split.
Source: DRS paper, section "Experiments".
"""

import argparse
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.voc import VOCDataset, collate
from libs.config import Config
from libs.deeplab import build
from libs.experiment import Experiment
from libs.init import initialise
from libs.losses import deeplab_loss
from libs.schedule import poly_schedule
from libs.transforms import Training as TrainingTransform
from utils import outputs, provenance
from utils.engine import Batch, train_epoch
from utils.loading import training_batches
from utils.logging import get_logger
from utils.runtime import now
from utils.setup import named_groups, suggest_lr
from utils.training import Training

log = get_logger()
LABELS = "refined_pseudo_segmentation_labels"  # in the data root, as in the official project


def train(args: argparse.Namespace, experiment: Experiment) -> None:
    """Train into `experiment.models`: last.pth, checkpoint_final.pth, metrics.json, TensorBoard.

    Raises:
        UserError: a file is missing or unfit, or last.pth was trained from something else.
    """
    config, runtime = experiment.config, experiment.runtime
    solver, seed = config.SOLVER, config.EXP.SEED
    experiment.open(experiment.models)
    root = experiment.data_root()
    labels_dir = config.DATASET.LABEL_DIR or root.root / LABELS
    train_set = VOCDataset(
        root, root.entries(config.SPLIT.TRAIN),
        TrainingTransform(config.IMAGE.MEAN, config.IMAGE.SCALES, config.IMAGE.CROP),
        mask_dir=labels_dir, seed=seed)
    batches = training_batches(
        train_set, solver.BATCH_SIZE, runtime, seed, config.RUN.NUM_WORKERS, collate,
        stretch=solver.ITER_SAVE * solver.ITER_SIZE, total=solver.ITER_MAX * solver.ITER_SIZE)

    model = runtime.move(build(experiment.network_config(len(root.classes) + 1)))
    factors = {"conv_weights": 1, "batch_norm": 1, "aspp_weights": solver.ASPP_FACTOR,
               "aspp_biases": 2 * solver.ASPP_FACTOR}
    decay = dict.fromkeys(factors, solver.WEIGHT_DECAY) | {"batch_norm": 0.0, "aspp_biases": 0.0}
    optimizer = torch.optim.SGD(
        named_groups(model.parameter_groups(), solver.LR, factors, decay),
        lr=solver.LR, momentum=solver.MOMENTUM)
    usual = Config().SOLVER
    suggest_lr(solver.BATCH_SIZE * solver.ITER_SIZE, usual.BATCH_SIZE * usual.ITER_SIZE, solver.LR,
               usual.LR)
    scheduler = poly_schedule(optimizer, solver.ITER_MAX, solver.POLY_POWER, solver.LR_DECAY)

    training = Training(experiment.models, model, optimizer, scheduler,
                        record_of(experiment, train_set, labels_dir), runtime, keep_best=False,
                        unit=f"stretch of {solver.ITER_SAVE} iterations")
    if not training.resume(args.overwrite):
        initialise(model, config.MODEL.INIT_MODEL)
    stretches = math.ceil(solver.ITER_MAX / solver.ITER_SAVE)
    if args.dry_run:
        return training.dry_run(batches, stretches)

    network = runtime.distribute(model, config.RUN.COMPILE)
    for _ in training.epochs(stretches, batches):
        figures = train_epoch(network, batches, partial(loss_fn, online=solver.ONLINE_LABEL),
                              training, accumulate=solver.ITER_SIZE, after_step=scheduler.step)
        training.end_epoch(figures)
    training.finish()


def loss_fn(network: nn.Module, batch: Batch, online: str) -> Tensor:
    """The training loss of one batch."""
    return deeplab_loss(network(batch["image"]), batch["mask"], batch["present"], online)["loss"]


def record_of(experiment: Experiment, train_set: VOCDataset, labels_dir: Path
              ) -> provenance.Record:
    """What the training is made from."""
    config, root = experiment.config, train_set.root
    source = config.MODEL.INIT_MODEL
    record = provenance.Record(
        "DeepLab-V2", config.shaping() | {"precision": experiment.runtime.precision},
        list(root.classes), made=now(), places={"images": str(root.image_dir)},
        images=outputs.image_facts(root, train_set.entries))
    if isinstance(source, str):
        record.inputs["initial weights"] = source
    else:
        record.add_file("initial weights", source)
    provenance.upstream(record, "pseudo labels", labels_dir,
                        [entry.id for entry in train_set.entries])
    return record
