"""What every network here shares: multi-scale localization maps, parameter groups, a trunk to load.

In: images (B, 3, H, W) float, normalised by the network's `input_mean` and `input_std`. Out: maps
of the classes present in each image. A network is a trunk and head (`models.vgg`) with what makes
it a classifier or a refinement network (`models.classifier`, `models.refine`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class LocalizationNetwork(nn.Module):
    """A network that ends in one map per class.

    Attributes:
        config: keyword arguments that rebuild the network (`models.build`).
        input_mean, input_std: of RGB in [0, 1], what the images are normalised by.
        imagenet_advice: what to do where the trunk's ImageNet weights cannot be fetched.
        class_maps: images (B, 3, H, W) -> maps (B, C, h, w), no activation on the output; the
            trunk's and head's own.
        score_maps: one image's class maps (K, h, w), size (H, W) -> scores (K, H, W); the
            classifier's or the refinement network's own.
        in_trunk: whether the parameter or buffer of this name belongs to the trunk, the part that
            comes from another training; the rest is head.
    """

    config: dict[str, Any]
    input_mean: tuple[float, float, float] = IMAGENET_MEAN
    input_std: tuple[float, float, float] = IMAGENET_STD
    imagenet_advice: str
    class_maps: Callable[[Tensor], Tensor]
    score_maps: Callable[[Tensor, tuple[int, int]], Tensor]
    in_trunk: Callable[[str], bool]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every trainable parameter in exactly one of four named groups (paper, "Training")."""
        groups: dict[str, list[nn.Parameter]] = {
            "trunk_weights": [], "trunk_biases": [], "head_weights": [], "head_biases": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part = "trunk" if self.in_trunk(name) else "head"
                kind = "biases" if name.endswith("bias") else "weights"
                groups[f"{part}_{kind}"].append(parameter)
        return groups

    def load_trunk(self, state: Mapping[str, Tensor]) -> list[str]:
        """Copy the trunk from `state` (head and DRS stay); return the names copied.

        Raises:
            ValueError: `state` lacks a tensor of the trunk, or one has another shape.
        """
        own = {name: tensor for name, tensor in self.state_dict().items() if self.in_trunk(name)}
        wrong = [name for name, tensor in own.items()
                 if name not in state or state[name].shape != tensor.shape]
        if wrong:
            raise ValueError("initial weights do not fit this trunk (width or batch norm differ?): "
                             + ", ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else ""))
        self.load_state_dict({name: state[name] for name in own}, strict=False)
        return list(own)

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
                height, width = result.shape[1:]
                scores = self.score_maps(image_maps[classes], (height, width))
                torch.maximum(result, scores, out=result)
        return results


def init_conv(conv: nn.Conv2d, std: float) -> None:
    """Weights of a head: normal with `std`; bias 0."""
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, align_corners=True: (K, h, w) -> (K, H, W), or (B, C, h, w) -> (B, C, H, W)."""
    batched = maps[None] if maps.dim() == 3 else maps
    if batched.shape[1] == 0:
        return maps.new_zeros(*maps.shape[:-2], *size)
    resized = F.interpolate(batched, size, mode="bilinear", align_corners=True)
    return resized[0] if maps.dim() == 3 else resized
