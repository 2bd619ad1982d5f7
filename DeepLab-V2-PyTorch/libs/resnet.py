"""ResNet in the Caffe / DeepLab layout, at output stride 8.

In: images (B, 3, H, W). Out: features (B, 2048 * width, h, w), h and w about an eighth.
It differs from torchvision's ResNet in that a block's stride sits in its first 1x1 convolution,
the stem's pool rounds sizes up, and layers 4 and 5 dilate instead of striding. Parameter names
are those of the released checkpoints: `layer1.conv1.*`, `layer2.block1.{reduce,conv3x3,increase,
shortcut}.{conv,bn}.*` and so on.
Source: DeepLab-V2, arXiv 1606.00915.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4
LAYER_STRIDES = (1, 2, 1, 1)
LAYER_DILATIONS = (1, 1, 2, 4)
STEM_CHANNELS = 64


class ConvBN(nn.Module):
    """Convolution (no bias), batch norm and, unless `relu` is False, a ReLU; sizes are kept."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1,
                 dilation: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride,
                              padding=kernel // 2 * dilation, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-5)
        self.relu = relu
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        conv, bn = self.conv, cast(Any, self.bn)
        if bn.training:
            x = bn(conv(x))
        else:  # batch norm is a factor and a bias then: no pass over memory of its own
            factor = bn.weight * (bn.running_var + bn.eps).rsqrt()
            x = F.conv2d(x, conv.weight * factor[:, None, None, None],
                         bn.bias - bn.running_mean * factor, conv.stride, conv.padding,
                         conv.dilation)
        return F.relu(x) if self.relu else x


class Bottleneck(nn.Module):
    """1x1 reduce (with the stride), 3x3 (with the dilation), 1x1 increase, and the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int,
                 project: bool) -> None:
        super().__init__()
        mid_channels = out_channels // EXPANSION
        self.reduce = ConvBN(in_channels, mid_channels, 1, stride)
        self.conv3x3 = ConvBN(mid_channels, mid_channels, 3, dilation=dilation)
        self.increase = ConvBN(mid_channels, out_channels, 1, relu=False)
        self.shortcut = (ConvBN(in_channels, out_channels, 1, stride, relu=False) if project
                         else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.increase(self.conv3x3(self.reduce(x))) + self.shortcut(x))


class Stem(nn.Module):
    """7x7 / 2 convolution and 3x3 / 2 max-pool; the pool rounds sizes up, as Caffe does."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(3, out_channels, 7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), 3, 2, padding=1, ceil_mode=True)


class ResNet(nn.Sequential):
    """Stem (`layer1`) and four layers of bottleneck blocks (`layer2` to `layer5`).

    Args:
        blocks: blocks in each of the four layers; (3, 4, 23, 3) is ResNet-101.
        width: factor on every channel count.
    """

    def __init__(self, blocks: Sequence[int] = (3, 4, 23, 3), width: float = 1.0) -> None:
        super().__init__()
        if len(blocks) != len(LAYER_STRIDES) or min(blocks) < 1:
            raise ValueError(f"blocks must be four positive numbers, got {list(blocks)}")
        channels = max(1, round(STEM_CHANNELS * width))
        self.add_module("layer1", Stem(channels))
        in_channels, out_channels = channels, channels * EXPANSION
        for number, (count, stride, dilation) in enumerate(
                zip(blocks, LAYER_STRIDES, LAYER_DILATIONS, strict=True), start=2):
            layer = nn.Sequential()
            for block in range(1, count + 1):
                first = block == 1
                layer.add_module(f"block{block}", Bottleneck(
                    in_channels, out_channels, stride if first else 1, dilation, project=first))
                in_channels = out_channels
            self.add_module(f"layer{number}", layer)
            out_channels *= 2
        self.out_channels = in_channels
