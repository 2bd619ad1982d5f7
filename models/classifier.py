"""The classifier (step 1): dilated VGG-16 with DRS modules, trained on image-level labels."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from models.drs import activation_factory
from models.vgg import DilatedVGG16, upsample


class Classifier(DilatedVGG16):
    """VGG-16 whose ReLUs are DRS modules; logits are the global average of its class maps.

    Args:
        num_classes: foreground classes C.
        drs: "learnable", "fixed" or "none" (plain CAM).
        delta: control value of the fixed variant (the paper's best is 0.55).
        width, batch_norm: see `DilatedVGG16`.
    """

    def __init__(self, num_classes: int = 20, drs: str = "learnable", delta: float = 0.55,
                 width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__(num_classes, activation_factory(drs, delta), width, batch_norm)
        self.config |= {"network": "classifier", "drs": drs, "delta": delta}
        for conv in self.head_convs():
            fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels
            nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
            nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, C)."""
        return self.class_maps(images).mean(dim=(2, 3))

    def score_maps(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Class activation maps: (K, h, w) -> (K, H, W) in [0, 1), each over its own maximum."""
        maps = upsample(F.relu(maps), size)
        return maps / (maps.amax(dim=(1, 2), keepdim=True) + 1e-5)
