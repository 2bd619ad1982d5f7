"""The refinement network (step 2): the same VGG-16, trained to reproduce localization maps.

In: images (B, 3, H, W), normalised. Out: class maps (B, C, h, w), which, enlarged, are the refined
localization maps. The network sees each pixel's strongest class only, over the whole data set, and
so learns what the classifier's maps have in common: fuller objects, sharper borders (paper,
"Localization Map Refinement Learning").
"""

from functools import cache

import torch
from torch import Tensor

from models.drs import activation_factory
from models.localization import LocalizationNetwork, init_conv, upsample
from models.vgg import DilatedVGG16


class RefinementOutput(LocalizationNetwork):
    """Makes a network that ends in class maps a refinement network."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> class maps (B, C, h, w), which `refinement_loss` takes."""
        return self.class_maps(images)

    def score_maps(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Refined maps of one image: (K, h, w) -> (K, H, W)."""
        return upsample(maps, size)


class RefineNet(RefinementOutput, DilatedVGG16):
    """VGG-16 with plain ReLUs; its enlarged class maps are the refined localization maps."""

    def __init__(self, num_classes: int = 20, width: float = 1.0,
                 batch_norm: bool = False) -> None:
        super().__init__(num_classes, activation_factory("none"), width, batch_norm)
        self.config |= {"network": "refine"}
        for conv in self.head_convs():
            init_conv(conv, std=0.01)


def strongest(maps: Tensor, owner: Tensor, images: int) -> Tensor:
    """Keep, at each pixel, only the maps equal to their image's maximum: (K, H, W) -> the same.

    Args:
        maps: of several images, one after the other, none below 0.
        owner: (K,) int64, which of the `images` each map is of.
    """
    owner = owner[:, None, None].expand_as(maps)
    highest = maps.new_zeros(images, *maps.shape[1:]).scatter_reduce(0, owner, maps, "amax")
    return torch.where(maps == highest.gather(0, owner), maps, 0.0)


def refinement_loss(class_maps: Tensor, maps: Tensor, owner: Tensor, number: Tensor) -> Tensor:
    """Mean squared error of the enlarged class maps against each pixel's strongest map.

    The enlarged maps p' = R p S^T, with a matrix each for rows and columns, are never made. In
    sum (p' - t)^2 = sum p'^2 - 2 sum p' t + sum t^2, the first two are sums over the few pixels of
    the class maps themselves, of p (R^T R) p (S^T S) and p (R^T t S); and t is 0 for all classes
    but an image's own. It is the same loss, with the same gradient, for a twentieth of the time.

    Args:
        class_maps: the network's, (B, C, h, w).
        maps: localization maps of the classifier as they are stored, (K, H, W) in [0, 255].
        owner, number: (K,) int64, which image of the batch and which class each map is of.

    Returns:
        Scalar float32, the mean over all images, classes and pixels.
    """
    with torch.autocast(class_maps.device.type, enabled=False):
        class_maps = class_maps.float()
        target = strongest(maps.float() / 255, owner, len(class_maps))
        rows, columns = (enlargement(*sides, maps.device) for sides in
                         zip(class_maps.shape[2:], maps.shape[1:], strict=True))
        enlarged_twice = (rows.T @ rows) @ class_maps @ (columns.T @ columns)
        reduced = rows.T @ target @ columns
        total = (class_maps * enlarged_twice).sum() + target.square().sum() \
            - 2 * (class_maps[owner, number] * reduced).sum()
    return total / (class_maps.shape[:2].numel() * maps.shape[1:].numel())


@cache
def enlargement(side: int, target: int, device: torch.device) -> Tensor:
    """What `upsample` does along one side, as a matrix (target, side) float32."""
    return upsample(torch.eye(side, device=device)[:, :, None], (target, 1))[:, :, 0].T
