"""DeepLab-V2: a dilated ResNet, atrous spatial pyramid pooling, and a multi-scale wrapper.

In: images (B, 3, H, W), BGR minus mean. Out: logits (B, classes, h, w), h and w about an eighth.
Source: arXiv 1606.00915; the settings are those of the DRS paper, section "Experiments".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from libs.resnet import ResNet


class ASPP(nn.Module):
    """Sum of parallel 3x3 convolutions with different dilations, one map per class."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        for index, rate in enumerate(rates):
            conv = nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate)
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.get_parameter("bias"))
            self.add_module(f"c{index}", conv)

    def forward(self, x: Tensor) -> Tensor:
        return sum(conv(x) for conv in self.children())


class DeepLabV2(ResNet):
    """Images (B, 3, H, W) -> logits (B, num_classes, h, w).

    Args:
        num_classes: classes with the background.
        blocks, width: see `ResNet`.
        rates: dilations of the pyramid.
        freeze_bn: batch norm keeps its stored statistics and affine parameters (for fine-tuning
            with small batches, as in the paper); False is for training from scratch.
    """

    def __init__(self, num_classes: int = 21, blocks: Sequence[int] = (3, 4, 23, 3),
                 width: float = 1.0, rates: Sequence[int] = (6, 12, 18, 24),
                 freeze_bn: bool = True) -> None:
        super().__init__(blocks, width)
        self.add_module("aspp", ASPP(self.out_channels, num_classes, rates))
        self.config = {"num_classes": num_classes, "blocks": list(blocks), "width": width,
                       "rates": list(rates), "freeze_bn": freeze_bn}
        self.freeze_bn = freeze_bn
        for norm in self._norms():
            norm.requires_grad_(not freeze_bn)
        self.train()

    def _norms(self) -> list[nn.Module]:
        # The common base: several GPUs turn BatchNorm2d into SyncBatchNorm.
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> "DeepLabV2":
        """As `nn.Module.train`, but frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.freeze_bn:
            for norm in self._norms():
                norm.eval()
        return self


def build(config: Mapping[str, Any]) -> "MultiScale":
    """The network that a `MultiScale.config` describes, with random weights."""
    options = {name: value for name, value in config.items() if name not in ("network", "scales")}
    return MultiScale(DeepLabV2(**options), config["scales"])


class MultiScale(nn.Module):
    """Run a base network at several input scales and join its logits by their maximum.

    In training, the logits of every scale and their maximum (each is a loss of its own):
    [1x, each of `scales`, maximum]. In evaluation, the maximum (B, classes, h, w) alone.
    """

    def __init__(self, base: DeepLabV2, scales: Sequence[float] = (0.5, 0.75)) -> None:
        super().__init__()
        self.base = base
        self.scales = tuple(scales)
        self.config = {"network": "deeplab", **base.config, "scales": list(scales)}

    def forward(self, images: Tensor) -> list[Tensor] | Tensor:
        maps = [self.base(images)]
        for scale in self.scales:
            # By factor, as the published network does; only a side of one pixel cannot be halved.
            how = {"scale_factor": scale} if min(images.shape[2:]) * scale >= 1 else {
                "size": [max(1, int(side * scale)) for side in images.shape[2:]]}
            maps.append(self.base(F.interpolate(images, mode="bilinear", align_corners=False,
                                                **how)))
        size = maps[0].shape[2:]
        largest = maps[0]
        for logits in maps[1:]:
            largest = torch.maximum(largest, F.interpolate(logits, size, mode="bilinear",
                                                           align_corners=False))
        return [*maps, largest] if self.training else largest

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every trainable parameter in exactly one named group; empty groups are left out."""
        groups: dict[str, list[nn.Parameter]] = {
            "conv_weights": [], "batch_norm": [], "aspp_weights": [], "aspp_biases": []}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if ".aspp." in name:
                groups["aspp_biases" if name.endswith("bias") else "aspp_weights"].append(parameter)
            else:
                groups["batch_norm" if ".bn." in name else "conv_weights"].append(parameter)
        return {name: parameters for name, parameters in groups.items() if parameters}
