"""Fully connected CRF: class probabilities and the image in, probabilities with sharp borders out.

Written in PyTorch, on the device of the probabilities, with a gradient with respect to them; on
request computed by the compiled package pydensecrf instead, whose results it reproduces.
Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (2011), algorithm 1 with a Potts model; the default parameters are DeepLab's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from labelling.lattice import Filter, Lattice
from utils.files import UserError
from utils.threads import ordered_map

Key = TypeVar("Key")
Array = TypeVar("Array", np.ndarray, Tensor)
SMALLEST = 1e-5  # probabilities below count as this, so that their logarithm stays finite
ABSENT = -1e4  # energy of a class that takes no part: its exponential is 0
SIDES = 8  # classes are filtered fastest in multiples of a vector register's width
MARGIN = 1.0  # ranges of the appearance kernel that a tile sees beyond its part of the image


@dataclass(frozen=True)
class CRFParams:
    """Parameters of the CRF.

    Attributes:
        iterations: mean-field steps.
        position_weight, position_xy: weight and range (standard deviation, pixels) of the
            smoothness kernel.
        bilateral_weight, bilateral_xy, bilateral_rgb: weight and ranges (pixels, grey levels) of
            the appearance kernel.
        negligible: a class whose probability is below this everywhere in the image takes no part;
            time is proportional to the classes that do. 0 keeps every class. It counts as at most
            1 / C, so that a pixel's most probable class always takes part.
        backend: "torch", or "pydensecrf", the compiled package (requirements-crf.txt).
        max_pixels: a larger image is done in overlapping tiles of about this size.
    """

    iterations: int = 10
    position_weight: float = 3.0
    position_xy: float = 1.0
    bilateral_weight: float = 4.0
    bilateral_xy: float = 67.0
    bilateral_rgb: float = 3.0
    negligible: float = 0.05
    backend: str = "torch"
    max_pixels: int = 1_500_000


def require_crf(params: CRFParams = CRFParams()) -> None:
    """Check that the backend is there; "torch" always is.

    Raises:
        UserError: there is no such backend, or pydensecrf is not installed; the message says how
            to install it.
    """
    if params.backend not in ("torch", "pydensecrf"):
        raise UserError(f"CRF backend {params.backend}: there are torch and pydensecrf")
    if params.backend == "pydensecrf":
        try:
            import pydensecrf.densecrf  # noqa: F401
        except ImportError as error:
            raise UserError(
                "CRF backend pydensecrf: the package is not installed; use torch or, with a C++ "
                "compiler, pip install 'cython>=3' setuptools wheel && pip install "
                "--no-build-isolation -r requirements-crf.txt") from error


def dense_crf(image: Array, probabilities: Array, params: CRFParams = CRFParams()) -> Array:
    """Marginals of the fully connected CRF.

    Differentiable with respect to the probabilities (backend torch, tensors), as far as they are
    above `SMALLEST` and their classes are not left out: train with `negligible=0`.

    Args:
        image: (H, W, 3) uint8, RGB, or several of one size, (B, H, W, 3). The kernel's features
            are taken in the order B, G, R: the lattice is not symmetric in them, and the published
            figures come from a program that reads images so.
        probabilities: (C, H, W) or (B, C, H, W) float, each pixel's sum 1. An array, or a tensor
            on any device, where everything is then computed.
        params: see `CRFParams`.

    Returns:
        As probabilities, float32 (float64 if they are), each pixel's sum 1; 0 for classes left out.

    Raises:
        ValueError: the shapes do not match.
        UserError: the backend is missing, or the ranges are too small for the image's size.
    """
    if isinstance(probabilities, np.ndarray):
        pixels, scores = (torch.from_numpy(np.require(array, requirements=("C", "W")))
                          for array in (image, probabilities))
        return dense_crf(pixels, scores, params).numpy()
    if (image.shape != (*probabilities.shape[:-3], *probabilities.shape[-2:], 3)
            or image.dtype != torch.uint8 or image.ndim not in (3, 4)):
        raise ValueError(f"image {tuple(image.shape)} {image.dtype} does not belong to "
                         f"probabilities {tuple(probabilities.shape)}")
    require_crf(params)
    if probabilities.dtype != torch.float64:
        probabilities = probabilities.float()
    if image.ndim == 4:
        return _tiled(image, probabilities, params)
    return _tiled(image[None], probabilities[None], params)[0]


def _tiled(images: Tensor, probabilities: Tensor, params: CRFParams) -> Tensor:
    """`dense_crf` of (B, H, W, 3) and (B, C, H, W), tile by tile."""
    _, height, width, _ = images.shape
    tiles = list(_tiles(height, width, params))
    if len(tiles) == 1:
        return _whole(images, probabilities, params)
    # Two tiles with half of the cores each are done sooner than one after the other with all.
    cores = torch.get_num_threads()
    at_once = min(2, cores) if images.device.type == "cpu" else 1
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def part(tile: Tile) -> Tensor:
        if at_once > 1:
            torch.set_num_threads(cores // at_once)
        with torch.inference_mode(modes[1]), torch.set_grad_enabled(modes[0]):  # a thread's own
            rows, columns = tile.seen
            return _whole(images[:, rows, columns], probabilities[:, :, rows, columns], params)

    marginals = torch.zeros_like(probabilities)
    try:
        for tile, seen in zip(tiles, ordered_map(part, tiles, at_once), strict=True):
            marginals[:, :, tile.kept[0], tile.kept[1]] = seen[:, :, tile.inner[0], tile.inner[1]]
    finally:
        torch.set_num_threads(cores)
    return marginals


class Tile(NamedTuple):
    """A part of an image, as slices of rows and columns: what is kept of its result, what it sees,
    and the one within the other."""

    kept: tuple[slice, slice]
    seen: tuple[slice, slice]
    inner: tuple[slice, slice]


def _tiles(height: int, width: int, params: CRFParams) -> Iterator[Tile]:
    """Tiles that see parts of one size, so that they share the smoothness kernel's lattice."""
    margin = round(MARGIN * params.bilateral_xy)
    if height * width <= params.max_pixels:
        side = max(height, width)
    else:
        side = max(1, round(params.max_pixels ** 0.5) - 2 * margin)
    for rows, columns in product(_cuts(height, side, margin), _cuts(width, side, margin)):
        yield Tile(*((rows[i], columns[i]) for i in range(3)))


