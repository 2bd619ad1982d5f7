"""The classifier (step 1): class maps whose average are the logits, trained on image labels.

In: images (B, 3, H, W), normalised. Out: logits (B, C); as localization maps, the class activation
maps (CAM).
"""

import math

import torch.nn.functional as F
from torch import Tensor

from models.drs import activation_factory
from models.localization import LocalizationNetwork, init_conv, upsample
from models.vgg import DilatedVGG16


class ClassifierOutput(LocalizationNetwork):
    """Makes a network that ends in class maps a classifier."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, C), the global average of the class maps."""
        return self.class_maps(images).mean(dim=(2, 3))

    def score_maps(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Class activation maps: (K, h, w) -> (K, H, W) in [0, 1), each over its own maximum."""
        maps = upsample(F.relu(maps), size)
        return maps / (maps.amax(dim=(1, 2), keepdim=True) + 1e-5)


class Classifier(ClassifierOutput, DilatedVGG16):
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
            init_conv(conv, std=math.sqrt(2 / fan_out))


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin loss: logits (B, C), labels (B, C) of 0 and 1 -> scalar float32."""
    return F.multilabel_soft_margin_loss(logits.float(), labels)
