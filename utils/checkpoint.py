"""Checkpoints: our own (everything a run needs to go on) and the officially released ones.

In and out: `.pth` files. Files are recognised by content, read without executing code
(`weights_only=True`) and written atomically. `python -m utils.checkpoint export IN OUT` converts
to the official format, `python -m utils.checkpoint show FILE` says what a file holds.
"""

import argparse
import errno
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import Undrawn, released
from utils.files import UserError, atomic_write, sweep_for
from utils.options import trained_side

log = logging.getLogger("drs")
FORMAT = "drs/1"
NETWORKS = ("classifier", "refine", "deeplab")
# What may stand in the description of a network: damaged or hostile numbers must not be built.
NETWORK_VALUES: dict[str, Callable[[Any], bool]] = {
    "num_classes": lambda n: type(n) is int and 1 <= n <= 255,
    "width": lambda w: type(w) in (int, float) and 0 < w <= 16,
    "batch_norm": lambda b: type(b) is bool, "freeze_bn": lambda b: type(b) is bool,
    "drs": lambda d: d in ("learnable", "fixed", "none"),
    "backbone": lambda b: type(b) is str and re.fullmatch(r"(timm:)?[\w.]{1,80}", b) is not None,
    "output_stride": lambda n: n in (8, 16, 32),
    "drs_where": lambda pattern: type(pattern) is str and len(pattern) <= 200,
    "delta": lambda d: type(d) in (int, float) and 0 < d <= 1,
    "blocks": lambda n: type(n) is int and 1 <= n <= 1000,
    "rates": lambda n: type(n) is int and 1 <= n <= 1000,
    "scales": lambda s: type(s) in (int, float) and 0 < s <= 16}


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        state: model weights, names without `module.` and without aliases.
        network: keyword arguments that rebuild the network, with its kind under "network"
            ("classifier", "refine" or "deeplab").
        classes: class names, where the file records them.
        rest: everything else in the file (optimizer, epoch, options, ...).
        own: written by this project, so `network` is recorded and not inferred.
    """

    path: Path
    state: dict[str, Tensor]
    network: dict[str, Any]
    classes: list[str] | None = None
    rest: dict[str, Any] = field(default_factory=dict)
    own: bool = False

    def instantiate(self, build: Callable[[Mapping[str, Any]], nn.Module]) -> nn.Module:
        """The network that `build` makes of `self.network`, with this checkpoint's weights.

        Raises:
            UserError: the weights do not fit; found out before any memory is taken for them.
        """
        try:
            with torch.device("meta"), Undrawn():
                check_fit(build(self.network), self.state, self.path)
            model = build(self.network)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise UserError(f"checkpoint {self.path}: damaged, it describes no network ({error})"
                            .replace("\n", " ")) from error
        model.load_state_dict(self.state)
        return model


def read(path: str | Path, network: str | None = None, drs: str | None = None,
         delta: float | None = None) -> Checkpoint:
    """Read a checkpoint of ours or of the official project.

    Args:
        path: the file.
        network, drs, delta: what the file does not tell: a fixed-delta classifier and the
            refinement network have the same keys, and official files record no delta. Files
            without a record are taken for the refinement network unless told otherwise.

    Raises:
        UserError: missing, truncated, foreign or hostile file, or one that contradicts the
            arguments.
    """
    path = Path(path)
    content, state = weights(path)
    rest = {k: v for k, v in content.items() if k != "model"} if "model" in content else {}
    own = content.get("format") == FORMAT
    if own:
        config, classes = rest.pop("network", None), rest.pop("classes", None)
        damage = _damage(config, classes)
        if damage:
            raise UserError(f"checkpoint {path}: damaged, {damage}")
        for name, asked in (("network", network), ("drs", drs), ("delta", delta)):
            if asked is not None and asked != config.get(name, asked):
                raise UserError(f"--{name} {asked} contradicts {path}, which records "
                                f"{config[name]}")
        return Checkpoint(path, state, config, classes, rest, own=True)
    try:
        return Checkpoint(path, state, released.infer_config(state, network, drs, delta), None,
                          rest)
    except ValueError as error:
        raise UserError(f"checkpoint {path}: {error}") from error


def weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All that a file holds, and its clean state dict, of whatever network.

    Raises:
        UserError: missing, truncated or hostile file, or it holds no weights.
    """
    content = _load(path)
    found = content.get("model", content)
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: no checkpoint: 'model' is no state dict")
    for name, value in found.items():
        if isinstance(value, Tensor):
            check_tensor(str(name), value, path)
    try:
        return content, released.clean_state(found)
    except ValueError as error:
        raise UserError(f"checkpoint {path}: {error}") from error


def _damage(config: Any, classes: Any) -> str | None:
    """What is wrong with the description of the network in a file of ours; None if nothing."""
    if (not isinstance(config, dict) or not all(isinstance(name, str) for name in config)
            or config.get("network") not in NETWORKS):
        return "it does not say what network it holds"
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "it does not name its classes"
    for name, check in NETWORK_VALUES.items():
        values = config.get(name, [])
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, (int, float, str)) or not check(value):
                return f"its network's {name} is {str(values)[:60]}"
    labels = len(classes) + (config["network"] == "deeplab")
    if config.get("num_classes") != labels:
        return f"its network has {config.get('num_classes')} outputs, its classes need {labels}"
    return None