def _cuts(length: int, side: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    """A length in about equal pieces, none longer than `side`, each with what it sees around it."""
    pieces = -(-length // side)
    seen = min(length, -(-length // pieces) + 2 * margin)
    for i in range(pieces):
        start, stop = length * i // pieces, length * (i + 1) // pieces
        first = min(max(0, start - margin), length - seen)
        yield (slice(start, stop), slice(first, first + seen), slice(start - first, stop - first))


def _whole(images: Tensor, probabilities: Tensor, params: CRFParams) -> Tensor:
    """`dense_crf` of (B, H, W, 3) and (B, C, H, W) without tiles: unary energies in, marginals out,
    both as (B N, K) with the K classes that an image keeps."""
    count, classes = probabilities.shape[:2]
    threshold = min(params.negligible, 1 / classes)
    kept = [present.nonzero()[:, 0]
            for present in (probabilities.detach().amax(dim=(2, 3)) >= threshold).cpu()]
    most = max(map(len, kept))
    if most > SIDES // 2 and params.backend == "torch":
        most = -(-most // SIDES) * SIDES
    energies = probabilities.new_full((count, images[0, ..., 0].numel(), most), ABSENT)
    for i, some in enumerate(kept):
        energies[i, :, :len(some)] = probabilities[i, some].clamp(SMALLEST, 1).log().flatten(1).t()
    infer = _mean_field if params.backend == "torch" else _pydensecrf
    refined = infer(images.flip(-1), energies.flatten(0, 1), params).view_as(energies)
    marginals = torch.zeros_like(probabilities)
    for i, some in enumerate(kept):
        marginals[i, some] = refined[i, :, :len(some)].t().reshape(-1, *marginals.shape[2:])
    return marginals


def _mean_field(images: Tensor, energies: Tensor, params: CRFParams) -> Tensor:
    """Algorithm 1: images (B, H, W, 3), BGR, and log probabilities (B N, K) -> marginals (B N, K).
    """
    size = (images.shape[0], images.shape[1], images.shape[2])
    kind = energies.device, energies.dtype
    position = _position_lattice(size, params.position_xy, params.position_weight, *kind)
    places = _places(size, energies.device) / params.bilateral_xy
    colours = images.reshape(-1, 3).t().float() / params.bilateral_rgb
    appearance = Lattice(torch.cat((places, colours)), params.bilateral_weight, size[0], kind[1])
    marginals = _softmax(energies)
    if energies.requires_grad:
        for _ in range(params.iterations):
            marginals = _softmax(energies + Filter.apply(marginals, position)
                                 + Filter.apply(marginals, appearance))
        return marginals
    lattices = position, appearance
    work = [energies.new_empty(2, lattice.vertices, energies.shape[1]) for lattice in lattices]
    for _ in range(params.iterations):
        blurred = [lattice.blurred(marginals, space)
                   for lattice, space in zip(lattices, work, strict=True)]
        for (rows, smooth), (_, similar) in zip(position.slice(blurred[0]),
                                                appearance.slice(blurred[1]), strict=True):
            _softmax(smooth.add_(similar).add_(energies[rows]), out=marginals[rows])
    return marginals


def _softmax(energies: Tensor, out: Tensor | None = None) -> Tensor:
    """Softmax over the last dimension of (.., K), several times as fast as torch's for small K."""
    exponentials = energies.exp()
    return torch.div(exponentials, (exponentials @ energies.new_ones(energies.shape[1]))[:, None],
                     out=out)


@lru_cache(maxsize=4)
def _position_lattice(size: tuple[int, int, int], sigma: float, weight: float,
                      device: torch.device, dtype: torch.dtype) -> Lattice:
    """The smoothness kernel, the same for all images of a size (B, H, W)."""
    return Lattice(_places(size, device) / sigma, weight, size[0], dtype)


def _places(size: tuple[int, int, int], device: torch.device) -> Tensor:
    """x and y of every pixel of B images: (2, B N) float32."""
    images, height, width = size
    y, x = torch.meshgrid(torch.arange(height, dtype=torch.float32, device=device),
                          torch.arange(width, dtype=torch.float32, device=device), indexing="ij")
    return torch.stack((x.flatten(), y.flatten())).repeat(1, images)


def _pydensecrf(images: Tensor, energies: Tensor, params: CRFParams) -> Tensor:
    """As `_mean_field`, by the compiled package."""
    from pydensecrf.densecrf import DenseCRF2D

    count, height, width = images.shape[:3]
    results = []
    for image, energy in zip(images, energies.view(count, -1, energies.shape[1]), strict=True):
        crf = DenseCRF2D(width, height, energies.shape[1])
        crf.setUnaryEnergy((-energy).t().contiguous().float().cpu().numpy())
        crf.addPairwiseGaussian(sxy=params.position_xy, compat=params.position_weight)
        crf.addPairwiseBilateral(sxy=params.bilateral_xy, srgb=params.bilateral_rgb,
                                 rgbim=image.contiguous().cpu().numpy(),
                                 compat=params.bilateral_weight)
        marginals = torch.from_numpy(np.asarray(crf.inference(params.iterations)))
        results.append(marginals.view(energies.shape[1], -1).t())
    return torch.cat(results).to(energies)


def crf_label(image: Array, probabilities: Array, params: CRFParams = CRFParams()) -> Array:
    """The most probable class of each pixel after `dense_crf`: (H, W) uint8."""
    marginals = dense_crf(image, probabilities, params)
    if isinstance(marginals, np.ndarray):
        return marginals.argmax(axis=0).astype(np.uint8)
    return marginals.argmax(dim=0).to(torch.uint8)


def crf_labels(items: Iterable[tuple[Key, Array, Tensor]], params: CRFParams = CRFParams()
               ) -> Iterator[tuple[Key, Tensor]]:
    """`crf_label` of many images, one after the other, on the device of their probabilities.

    Args:
        items: (key, image (H, W, 3) uint8, probabilities (C, H, W)); read one at a time, so that
            memory does not grow with the number of images.
        params: see `CRFParams`.

    Yields:
        (key, label (H, W) uint8 on the device), in the order of `items`.
    """
    require_crf(params)
    for key, image, probabilities in items:
        pixels = torch.as_tensor(image).to(probabilities.device)
        yield key, crf_label(pixels, probabilities, params)


def score_probabilities(scores: Tensor, background: float) -> Tensor:
    """Localization scores against a constant score of the background, as the CRF's input.

    Args:
        scores: (K, H, W) float >= 0, the maps of the classes present.
        background: above 0.

    Returns:
        (1 + K, H, W) float32, the background first, each pixel's sum 1. The most probable is what
        a threshold at `background` gives.
    """
    scores = scores.float()
    stack = torch.cat((scores.new_full((1, *scores.shape[1:]), background), scores))
    return stack / stack.sum(dim=0)
