"""ONNX export: a trained network in, one file out that runs without this project or PyTorch.

    import json, numpy as np, onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession("deeplab.onnx")
    about = session.get_modelmeta().custom_metadata_map
    image = np.asarray(Image.open("photo.jpg").convert("RGB"))
    probabilities, = session.run(None, {"image": image.transpose(2, 0, 1)[None]})
    label = probabilities[0].argmax(axis=0).astype(np.uint8)  # (height, width)
    print([json.loads(about["classes"])[number] for number in np.unique(label)])
"""

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.deeplab import MultiScale
from libs.transforms import normalize
from utils.files import UserError, atomic_write, sweep_for

OPSET = 17  # has every operator needed here; runtimes since 2022 know it
TRACED_SIZE = (2, 3, 65, 97)  # of the image that the network is traced with
INPUT = ("image: uint8 (batch, 3, height, width), RGB as decoded, any size; turned to BGR, "
         "and the mean subtracted, in the network")
OUTPUT = ("probabilities: float32 (batch, classes, height, width) at the image's size; their sum "
          "over classes is 1, and a pixel's label is their argmax")


class _Probabilities(nn.Module):
    """What `main.py test` computes, from the image as it is decoded to the probabilities."""

    def __init__(self, model: MultiScale, mean: Sequence[float]) -> None:
        super().__init__()
        self.model, self.mean = model, tuple(mean)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(normalize(images, self.mean))
        return F.interpolate(logits, images.shape[2:], mode="bilinear",
                             align_corners=False).softmax(dim=1)


def export_onnx(model: MultiScale, path: Path, classes: Sequence[str], mean: Sequence[float],
                palette: Sequence[Sequence[int]]) -> None:
    """Write `model` to `path` as ONNX, float32, for any batch and image size.

    Input and output are described by INPUT and OUTPUT, which the file holds among its meta-data:
    "classes" (names by label), "mean" (of B, G, R in 0 .. 255), "palette" (an RGB triple a class),
    all three in JSON, "input" and "output". Images need a side of 1 / the smallest scale pixels.

    Args:
        model: on any device, in any mode; it is left as it is.
        classes: a name for each of the network's maps, the background's first.
        mean: of B, G and R in 0 .. 255.
        palette: RGB in 0 .. 255 by label; what it has beyond the classes is left out.

    Raises:
        UserError: the package onnx is missing, or the file cannot be written.
        ValueError: the number of classes is not the network's, or the palette is shorter.
    """
    count = model.config["num_classes"]
    if len(classes) != count or len(palette) < count:
        raise ValueError(f"{len(classes)} classes and {len(palette)} colours for {count} maps")
    try:
        import onnx
    except ImportError as error:
        raise UserError("exporting needs the package onnx: pip install onnx") from error
    network = _Probabilities(copy.deepcopy(model), mean).cpu().float().eval()
    axes = {0: "batch", 2: "height", 3: "width"}
    sweep_for(path)
    with atomic_write(path) as tmp:
        with warnings.catch_warnings(), torch.no_grad():
            # PyTorch's default since 2.9, by torch.export, needs a package more (onnxscript).
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of the smallest images
            torch.onnx.export(network, (torch.zeros(TRACED_SIZE, dtype=torch.uint8),), tmp,
                              input_names=["image"], output_names=["probabilities"],
                              dynamic_axes={"image": axes, "probabilities": axes},
                              opset_version=OPSET, dynamo=False)
        exported = onnx.load(tmp)
        onnx.helper.set_model_props(exported, {
            "classes": json.dumps(list(classes)), "mean": json.dumps(list(mean)),
            "palette": json.dumps([list(color) for color in palette[:count]]),
            "input": INPUT, "output": OUTPUT})
        onnx.checker.check_model(exported)
        onnx.save(exported, tmp)