def read_network(args: argparse.Namespace, classes: Sequence[str]) -> Checkpoint:
    """The classifier or refinement network that a stage's options name.

    Fills in `args.image_size` where it was left out: as trained, else the paper's 320.

    Args:
        args: of a `StageParser` with a checkpoint.
        classes: names of the data set's classes, in order.

    Raises:
        UserError: see `read`; or the network is none of the two, or has other classes.
    """
    checkpoint = read(args.checkpoint, args.network, args.drs, args.delta)
    kind = checkpoint.network["network"]
    if kind not in ("classifier", "refine"):
        raise UserError(f"checkpoint {args.checkpoint}: holds a {kind} network; a classifier or a "
                        "refinement network is needed")
    if checkpoint.network["num_classes"] != len(classes):
        raise UserError(f"checkpoint {args.checkpoint}: has {checkpoint.network['num_classes']} "
                        f"classes, the data set has {len(classes)}")
    if checkpoint.classes not in (None, list(classes)):
        first = next(i for i, pair in enumerate(zip(checkpoint.classes, classes, strict=True))
                     if pair[0] != pair[1])
        raise UserError(f"checkpoint {args.checkpoint}: was trained for other classes or another "
                        f"order: class {first} is {checkpoint.classes[first]} there, "
                        f"{classes[first]} in the data set")
    if args.image_size is None:
        args.image_size = trained_side(checkpoint.rest.get("made_from"), args.checkpoint)
    return checkpoint


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    scalar = np.float64(0).__reduce__()[0]  # NumPy's own, wherever this version keeps it
    # The official files hold one NumPy scalar, `miou`, pickled under NumPy 1's module path.
    allowed: list[Any] = [
        (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"),
        np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64))]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types here, by the kind of damage
        reason = ("it asks for code that is not allowed" if "Unsupported" in str(error)
                  or "weights_only" in str(error).lower() else "truncated or no PyTorch file")
        raise UserError(f"checkpoint {path}: refused, {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path}: holds a {type(content).__name__}, "
                        "not a dictionary of weights")
    return content


def check_tensor(name: str, value: Tensor, path: Path) -> None:
    """Check that a tensor from a file is plain numbers, all there and finite.

    Raises:
        UserError: it is sparse, quantized, without content, larger than the bytes behind it, or
            holds NaN or infinity.
    """
    reason = None
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        reason = "is no plain tensor"
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        reason = "claims to be larger than its data"
    elif not bool(torch.isfinite(value).all()):
        reason = "holds values that are not finite (the training diverged?)"
    if reason:
        raise UserError(f"checkpoint {path}: refused, {name} {reason}")


def check_fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Check that `state` has just the tensors that `model` needs.

    Raises:
        UserError: listing the tensors that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [f"{name} ({tuple(value.shape)}, expected {tuple(own[name].shape)})"
                             for name, value in state.items()
                             if name in own and value.shape != own[name].shape]}
    found = [f"{len(names)} {kind}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
             for kind, names in problems.items() if names]
    if found:
        raise UserError(f"checkpoint {path} does not fit the network; " + "; ".join(found))


def save(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write `content` with torch.save, atomically."""
    sweep_for(Path(path))
    # A file object, because torch.save reports a failed write to a path as a RuntimeError.
    with atomic_write(path) as tmp, open(tmp, "wb") as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # its writer's word for a failed write
            cause = error.__cause__ or error.__context__
            raise cause if isinstance(cause, OSError) else OSError(
                errno.ENOSPC, f"writing failed ({str(error).splitlines()[0]})") from error


def export(source: Path, target: Path) -> None:
    """Write the weights of `source` in the official format (aliases included)."""
    checkpoint = read(source)
    state = dict(checkpoint.state)
    if checkpoint.network["network"] == "deeplab":
        save(target, state)
        return
    if "backbone" in checkpoint.network:
        raise UserError(f"{source}: the official format is for VGG-16, this is a "
                        f"{checkpoint.network['backbone']}")
    if checkpoint.network.get("width", 1) != 1 or checkpoint.network.get("batch_norm"):
        log.warning("%s is no full-size VGG-16 without batch norm: the official code cannot "
                    "load it, this project can", source)
    state = released.add_aliases(state)
    rest = checkpoint.rest
    # A Python float, not a NumPy scalar: any NumPy, old or new, can read it.
    save(target, {"model": state, "optimizer": rest.get("optimizer", {}),
                  "epoch": int(rest.get("epoch", 0)), "iter": int(rest.get("step", 0)),
                  "miou": float(rest.get("best_score") or 0.0)})


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m utils.checkpoint`."""
    parser = argparse.ArgumentParser(prog="python -m utils.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("export", help="write IN's weights in the official format")
    command.add_argument("source", type=Path, metavar="IN")
    command.add_argument("target", type=Path, metavar="OUT")
    command = commands.add_parser("show", help="say what FILE holds")
    command.add_argument("source", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    try:
        if args.command == "export":
            export(args.source, args.target)
            print(f"{args.target}: written")
        else:
            checkpoint = read(args.source)
            print(f"{checkpoint.network}\nclasses: {checkpoint.classes}\n"
                  f"{len(checkpoint.state)} tensors; also holds: {', '.join(checkpoint.rest)}")
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
