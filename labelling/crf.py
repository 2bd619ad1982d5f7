"""Fully connected CRF: class probabilities and the image in, probabilities with sharp borders out.

It needs the compiled package pydensecrf, which is optional: without it everything else works, and
`require_crf` says what is missing.
Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (2011); the default parameters are DeepLab's.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from typing import Any, TypeVar

import numpy as np
import torch

from utils.files import UserError

Key = TypeVar("Key")
SMALLEST = 1e-5  # probabilities below count as this, so that their logarithm stays finite
AHEAD = 2  # images per process that are read before their turn


@dataclass(frozen=True)
class CRFParams:
    """Parameters of the CRF.

    Attributes:
        iterations: mean-field steps.
        position_weight, position_xy: weight and range (pixels) of the smoothness kernel.
        bilateral_weight, bilateral_xy, bilateral_rgb: weight and ranges (pixels, grey levels) of
            the appearance kernel.
        negligible: a class whose probability is below this everywhere in the image takes no part;
            time is proportional to the classes that do. 0 keeps every class.
    """

    iterations: int = 10
    position_weight: float = 3.0
    position_xy: float = 1.0
    bilateral_weight: float = 4.0
    bilateral_xy: float = 67.0
    bilateral_rgb: float = 3.0
    negligible: float = 0.05
    backend: str = "pydensecrf"


def require_crf() -> None:
    """Check that pydensecrf is there.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as error:
        raise UserError(
            "the CRF needs the package pydensecrf, which is not installed: with a C++ compiler, "
            "pip install 'cython>=3' setuptools wheel && "
            "pip install --no-build-isolation pydensecrf2") from error


def dense_crf(image: np.ndarray, probabilities: np.ndarray,
              params: CRFParams = CRFParams()) -> np.ndarray:
    """Marginals of the fully connected CRF.

    Args:
        image: (H, W, 3) uint8, RGB. The lattice is not symmetric in the channels; it is fed BGR,
            as the program is that the published figures come from.
        probabilities: (C, H, W) float, each pixel's sum 1.
        params: see `CRFParams`.

    Returns:
        (C, H, W) float32, each pixel's sum 1; 0 for classes left out.

    Raises:
        ValueError: the shapes do not match.
        UserError: pydensecrf is not installed.
    """
    if image.shape != (*probabilities.shape[1:], 3) or image.dtype != np.uint8:
        raise ValueError(f"image {image.shape} {image.dtype} does not belong to probabilities "
                         f"{probabilities.shape}")
    require_crf()
    from pydensecrf.densecrf import DenseCRF2D

    classes = np.flatnonzero(probabilities.max(axis=(1, 2)) >= params.negligible)
    height, width = image.shape[:2]
    unary = -np.log(np.clip(probabilities[classes], SMALLEST, 1.0)).astype(np.float32)
    crf = DenseCRF2D(width, height, len(classes))
    crf.setUnaryEnergy(unary.reshape(len(classes), -1))
    crf.addPairwiseGaussian(sxy=params.position_xy, compat=params.position_weight)
    crf.addPairwiseBilateral(sxy=params.bilateral_xy, srgb=params.bilateral_rgb,
                             rgbim=np.require(image[..., ::-1], requirements=("C", "W")),
                             compat=params.bilateral_weight)
    marginals = np.zeros(probabilities.shape, dtype=np.float32)
    marginals[classes] = np.asarray(crf.inference(params.iterations)).reshape(unary.shape)
    return marginals


def crf_label(image: np.ndarray, probabilities: np.ndarray,
              params: CRFParams = CRFParams()) -> np.ndarray:
    """The most probable class of each pixel after `dense_crf`: (H, W) uint8."""
    return dense_crf(image, probabilities, params).argmax(axis=0).astype(np.uint8)


def crf_labels(items: Iterable[tuple[Key, np.ndarray, Any]], params: CRFParams = CRFParams(),
               processes: int = 1) -> Iterator[tuple[Key, np.ndarray]]:
    """`crf_label` of many images in a pool of processes.

    Args:
        items: (key, image, probabilities, an array or a tensor); read as the pool gets on, so that
            memory does not grow with the number of images. Keys stay in this process.
        params: see `CRFParams`.
        processes: 1 computes in this process; the result is the same.

    Yields:
        (key, label) in the order of `items`.
    """
    items = ((key, image, torch.as_tensor(scores).cpu().numpy()) for key, image, scores in items)
    require_crf()
    if processes <= 1:
        for key, image, probabilities in items:
            yield key, crf_label(image, probabilities, params)
        return
    # No plain fork: it would copy the state of CUDA and of running threads. A fork server imports
    # the script once for all processes, spawn once for each.
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(processes, mp_context=get_context(method)) as pool:
        waiting: deque[tuple[Key, Future]] = deque()
        try:
            for key, image, probabilities in items:
                waiting.append((key, pool.submit(crf_label, image, probabilities, params)))
                if len(waiting) > AHEAD * processes:
                    key, label = waiting.popleft()
                    yield key, label.result()
            while waiting:
                key, label = waiting.popleft()
                yield key, label.result()
        finally:
            pool.shutdown(cancel_futures=True)


def score_probabilities(scores: torch.Tensor, background: float) -> torch.Tensor:
    """Localization scores against a constant score of the background, as the CRF's input.

    Args:
        scores: (K, H, W) float >= 0, the maps of the classes present.
        background: above 0.

    Returns:
        (1 + K, H, W) float32, the background first, each pixel's sum 1. The most probable is what
        a threshold at `background` gives.
    """
    scores = torch.as_tensor(scores).float()
    stack = torch.cat((scores.new_full((1, *scores.shape[1:]), background), scores))
    return stack / stack.sum(dim=0)
