"""The released checkpoints' conventions: state dicts in, state dicts and a network's config out.

The official files list every trunk convolution twice (`features.N.*` and `layerK_convJ.*`, the same
tensor) and record neither the network nor its options. Files are read and written elsewhere
(`utils.checkpoint`); here are pure functions on what is in them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.vgg import BLOCKS, trunk_aliases

PAPER_DELTA = 0.55
# What wrappers put in front of every name: distributed training, torch.compile.
WRAPPERS = ("module.", "_orig_mod.")


def clean_state(weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    """A state dict without the prefixes of wrappers and without aliases.

    Raises:
        ValueError: it holds something else than named tensors, or nothing; or one name has two
            different tensors.
    """
    aliases = trunk_aliases()
    state: dict[str, Tensor] = {}
    for given, value in weights.items():
        if not isinstance(given, str) or not isinstance(value, Tensor):
            raise ValueError(f"{given!r} is no tensor: not a state dict")
        name = given
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        module, _, kind = name.rpartition(".")
        name = f"{aliases[module]}.{kind}" if module in aliases else name
        if name in state and not torch.equal(state[name], value):
            raise ValueError(f"{given} differs from another tensor for {name}, of which it should "
                             "be a copy")
        state[name] = value
    if not state:
        raise ValueError("holds no weights")
    return state


def add_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a VGG-16 as released files have it: each trunk convolution twice."""
    return {**state, **{f"{alias}.{kind}": state[f"{name}.{kind}"]
                        for alias, name in trunk_aliases().items() for kind in ("weight", "bias")}}


def infer_config(state: Mapping[str, Tensor], network: str | None = None, drs: str | None = None,
                 delta: float | None = None) -> dict[str, Any]:
    """What rebuilds the network that a clean state dict belongs to (`models.build`).

    Args:
        state: a dilated VGG-16's, or DeepLab's (the result is `{"network": "deeplab"}`).
        network, drs, delta: what the names do not tell. A classifier with a fixed DRS, or none,
            has the refinement network's; without a word it is taken for that.

    Raises:
        ValueError: another architecture; a network that contradicts the arguments; a fixed DRS
            whose delta is not given.
    """
    if "layer1.conv1.conv.weight" in state or "base.layer1.conv1.conv.weight" in state:
        return {"network": "deeplab"}
    channels, indices = BLOCKS[-1]
    last = f"features.{indices[-1]}.weight"
    if not {last, "extra_conv4.weight"} <= state.keys() or not (
            state[last].dim() == state["extra_conv4.weight"].dim() == 4):
        raise ValueError(f"of another architecture (no {last} and extra_conv4.weight; it begins "
                         f"with {', '.join(list(state)[:3])})")
    learnable = any(".fc.0." in name for name in state)
    if learnable:
        kind, mode = "classifier", "learnable"
    else:
        kind, mode = network or ("classifier" if drs else "refine"), drs or "fixed"
    if (network or kind) != kind or (drs or mode) != mode or (mode == "learnable") != learnable:
        raise ValueError(f"holds a {kind} with {'learnable' if learnable else 'fixed or no'} DRS, "
                         f"not what --network {network} --drs {drs} asks for")
    # The widest layer tells the width best: channel counts are rounded.
    config = {"network": kind, "num_classes": state["extra_conv4.weight"].shape[0],
              "width": state[last].shape[0] / channels,
              "batch_norm": any("_bn" in name for name in state)}
    if kind == "classifier":
        if mode == "fixed" and delta is None:
            raise ValueError(f"records no delta; give --delta ({PAPER_DELTA} in the paper)")
        config |= {"drs": mode, "delta": PAPER_DELTA if delta is None else delta}
    return config
