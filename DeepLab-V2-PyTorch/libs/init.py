"""Initial weights of DeepLab: a checkpoint file, torchvision's ImageNet ResNet-101, or none.

In: the network and where its weights come from. Out: the network, filled; the log says which
parameters were loaded, which of the file's were skipped, and which stay random.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import checkpoint
from utils.files import UserError

log = logging.getLogger("drs")
# torchvision's input: RGB in [0, 1] over this standard deviation; DeepLab's: BGR in [0, 255].
IMAGENET_STD = (0.229, 0.224, 0.225)
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(conv|bn)([123])\.(\w+)")
_SHORTCUT = re.compile(r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)")
_PARTS = {"1": "reduce", "2": "conv3x3", "3": "increase"}


def initialise(model: nn.Module, source: Path | str) -> None:
    """Load initial weights into `model` (a `MultiScale` around a `DeepLabV2`).

    Args:
        source: "none" (all random), "imagenet", or a file: released or our own, with or without
            ASPP. Tensors of other names or shapes are skipped.

    Raises:
        UserError: the file cannot be read, or nothing in it fits the network.
    """
    if source == "none":
        log.info("initial weights: random")
        return
    if source == "imagenet":
        state = from_torchvision(_imagenet_state())
    else:
        state = with_prefix(checkpoint.read(source).state)
    own = model.state_dict()
    loaded = {name: value for name, value in state.items()
              if name in own and value.shape == own[name].shape}
    if not any(name.endswith("weight") for name in loaded):
        raise UserError(f"MODEL.INIT_MODEL {source}: none of its {len(state)} tensors fits the "
                        f"network (first names: {', '.join(list(state)[:3])})")
    model.load_state_dict(loaded, strict=False)
    parameters = [name for name, _ in model.named_parameters()]
    _report(f"loaded from {source}", list(loaded))
    _report("skipped, no such tensor here or another shape",
            [name for name in state if name not in loaded])
    _report("left at random", [name for name in parameters if name not in loaded])


def with_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names as the multi-scale wrapper has them: every one under `base.`."""
    if any(name.startswith("base.") for name in state):
        return dict(state)
    return {f"base.{name}": value for name, value in state.items()}


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's ResNet under this layout's names, for this layout's input.

    The first convolution is turned from RGB in [0, 1] over the standard deviation to BGR in
    [0, 255]. What cannot be carried over: torchvision strides in the 3x3 convolution of
    `layer2.0`, this layout in the 1x1 before it, so that this one 3x3 convolution sees
    neighbours twice as far apart. Fine-tuning makes up for it.
    """
    renamed = {}
    for name, value in state.items():
        if name == "conv1.weight":
            scale = 255 * torch.tensor(IMAGENET_STD, dtype=value.dtype)
            value = (value / scale[None, :, None, None]).flip(1)
        renamed[f"base.{_rename(name)}"] = value
    return renamed


def _rename(name: str) -> str:
    if match := _BLOCK.fullmatch(name):
        layer, block, kind, part, rest = match.groups()
        return f"layer{int(layer) + 1}.block{int(block) + 1}.{_PARTS[part]}.{kind}.{rest}"
    if match := _SHORTCUT.fullmatch(name):
        layer, block, kind, rest = match.groups()
        kind = "conv" if kind == "0" else "bn"
        return f"layer{int(layer) + 1}.block{int(block) + 1}.shortcut.{kind}.{rest}"
    kind, _, rest = name.partition("1.")
    return f"layer1.conv1.{kind}.{rest}" if kind in ("conv", "bn") else name


def _imagenet_state() -> dict[str, Tensor]:
    from torchvision.models import ResNet101_Weights

    try:
        return ResNet101_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise UserError(f"MODEL.INIT_MODEL imagenet: cannot download torchvision's ResNet-101 "
                        f"({error}); give a file, or none") from error


def _report(what: str, names: list[str], shown: int = 4) -> None:
    if names:
        listed = ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
        log.info("initial weights: %4d tensors %s: %s", len(names), what, listed)
