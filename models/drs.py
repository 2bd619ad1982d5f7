"""Discriminative Region Suppression (DRS): the idea of the paper, in one file.

A classifier looks only at the most discriminative part of an object, so its localization map
covers only that part. DRS takes the place of each ReLU and caps every channel at a share of its
own maximum. The peak (the discriminative part) can then no longer outweigh the rest, and the
classifier has to draw on the whole object.

    input x (B, C, H, W)
      -> max extractor:           x_max   (B, C, 1, 1), the strongest response of each channel
      -> suppression controller:  control (B, C, 1, 1) in [0, 1], fixed or learned
      -> suppressor:              min(x, x_max * control)

Source: "Discriminative Region Suppression for Weakly-Supervised Semantic Segmentation",
AAAI 2021, section "Proposed Method".
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import attachment, suppression
from models.probe import Report, find_sites


def max_extractor(x: Tensor) -> Tensor:
    """Global maximum of each channel: (B, C, H, W) -> (B, C, 1, 1). Of several equal maxima, one
    gets the gradient."""
    return suppression.maxima(x)[0]


def suppress(x: Tensor, x_max: Tensor, control: Tensor | float) -> Tensor:
    """Cap `x` (B, C, H, W) at `x_max * control`, each (B, C, 1, 1) or a number in [0, 1]."""
    return torch.minimum(x, x_max * control)


class FixedDRS(nn.Module):
    """ReLU with DRS at a constant control value `delta` in (0, 1]; delta 1 is a plain ReLU."""

    def __init__(self, delta: float) -> None:
        super().__init__()
        if not 0.0 < delta <= 1.0:
            raise ValueError(f"delta must be in (0, 1], got {delta}")
        self.delta = delta

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """(B, C, H, W) -> the same; `relu=False`: x has passed another activation."""
        if suppression.suits(x):  # the same, for less time and memory in training
            return suppression.CappedActivation.apply(x, relu, self.delta)
        x = F.relu(x) if relu else x
        return suppress(x, max_extractor(x), self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"


class LearnableDRS(nn.Module):
    """ReLU with DRS whose control is predicted, per image and channel, from the averaged input.

    control = sigmoid(Linear(global average of x)); the linear layer has no bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        linear = nn.Linear(channels, channels, bias=False)
        nn.init.normal_(linear.weight, std=0.01)
        self.fc = nn.Sequential(linear, nn.Sigmoid())

    def control(self, average: Tensor) -> Tensor:
        """Averages (B, C, 1, 1) -> shares (B, C, 1, 1) in [0, 1]."""
        return self.fc(average.flatten(1))[:, :, None, None]

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """(B, C, H, W) -> the same; `relu=False`: x has passed another activation."""
        if suppression.suits(x, self.fc.parameters()):
            return suppression.CappedActivation.apply(x, relu, self.control,
                                                      *self.fc.parameters())
        x = F.relu(x) if relu else x
        return suppress(x, max_extractor(x), self.control(suppression.averages(x)))


def activation_factory(mode: str, delta: float = 0.55) -> Callable[[int], nn.Module]:
    """A function channels -> activation, for `mode` "learnable", "fixed" (`delta`) or "none"."""
    factories: dict[str, Callable[[int], nn.Module]] = {
        "learnable": LearnableDRS,
        "fixed": lambda channels: FixedDRS(delta),
        "none": lambda channels: nn.ReLU(),
    }
    if mode not in factories:
        raise ValueError(f"DRS mode must be one of {', '.join(factories)}; got {mode!r}")
    return factories[mode]


def add_drs(model: nn.Module, mode: str = "fixed", delta: float = 0.85,
            where: Sequence[str] = ("*",), strict: bool = False,
            inputs: Callable[[int], Any] | None = None) -> Report:
    """Let DRS follow the activations of any network, in place: y = act(x), then suppressed.

    Names in the state dict stay; learnable controllers join it as ACTIVATION.control.N. At delta 1
    the network computes exactly what it did.

    Args:
        model: torchvision's, timm's, or one's own. It is run twice, on small images.
        mode: "fixed" (control `delta`), or "learnable" (C x C weights a site; before the optimizer
            is made).
        where: patterns (fnmatch) of the activations' names or their callers'; one must fit.
        strict: whether functional activations, which no module stands for, are an error.
        inputs: side in pixels -> what the model takes (default: images (2, channels, side, side)).

    Raises:
        ValueError: no activation can be followed, or DRS is there already; see `strict` and
            `find_sites`. The model is then as it was.
    """
    build = activation_factory(mode, delta)
    if mode == "none" or isinstance(where, str) or attachment.is_attached(model):
        raise ValueError("add_drs: mode is fixed or learnable, `where` a list of patterns, and the "
                         "network has no DRS yet (remove_drs takes it away)")
    report = find_sites(model, inputs)
    build(1)  # a delta that cannot be is found before anything is changed
    if report.functional and (strict or not report.sites):
        raise ValueError(f"add_drs: {len(report.functional)} functional activations cannot be "
                         "followed; make them modules (nn.ReLU()): "
                         f"{'; '.join(report.functional[:3])}")
    names = list(dict.fromkeys(site.path for site in report.sites))
    tensor = next(model.parameters(), torch.empty(0))
    report.keep(attachment.attach(
        model, report.sites,
        lambda site: any(fnmatchcase(name, pattern) for name in (site.path, site.caller)
                         for pattern in where),
        lambda site: build(site.channels).to(tensor.device, tensor.dtype)))
    if not report.sites:
        raise ValueError(f"add_drs: where={list(where)} fits no activation that can be followed; "
                         f"there are {', '.join(names[:4]) or 'none'}"
                         + (f" and {len(names) - 4} more" if len(names) > 4 else ""))
    return report


def remove_drs(model: nn.Module) -> None:
    """Take away what `add_drs` brought, learned controllers included."""
    attachment.detach(model)
