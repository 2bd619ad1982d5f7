"""Colour jitter on whole batches: each image with factors and an order of its own.

In: images (B, 3, H, W) float in [0, 1] on any device, and the numbers that `draw` drew for each.
Out: the same, jittered. Computes what torchvision's ColorJitter computes image by image on floats,
in a fraction of its time, and never makes the CPU wait for a GPU by looking at a value.
"""

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
STRENGTH = (0.3, 0.3, 0.3)  # brightness, contrast, saturation: factors in 1 +- strength
HUE_STRENGTH = 0.1  # turns of the colour circle
LUMA = (0.2989, 0.587, 0.114)  # weights of R, G, B in a pixel's grey, as in torchvision
GREEN = 2.0  # where it lies on a colour circle of length 6 that begins at red; blue at -2
TINY = 1e-12


def draw(rng: np.random.Generator) -> Tensor:
    """The random choices for one image, distributed as torchvision's ColorJitter draws them.

    Returns:
        (8,) float32: the factors of brightness, contrast and saturation (uniform in 0.7 .. 1.3)
        and the turn of the hue (uniform in -0.1 .. 0.1), then the numbers 0 .. 3 of these four in
        the order in which they are to be applied (uniform over the 24 orders).
    """
    factors = [rng.uniform(1 - strength, 1 + strength) for strength in STRENGTH]
    turn = rng.uniform(-HUE_STRENGTH, HUE_STRENGTH)
    return torch.tensor([*factors, turn, *rng.permutation(4)], dtype=torch.float32)


def apply(images: Tensor, draws: Tensor) -> Tensor:
    """Jitter a batch; the result of every step is clamped to [0, 1].

    The order differs from image to image, but hue, the costly step, is computed once, for all
    images together. What an image does before it and after it are blends, in which the images that
    have nothing to do at a position take part with a factor of 1.

    Args:
        images: (B, 3, H, W) float in [0, 1]; overwritten.
        draws: (B, 8) of `draw`, on the same device.

    Returns:
        (B, 3, H, W).
    """
    order = draws[:, 4:].long()
    factors = draws[:, :4].gather(1, order)  # in the order of the steps
    position = torch.arange(4, device=draws.device)
    hue_at = (order == HUE).long().argmax(dim=1, keepdim=True)
    before = torch.where(position < hue_at, factors, 1.0)
    after = torch.where(position > hue_at, factors, 1.0)
    for step in range(3):
        images = _blend(images, before[:, step], order[:, step])
    images = _turn_hue(images, draws[:, HUE])
    for step in range(1, 4):
        images = _blend(images, after[:, step], order[:, step])
    return images


def _blend(images: Tensor, factor: Tensor, step: Tensor) -> Tensor:
    """factor * image + (1 - factor) * other, other being black for brightness, the mean grey for
    contrast, the grey image for saturation; `factor` (B,), and `step` (B,) says which of them."""
    if images.device.type == "cpu" and (factor == 1).all():
        return images
    grey = _grey(images)
    mean = grey.mean(dim=(1, 2), keepdim=True) * (step == CONTRAST).float()[:, None, None]
    other = grey.mul_((step == SATURATION).float()[:, None, None]).add_(mean)[:, None]
    return images.lerp_(other, 1 - factor[:, None, None, None]).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H, W)."""
    red, green, blue = images.unbind(dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by `turn` (B,) of a circle, in HSV, where value and saturation stay.

    With u = (R, G, B) - min over chroma = max - min, the distance of a pixel's hue from red, on a
    circle of length 6, is 1 + u_G + u_B - u_R, and it lies on green's side where G > B. A channel
    is back at min + chroma * t, t falling from 1 to 0 between distances 1 and 2 from its colour.
    """
    red, green, blue = images.unbind(dim=1)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(low)
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_min(TINY)).add_(1)
    hue = torch.copysign(hue, green - blue).add_(6 * turn[:, None, None])
    offsets = torch.stack((hue, hue - GREEN, hue + GREEN), dim=1)
    # | |offset| - 3 | - 1 is 2 - distance, on the circle, also beyond half a turn.
    share = offsets.abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
    return share.mul_(chroma[:, None]).add_(low[:, None])
