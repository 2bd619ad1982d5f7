"""The dilated VGG-16 that both networks share: trunk, head, parameter groups, multi-scale maps.

In: images (B, 3, H, W) float, normalised. Out: class maps (B, num_classes, H/8, W/8).
Parameter names are those of the released checkpoints: trunk convolutions are `features.N.*` with
torchvision's N, activations `layerK_reluJ`, head convolutions `extra_conv1..4`.
Source: the paper, section "Implementation Details"; VGG-16 is arXiv 1409.1556.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels of each block at width 1, and the index of each convolution in torchvision's VGG-16.
BLOCKS = ((64, (0, 2)), (128, (5, 7)), (256, (10, 12, 14)), (512, (17, 19, 21)),
          (512, (24, 26, 28)))
# The pool in front of a block. The fourth keeps the size: the output stride stays 8.
_halve = partial(F.max_pool2d, kernel_size=2)
POOLS = {2: _halve, 3: _halve, 4: _halve, 5: partial(F.max_pool2d, kernel_size=3, stride=1,
                                                     padding=1)}
HEAD_CONVS = 3
OUTPUT_STRIDE = 8


class DilatedVGG16(nn.Module):
    """VGG-16 at output stride 8 with a convolutional head that ends in one map per class.

    Args:
        num_classes: foreground classes C.
        activation: channels -> the module that follows each 3x3 convolution (ReLU or DRS).
        width: factor on every channel count (1 is the paper's network).
        batch_norm: normalise after each 3x3 convolution; for training from scratch only, the
            paper's network has none.
    """

    def __init__(self, num_classes: int, activation: Callable[[int], nn.Module],
                 width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a network needs at least one class, got {num_classes}")
        self.config = {"num_classes": num_classes, "width": width, "batch_norm": batch_norm}
        self.features = nn.ModuleDict()
        self._steps: list[tuple[Callable[[Tensor], Tensor] | None, str, str, str]] = []
        in_channels = 3
        for block, (channels, indices) in enumerate(BLOCKS, start=1):
            channels = max(1, round(channels * width))
            dilation = 2 if block == 5 else 1
            for position, index in enumerate(indices, start=1):
                conv = nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation)
                self.features[str(index)] = conv
                pool = POOLS.get(block) if position == 1 else None
                self._add_step(pool, f"features.{index}", f"layer{block}_", position, channels,
                               activation, batch_norm)
                in_channels = channels
        for position in range(1, HEAD_CONVS + 1):
            self.add_module(f"extra_conv{position}",
                            nn.Conv2d(in_channels, in_channels, 3, padding=1))
            self._add_step(None, f"extra_conv{position}", "extra_", position, in_channels,
                           activation, batch_norm)
        self.extra_conv4 = nn.Conv2d(in_channels, num_classes, 1)
        for conv in self.features.values():
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def _add_step(self, pool: Callable[[Tensor], Tensor] | None, conv: str, prefix: str,
                  position: int, channels: int, activation: Callable[[int], nn.Module],
                  batch_norm: bool) -> None:
        norm, relu = f"{prefix}bn{position}", f"{prefix}relu{position}"
        if batch_norm:
            self.add_module(norm, nn.BatchNorm2d(channels))
        self.add_module(relu, activation(channels))
        self._steps.append((pool, conv, norm if batch_norm else "", relu))

    def class_maps(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> maps (B, C, H/8, W/8), no activation on the output."""
        x = images
        for pool, conv, norm, activation in self._steps:
            if pool is not None:
                x = pool(x)
            x = self.get_submodule(conv)(x)
            if norm:
                x = self.get_submodule(norm)(x)
            x = self.get_submodule(activation)(x)
        return self.extra_conv4(x)

    def head_convs(self) -> list[nn.Conv2d]:
        """The four convolutions of the head, in order."""
        return [self.get_submodule(f"extra_conv{i}") for i in range(1, HEAD_CONVS + 2)]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every trainable parameter in exactly one of four named groups (paper, "Training")."""
        groups: dict[str, list[nn.Parameter]] = {
            "trunk_weights": [], "trunk_biases": [], "head_weights": [], "head_biases": []}
        for name, parameter in self.named_parameters():
            # The linear layers of DRS train like the head, wherever in the network they stand.
            part = "head" if name.startswith("extra_") or ".fc." in name else "trunk"
            kind = "biases" if name.endswith("bias") else "weights"
            groups[f"{part}_{kind}"].append(parameter)
        return groups

    def load_trunk(self, state: dict[str, Tensor]) -> list[str]:
        """Copy the trunk (`features.*`, block norms) from `state`; return the names copied.

        Raises:
            ValueError: `state` lacks a tensor of the trunk, or one has another shape.
        """
        own = {name: tensor for name, tensor in self.state_dict().items()
               if name.startswith("features.") or re.match(r"layer\d_bn", name)}
        wrong = [name for name, tensor in own.items()
                 if name not in state or state[name].shape != tensor.shape]
        if wrong:
            raise ValueError("initial weights do not fit this trunk (width or batch norm differ?): "
                             + ", ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else ""))
        self.load_state_dict({name: state[name] for name in own}, strict=False)
        return list(own)

    def load_imagenet(self) -> None:
        """Trunk weights from torchvision's ImageNet VGG-16; downloads them on first use."""
        from torchvision.models import VGG16_Weights, vgg16

        self.load_trunk(vgg16(weights=VGG16_Weights.IMAGENET1K_V1).state_dict())

    def score_maps(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """One image's class maps (K, h, w) -> scores (K, H, W) at `size`; each network's own."""
        raise NotImplementedError

    @torch.inference_mode()
    def localization_maps(self, images: Tensor, labels: Tensor,
                          sizes: Sequence[tuple[int, int]], scales: Sequence[int]
                          ) -> list[Tensor]:
        """Multi-scale localization maps of the classes present in each image.

        Args:
            images: (B, 3, H, W), normalised.
            labels: (B, C), 1 where a class is present. Maps of absent classes are 0 by
                definition, so they are neither computed nor returned.
            sizes: B target sizes (height, width).
            scales: sides of the squares that the images are resized to; the maps are the
                elementwise maximum over scales (and 0).

        Returns:
            B tensors (K_i, H_i, W_i) float32, one map per present class in ascending order.
        """
        present = [row.nonzero()[:, 0] for row in labels]
        results = [images.new_zeros(len(classes), *size, dtype=torch.float32)
                   for classes, size in zip(present, sizes, strict=True)]
        for scale in scales:
            scaled = F.interpolate(images, (scale, scale), mode="bilinear", align_corners=False)
            maps = self.class_maps(scaled).float()
            for result, image_maps, classes in zip(results, maps, present, strict=True):
                scores = self.score_maps(image_maps[classes], tuple(result.shape[1:]))
                torch.maximum(result, scores, out=result)
        return results


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, align_corners=True: (K, h, w) -> (K, H, W), or (B, C, h, w) -> (B, C, H, W)."""
    batched = maps[None] if maps.dim() == 3 else maps
    if batched.shape[1] == 0:
        return maps.new_zeros(*maps.shape[:-2], *size)
    resized = F.interpolate(batched, size, mode="bilinear", align_corners=True)
    return resized[0] if maps.dim() == 3 else resized
