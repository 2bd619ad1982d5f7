"""The golden figures and the recipe that makes their weights and inputs from names alone."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "golden"
GOLDEN = np.load(FOLDER / "golden.npz")
KEYS: dict[str, dict[str, list[int]]] = json.loads(
    (FOLDER / "state_dict_keys.json").read_text())


def golden_tensor(key: str, shape: Sequence[int], seed: int = 1) -> Tensor:
    """The recipe's weight of the state-dict key `key`."""
    rng = np.random.default_rng([zlib.crc32(key.encode()), seed])
    shape = tuple(shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if key.endswith("running_var"):
        value = 0.5 + rng.random(shape)
    elif key.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif key.endswith("bias"):
        value = 0.01 * rng.standard_normal(shape)
    elif len(shape) == 1:
        value = 0.2 + 0.4 * rng.random(shape)
    elif len(shape) == 2:
        value = rng.standard_normal(shape) / np.sqrt(shape[1])
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32))


def golden_state(shapes: Mapping[str, Sequence[int]], seed: int = 1) -> dict[str, Tensor]:
    """The recipe's state dict for keys and shapes."""
    return {key: golden_tensor(key, shape, seed) for key, shape in shapes.items()}


def load_golden(model: nn.Module, seed: int = 1) -> nn.Module:
    """Fill `model` with the recipe's weights."""
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(golden_state(shapes, seed))
    return model


def rnd(name: str, shape: Sequence[int], seed: int = 1) -> Tensor:
    """The recipe's input called `name`."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    return torch.from_numpy(rng.standard_normal(tuple(shape)).astype(np.float32))


def relative_error(value: Tensor, expected: np.ndarray | Tensor) -> float:
    """Largest deviation over the largest expected magnitude."""
    expected = torch.as_tensor(expected)
    assert value.shape == expected.shape, (value.shape, expected.shape)
    return float((value - expected).abs().max() / expected.abs().max())
