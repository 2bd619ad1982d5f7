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

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import suppression


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
