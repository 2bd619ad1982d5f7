"""What a training is set up with: its network and initial weights, parameter groups, record."""

import argparse
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from utils import checkpoint, outputs, provenance
from utils.files import UserError
from utils.runtime import Runtime
from utils.stage import note

log = logging.getLogger("drs")


def named_groups(groups: Mapping[str, list[nn.Parameter]], lr: float, factors: Mapping[str, float],
                 weight_decay: float | Mapping[str, float] = 0.0) -> list[dict[str, Any]]:
    """Optimizer groups from named parameters; count and learning rate of each are logged.

    Args:
        groups: name -> parameters, every trainable parameter in exactly one.
        lr: base learning rate.
        factors: name -> factor on `lr`.
        weight_decay: of all, or by name.
    """
    result = []
    for name, parameters in groups.items():
        decay = weight_decay[name] if isinstance(weight_decay, Mapping) else weight_decay
        result.append({"name": name, "params": parameters, "lr": lr * factors[name],
                       "weight_decay": decay})
        log.info("parameters %-14s %3d tensors %11s elements  lr %g  weight decay %g", name,
                 len(parameters), f"{sum(p.numel() for p in parameters):,}", lr * factors[name],
                 decay)
    return result


def suggest_lr(batch: int, usual: int, lr: float, usual_lr: float, power: float = 1.0) -> None:
    """Say which learning rate a larger batch than the paper's would want; nothing is changed.

    Args:
        batch, usual: images an optimizer step, now and in the paper.
        lr, usual_lr: base learning rates, now and in the paper.
        power: of the batches' ratio: 1 for SGD, 0.5 for Adam, as is the custom.
    """
    wanted = usual_lr * (batch / usual) ** power
    if batch > usual and not math.isclose(lr, wanted, rel_tol=0.01):
        log.info("%d images a step are %.3g times the paper's %d, which would want a learning rate "
                 "of %.3g (%.3g times its %g); it stays at %g", batch, batch / usual, usual, wanted,
                 wanted / usual_lr, usual_lr, lr)


def describe_network(args: argparse.Namespace, kind: str, num_classes: int) -> dict[str, Any]:
    """What the options of a training ask for, as `models.build` takes it.

    Raises:
        UserError: options of the paper's network with another one, or the reverse.
    """
    config: dict[str, Any] = {"network": kind, "num_classes": num_classes}
    where = getattr(args, "drs_where", None)
    if args.backbone is None:
        if args.output_stride not in (None, 8):
            raise UserError(f"--output-stride {args.output_stride}: vgg16, the paper's, has "
                            "8; leave it out, or choose --backbone vgg16_bn")
        if where is not None:
            raise UserError("--drs-where is for other networks (--backbone); in vgg16, the "
                            "paper's, DRS follows every convolution")
        config |= {"width": args.width, "batch_norm": args.batch_norm}
    else:
        if args.width != 1 or args.batch_norm:
            raise UserError(f"--width and --batch-norm are vgg16's; leave them out with --backbone "
                            f"{args.backbone}")
        config |= {"backbone": args.backbone, "output_stride": args.output_stride}
        if args.image_size < 64:
            raise UserError(f"--image-size {args.image_size}: --backbone {args.backbone} needs 64")
    if kind == "classifier":
        config |= {"drs": args.drs, "delta": args.delta}
        if where is not None:
            config["drs_where"] = where
    return config


def new_network(build: Callable[[Mapping[str, Any]], Any], args: argparse.Namespace, kind: str,
                num_classes: int) -> Any:
    """The network of a training, made by `build` (`models.build`): a `kind` with random weights.

    Raises:
        UserError: there is no such network, or not with these options.
    """
    config = describe_network(args, kind, num_classes)
    try:
        return build(config)
    except ValueError as error:
        if "backbone" not in config:
            raise
        raise UserError(f"--backbone {config['backbone']}: {error}".replace("\n", " ")) from error


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
                f"--init imagenet: the ImageNet weights cannot be fetched ({error}); "
                f"{model.imagenet_advice}, then use --init FILE, or use --init none") from error
        log.info("initial weights: trained on ImageNet")
        return
    try:
        names = model.load_trunk(checkpoint.weights(Path(source))[1] if "backbone" in model.config
                                 else checkpoint.read(source).state)
    except ValueError as error:
        raise UserError(f"--init {source}: {error}") from error
    log.info("initial weights: %d trunk tensors of %s; head and DRS at random", len(names), source)


def init_classifier(model: Any, source: str, classes: Sequence[str]) -> None:
    """Give `model` all the weights of a trained classifier, which has the same but for DRS.

    Raises:
        UserError: the file holds no classifier, or it does not fit the model or the classes.
    """
    found = checkpoint.read_network(argparse.Namespace(
        checkpoint=Path(source), network=None, drs=None, delta=None, image_size=0), classes)
    if found.own and found.network["network"] != "classifier":
        raise UserError(f"--init {source}: holds a {found.network['network']} network; "
                        "--recalibrate needs a classifier")
    checkpoint.check_fit(model, found.state, Path(source))
    model.load_state_dict(found.state)
    log.info("initial weights: the classifier of %s", source)


def training_record(args: argparse.Namespace, root: Any, entries: Sequence[Any], runtime: Runtime,
                    val_set: Any = None) -> provenance.Record:
    """What a training with these options, data set and entries of a list is made from.

    Args:
        val_set: the `datasets.voc.VOCDataset` that chooses the best checkpoint, if any.
    """
    record = outputs.made_from(args, root, entries, runtime.precision)
    note(images=len(entries))
    if args.init in ("imagenet", "none"):
        record.inputs["initial weights"] = args.init
    else:
        record.add_file("initial weights", Path(args.init))
    if getattr(args, "maps_dir", None) is not None:
        provenance.upstream(record, "localization maps", args.maps_dir,
                            [entry.id for entry in entries])
    if val_set is not None:
        record.validation = outputs.image_facts(root, val_set.entries)
        for kind, folder in (("mask", val_set.mask_dir), ("saliency", val_set.saliency_dir)):
            if folder is not None:
                provenance.upstream(record, provenance.VALIDATION + kind, folder,
                                    list(record.validation))
    return record
