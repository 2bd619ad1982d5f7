"""The paper's trunk and head: VGG-16 at output stride 8, ending in one map per class.

In: images (B, 3, H, W) float, normalised. Out: class maps (B, num_classes, H/8, W/8).
Parameter names are those of the released checkpoints: trunk convolutions are `features.N.*` with
torchvision's N, activations `layerK_reluJ`, head convolutions `extra_conv1..4`.
Source: the paper, section "Implementation Details"; VGG-16 is arXiv 1409.1556.
"""

import math
import re
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from models.localization import LocalizationNetwork, init_conv

# Channels of each block at width 1, and the index of each convolution in torchvision's VGG-16.
BLOCKS = ((64, (0, 2)), (128, (5, 7)), (256, (10, 12, 14)), (512, (17, 19, 21)),
          (512, (24, 26, 28)))
HEAD_CONVS = 3
OUTPUT_STRIDE = 8


class DilatedVGG16(LocalizationNetwork):
    """VGG-16 at output stride 8 with a convolutional head that ends in one map per class.

    Args:
        num_classes: foreground classes C.
        activation: channels -> the module that follows each 3x3 convolution (ReLU or DRS).
        width: factor on every channel count (1 is the paper's network).
        batch_norm: normalise after each 3x3 convolution; for training from scratch only, the
            paper's network has none.
    """

    imagenet_advice = "download vgg16-397923af.pth into ~/.cache/torch/hub/checkpoints/"

    def __init__(self, num_classes: int, activation: Callable[[int], nn.Module],
                 width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a network needs at least one class, got {num_classes}")
        self.config = {"num_classes": num_classes, "width": width, "batch_norm": batch_norm}

        def add_activation(prefix: str, position: int, channels: int) -> None:
            if batch_norm:
                self.add_module(f"{prefix}_bn{position}", nn.BatchNorm2d(channels))
            self.add_module(f"{prefix}_relu{position}", activation(channels))

        self.features = nn.ModuleDict()
        trunk_convs: list[nn.Conv2d] = []
        in_channels = 3
        for block, (channels, indices) in enumerate(BLOCKS, start=1):
            channels = max(1, round(channels * width))
            dilation = 2 if block == 5 else 1
            for position, index in enumerate(indices, start=1):
                trunk_convs.append(nn.Conv2d(in_channels, channels, 3, padding=dilation,
                                             dilation=dilation))
                self.features[str(index)] = trunk_convs[-1]
                add_activation(f"layer{block}", position, channels)
                in_channels = channels
        for position in range(1, HEAD_CONVS + 1):
            self.add_module(f"extra_conv{position}",
                            nn.Conv2d(in_channels, in_channels, 3, padding=1))
            add_activation("extra", position, in_channels)
        self.extra_conv4 = nn.Conv2d(in_channels, num_classes, 1)
        for conv in trunk_convs:
            init_conv(conv, std=math.sqrt(2 / conv.weight[0].numel()))  # He et al., fan in

    def class_maps(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> maps (B, C, H/8, W/8), no activation on the output."""
        x = images
        for block, (_, indices) in enumerate(BLOCKS, start=1):
            if block == 5:  # a pool that keeps the size: the output stride stays 8
                x = F.max_pool2d(x, kernel_size=3, stride=1, padding=1)
            elif block > 1:
                x = F.max_pool2d(x, kernel_size=2)
            for position, index in enumerate(indices, start=1):
                x = self._activate(self.features[str(index)](x), f"layer{block}", position)
        for position in range(1, HEAD_CONVS + 1):
            x = getattr(self, f"extra_conv{position}")(x)
            x = self._activate(x, "extra", position)
        return self.extra_conv4(x)

    def _activate(self, x: Tensor, prefix: str, position: int) -> Tensor:
        if self.config["batch_norm"]:
            x = getattr(self, f"{prefix}_bn{position}")(x)
        return getattr(self, f"{prefix}_relu{position}")(x)

    def head_convs(self) -> list[nn.Conv2d]:
        """The four convolutions of the head, in order."""
        return [getattr(self, f"extra_conv{i}") for i in range(1, HEAD_CONVS + 2)]

    def in_trunk(self, name: str) -> bool:
        """Trunk convolutions and their norms. The linear layers of DRS train like the head,
        wherever in the network they stand."""
        return re.match(r"features\.|layer\d_bn", name) is not None

    def load_imagenet(self) -> None:
        """Trunk weights from torchvision's ImageNet VGG-16; downloads them on first use."""
        from torchvision.models import VGG16_Weights

        self.load_trunk(VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False,
                                                                   check_hash=True))


def trunk_aliases() -> dict[str, str]:
    """The second name that released files give each trunk convolution: layerK_convJ ->
    features.N."""
    return {f"layer{block}_conv{position}": f"features.{index}"
            for block, (_, indices) in enumerate(BLOCKS, start=1)
            for position, index in enumerate(indices, start=1)}
