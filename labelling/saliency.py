"""Saliency maps by an off-the-shelf network in an ONNX file, run by onnxruntime.

In: photos as arrays, a model file. Out: maps of how much each pixel stands out, 0 to 1. The file is
from outside: what does not look like a saliency network is refused in one line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from utils.extras import require
from utils.files import UserError

ELEMENT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
FLAT = 1e-6  # a map whose values differ by less has no foreground to stretch


@dataclass(frozen=True)
class Recipe:
    """How photos enter a network and what comes out of it.

    Attributes:
        file: its file in the checkpoint folder.
        side: of the square input, where the file leaves it open.
        mean, std: of R, G, B in 0 to 1; subtracted, divided by.
        by_maximum: photos are brought to 0..1 by their own brightest value, as in the network's
            training, instead of by 255.
        stretch: the output has no fixed range: each map is stretched to 0..1 by its own lowest and
            highest value. Otherwise it is cut to 0..1.
    """

    file: str
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    by_maximum: bool
    stretch: bool


# u2net: U-2-Net (Qin et al., 2020), data_loader.py (ToTensorLab) and u2net_test.py (normPRED) of
# github.com/xuebinqin/U-2-Net. isnet: IS-Net (Qin et al., 2022), Inference.py of
# github.com/xuebinqin/DIS. The ONNX files are those of the rembg project (release v0.0.0).
RECIPES = {
    "u2net": Recipe("u2net.onnx", 320, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
                    by_maximum=True, stretch=True),
    "isnet": Recipe("isnet-general-use.onnx", 1024, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0),
                    by_maximum=False, stretch=True),
}


@dataclass(frozen=True)
class Preparation:
    """A photo -> the network's input; needs no onnxruntime, so that loading processes can do it.

    Attributes:
        recipe: scale, mean and std.
        size: (height, width) of the input in pixels.
        channels: 3 for RGB, or 1 for grey.
    """

    recipe: Recipe
    size: tuple[int, int]
    channels: int

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB image of any size -> (channels, height, width) float32."""
        image = image.convert("L" if self.channels == 1 else "RGB")
        image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.float32).reshape(*self.size, self.channels)
        pixels = pixels / (max(float(pixels.max()), 1.0) if self.recipe.by_maximum else 255.0)
        mean, std = (np.array(values, np.float32) if self.channels == 3 else np.float32(
            np.mean(values)) for values in (self.recipe.mean, self.recipe.std))
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


class SaliencyNetwork:
    """A network that was checked: one image input of a known size, one map out.

    Args:
        path: the ONNX file.
        recipe: what to know about it beyond what it says itself.
        side: of the square input, if the file leaves it open; None: the recipe's.
        device: None for the CPU, or the number of a GPU.
        threads: on the CPU; 0: as many as there are cores.

    Raises:
        UserError: missing, not ONNX, another kind of network, or onnxruntime is not there or has no
            GPU support.
    """

    def __init__(self, path: Path, recipe: Recipe, *, side: int | None = None,
                 device: int | None = None, threads: int = 0) -> None:
        self.path, self.recipe = path, recipe
        self.session = self._open(device, threads)
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise UserError(f"{path}: takes {len(inputs)} inputs "
                            f"({', '.join(value.name for value in inputs)}), not one image")
        self.input, self.output = inputs[0].name, self.session.get_outputs()[0].name
        if inputs[0].type not in ELEMENT_TYPES:
            raise UserError(f"{path}: its input is {inputs[0].type}, not float")
        self.dtype = ELEMENT_TYPES[inputs[0].type]
        self.batch, channels, size = self._input_shape(inputs[0].shape, side)
        self.prepare = Preparation(recipe, size, channels)
        self._run(np.zeros((self.batch or 1, channels, *size), np.float32))

    def _open(self, device: int | None, threads: int) -> Any:
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        onnxruntime: Any = require("onnxruntime", "make_saliency.py")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device is not None:
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise UserError("--device cuda: this onnxruntime has no GPU support; "
                                "pip install onnxruntime-gpu in its place, or use --device cpu")
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device}))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what matters comes as an exception
        try:
            return onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime's own classes share no base but this
            raise UserError(f"{self.path}: no ONNX file that onnxruntime can run "
                            f"({_first_line(error)})") from error

    def _input_shape(self, shape: Sequence[Any], side: int | None
                     ) -> tuple[int | None, int, tuple[int, int]]:
        """Batch (None: any), channels and (height, width) from the graph; names are open sizes."""
        fixed = [length if isinstance(length, int) and length > 0 else None for length in shape]
        if len(fixed) != 4 or fixed[1] not in (1, 3, None):
            raise UserError(f"{self.path}: its input is {list(shape)}, not (batch, 1 or 3 "
                            "channels, height, width)")
        batch, channels, *size = fixed
        if side is not None and any(length not in (None, side) for length in size):
            raise UserError(f"--input-size {side}: {self.path} takes {size[0]}x{size[1]} pixels "
                            "and nothing else")
        side = side or self.recipe.side
        return batch, channels or 3, (size[0] or side, size[1] or side)

    def _run(self, images: np.ndarray) -> np.ndarray:
        try:
            maps, = self.session.run([self.output], {self.input: images.astype(self.dtype)})
        except Exception as error:
            raise UserError(f"{self.path}: cannot be run on {images.shape[2]}x{images.shape[3]} "
                            f"pixels ({_first_line(error)}); another --input-size?") from error
        maps = np.asarray(maps)
        if maps.ndim == 4 and maps.shape[1] == 1:
            maps = maps[:, 0]
        if maps.ndim != 3 or len(maps) != len(images) or not np.issubdtype(maps.dtype, np.floating):
            raise UserError(f"{self.path}: gives {maps.dtype} {list(maps.shape)} for "
                            f"{len(images)} images, not one map of floats for each")
        return maps.astype(np.float32)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Saliency of prepared photos.

        Args:
            images: (B, channels, height, width) float32, from `prepare`.

        Returns:
            (B, h, w) float32 in [0, 1]; h and w are the network's own.

        Raises:
            UserError: the network fails or returns something else.
        """
        if self.batch is None:
            maps = self._run(images)
        else:
            parts = []
            for start in range(0, len(images), self.batch):
                part = images[start:start + self.batch]
                missing = self.batch - len(part)
                filled = np.concatenate((part, np.repeat(part[-1:], missing, axis=0)))
                parts.append(self._run(filled)[:len(part)])
            maps = np.concatenate(parts)
        maps = np.nan_to_num(maps)
        if self.recipe.stretch:
            low, high = (extreme(axis=(1, 2), keepdims=True) for extreme in (maps.min, maps.max))
            spread = high - low
            maps = np.where(spread > FLAT, (maps - low) / np.maximum(spread, FLAT), maps)
        return np.clip(maps, 0, 1)


def to_photo(saliency: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) in [0, 1] as a grey picture (H, W) uint8 of `size`, the photo's."""
    resized = cv2.resize(saliency, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.rint(resized * 255).astype(np.uint8)


def model_file(model: str, folder: Path, like: str) -> tuple[Path, Recipe]:
    """The file and recipe of --model: a name in the table, or a file treated `like` one of them.

    Raises:
        UserError: there is no such file; the message says how to get it.
    """
    if model in RECIPES:
        path = folder / RECIPES[model].file
        if not path.is_file():
            raise UserError(f"--model {model}: {path} is not there; python download.py {model} "
                            "fetches it")
        return path, RECIPES[model]
    path = Path(model)
    if not path.is_file():
        raise UserError(f"--model {model}: neither {' nor '.join(RECIPES)} nor a file")
    return path, RECIPES[like]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
