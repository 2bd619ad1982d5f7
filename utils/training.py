"""What the two trainings on image-level labels share, from initial weights to metrics file."""

import argparse
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import Dataset

from labelling.validation import pseudo_label_scores
from utils.checkpoint import TrainingFolder, read
from utils.engine import Batch, fit, named_groups
from utils.files import UserError, write_json
from utils.logging import ScalarWriter
from utils.runtime import Runtime, inference_loader, training_loader
from utils.stage import shaping_options

log = logging.getLogger("drs")


def init_trunk(model: Any, source: str) -> None:
    """Give `model` its initial trunk: "imagenet", "none" (random) or a checkpoint file.

    Raises:
        UserError: the weights cannot be fetched or do not fit.
    """
    if source == "none":
        log.info("initial weights: random")
        return
    if source == "imagenet":
        try:
            model.load_imagenet()
        except (OSError, RuntimeError) as error:  # no network, or a broken download
            raise UserError(
                f"--init imagenet: torchvision's VGG-16 weights cannot be loaded ({error}); "
                "download vgg16-397923af.pth into ~/.cache/torch/hub/checkpoints/, or use "
                "--init none or --init FILE") from error
        log.info("initial weights: torchvision's ImageNet VGG-16")
        return
    try:
        names = model.load_trunk(read(source).state)
    except ValueError as error:
        raise UserError(f"--init {source}: {error}") from error
    log.info("initial weights: %d trunk tensors of %s; head and DRS at random", len(names), source)


def train_network(args: argparse.Namespace, runtime: Runtime, model: Any, classes: list[str],
                  optimizer_type: Callable[..., torch.optim.Optimizer],
                  lr_factors: dict[str, float], loss_fn: Callable[[nn.Module, Batch], Tensor],
                  train_set: Dataset, val_set: Dataset | None, collate: Callable) -> None:
    """Train `model` into `args.output_dir`: last.pth, best.pth, metrics.json, TensorBoard.

    Args:
        model: has `parameter_groups`, `load_trunk`, `localization_maps` and `config`.
        optimizer_type: parameter groups -> optimizer.
        lr_factors: name of a parameter group -> factor on --lr.
        val_set: images with masks that choose the best checkpoint; None: the last is the best.
    """
    store = TrainingFolder(args.output_dir, model.config, classes, shaping_options(args))
    if runtime.main:
        store.prepare(args.overwrite)
    runtime.barrier()
    if not store.last.exists():
        init_trunk(model, args.init)
    model = runtime.place(model)
    optimizer = optimizer_type(named_groups(model.parameter_groups(), args.lr, lr_factors,
                                            weight_decay=args.weight_decay), lr=args.lr)
    scheduler = MultiStepLR(optimizer, [epoch - 1 for epoch in args.milestones])
    loader = training_loader(train_set, args.batch_size, runtime, args.seed, args.num_workers,
                             collate)
    validate = None
    if val_set is not None:
        val_loader = inference_loader(val_set, range(len(val_set)), args.batch_size, runtime,
                                      args.num_workers, collate)
        validate = partial(pseudo_label_scores, model, val_loader, runtime,
                           num_classes=len(classes), alpha=args.alpha,
                           background_score=args.background_score)
    log.info("training on %d images, %s", len(train_set),
             f"validating on {len(val_set)}" if val_set is not None
             else "no validation: the last checkpoint is kept")
    writer = ScalarWriter(args.output_dir / "tensorboard", runtime.main)
    history = fit(model, runtime.distribute(model), loader, loss_fn, optimizer, scheduler,
                  runtime, store, epochs=args.epochs, validate=validate, writer=writer)
    writer.close()
    if runtime.main:
        write_json(args.output_dir / "metrics.json", history)
