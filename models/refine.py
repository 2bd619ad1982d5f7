"""The refinement network (step 2): the same VGG-16, trained to reproduce localization maps.

It sees each pixel's strongest class only, over the whole data set, and so learns what the
classifier's maps have in common: fuller objects, sharper borders (paper, "Localization Map
Refinement Learning").
"""

import torch
from torch import Tensor, nn

from models.drs import activation_factory
from models.vgg import DilatedVGG16, upsample


class RefineNet(DilatedVGG16):
    """VGG-16 with plain ReLUs; its upsampled class maps are the refined localization maps."""

    def __init__(self, num_classes: int = 20, width: float = 1.0,
                 batch_norm: bool = False) -> None:
        super().__init__(num_classes, activation_factory("none"), width, batch_norm)
        self.config |= {"network": "refine"}
        for conv in self.head_convs():
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W), labels (B, C) or None -> maps (B, C, H, W).

        With labels, the maps of absent classes are 0 (validation, labelling; not training).
        """
        maps = upsample(self.class_maps(images), tuple(images.shape[2:]))
        return maps if labels is None else maps * labels[:, :, None, None]

    def score_maps(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Refined maps of one image: (K, h, w) -> (K, H, W)."""
        return upsample(maps, size)


def refinement_target(maps: Tensor) -> Tensor:
    """Keep, at each pixel, only the channels equal to the maximum: (B, C, H, W) -> the same."""
    strongest = maps.amax(dim=1, keepdim=True)
    return torch.where(maps == strongest, maps, torch.zeros_like(maps))
