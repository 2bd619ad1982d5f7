"""The refinement network (step 2): the same VGG-16, trained to reproduce localization maps.

In: images (B, 3, H, W), normalised. Out: maps (B, C, H, W). The network sees each pixel's strongest
class only, over the whole data set, and so learns what the classifier's maps have in common:
fuller objects, sharper borders (paper, "Localization Map Refinement Learning").
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.drs import activation_factory
from models.localization import LocalizationNetwork, init_conv, upsample
from models.vgg import DilatedVGG16


class RefinementOutput(LocalizationNetwork):
    """Makes a network that ends in class maps a refinement network."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W), labels (B, C) or None -> maps (B, C, H, W).

        With labels, the maps of absent classes are 0 (validation, labelling; not training).
        """
        height, width = images.shape[2:]
        maps = upsample(self.class_maps(images), (height, width))
        return maps if labels is None else maps * labels[:, :, None, None]

    def score_maps(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Refined maps of one image: (K, h, w) -> (K, H, W)."""
        return upsample(maps, size)


class RefineNet(RefinementOutput, DilatedVGG16):
    """VGG-16 with plain ReLUs; its upsampled class maps are the refined localization maps."""

    def __init__(self, num_classes: int = 20, width: float = 1.0,
                 batch_norm: bool = False) -> None:
        super().__init__(num_classes, activation_factory("none"), width, batch_norm)
        self.config |= {"network": "refine"}
        for conv in self.head_convs():
            init_conv(conv, std=0.01)


def refinement_target(maps: Tensor) -> Tensor:
    """Keep, at each pixel, only the channels equal to the maximum: (B, C, H, W) -> the same."""
    strongest = maps.amax(dim=1, keepdim=True)
    return torch.where(maps == strongest, maps, torch.zeros_like(maps))


def refinement_loss(maps: Tensor, target_maps: Tensor) -> Tensor:
    """Mean squared error against each pixel's strongest localization maps.

    Args:
        maps: the network's, (B, C, H, W).
        target_maps: localization maps of the classifier as they are stored, (B, C, H, W) in
            [0, 255].

    Returns:
        Scalar float32, the mean over all classes and pixels.
    """
    return F.mse_loss(maps.float(), refinement_target(target_maps.float() / 255))
