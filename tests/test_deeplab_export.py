"""DeepLab as ONNX: what onnxruntime computes from the file is what `test` computes, at any size."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "DeepLab-V2-PyTorch"))

from libs import export
from libs.deeplab import DeepLabV2, MultiScale
from libs.inference import class_probabilities
from libs.transforms import normalize
from utils.files import UserError

MEAN = [104.008, 116.669, 122.675]
CLASSES = ["background", "cat", "dog", "l'âne"]
PALETTE = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]


@pytest.fixture(scope="module")
def model() -> MultiScale:
    """A small network whose batch norm has seen images, with clear opinions."""
    torch.manual_seed(0)
    model = MultiScale(DeepLabV2(len(CLASSES), (1, 1, 1, 1), 0.125, freeze_bn=False))
    for _ in range(3):
        model(60 * torch.randn(2, 3, 64, 64))
    with torch.no_grad():
        model.base.aspp.c0.weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    pytest.importorskip("onnx")
    path = tmp_path_factory.mktemp("onnx") / "deeplab.onnx"
    export.export_onnx(model, path, CLASSES, MEAN, PALETTE)
    return path


@pytest.mark.parametrize(("batch", "size"), [(1, (65, 97)), (3, (120, 80)), (1, (33, 250))])
def test_onnxruntime_agrees_with_pytorch(model, exported, batch, size):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    images = torch.from_numpy(np.random.default_rng(0).integers(
        0, 256, (batch, 3, *size), dtype=np.uint8))
    probabilities, = session.run(None, {"image": images.numpy()})
    with torch.inference_mode():
        logits = model.eval()(normalize(images, MEAN))
        expected = torch.stack([class_probabilities(one, size) for one in logits])
    assert probabilities.shape == (batch, len(CLASSES), *size)
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-3)
    assert len(np.unique(probabilities.argmax(axis=1))) > 1 and probabilities.max() > 0.7


def test_the_file_tells_how_it_is_used(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == CLASSES and json.loads(about["mean"]) == MEAN
    assert json.loads(about["palette"]) == [list(color) for color in PALETTE[:4]]
    assert "uint8" in about["input"] and "RGB" in about["input"] and "argmax" in about["output"]
    image, = session.get_inputs()
    assert image.name == "image" and image.type == "tensor(uint8)"
    assert image.shape == ["batch", 3, "height", "width"]


def test_the_example_in_the_docstring_runs(exported, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("deeplab.onnx").write_bytes(exported.read_bytes())
    Image.effect_noise((70, 50), 80).save("photo.jpg")
    code = [line[4:] for line in export.__doc__.splitlines() if line.startswith("    ")]
    exec("\n".join(code), {})
    names = capsys.readouterr().out
    assert names.startswith("[") and any(name in names for name in CLASSES)


def test_the_network_is_left_as_it_is(model, tmp_path):
    pytest.importorskip("onnx")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export.export_onnx(model, tmp_path / "a.onnx", CLASSES, MEAN, PALETTE)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_what_cannot_be_exported_is_said(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="3 classes and 5 colours for 4 maps"):
        export.export_onnx(model, tmp_path / "a.onnx", CLASSES[:3], MEAN, PALETTE)
    with pytest.raises(UserError, match="nowhere"):
        export.export_onnx(model, tmp_path / "nowhere" / "a.onnx", CLASSES, MEAN, PALETTE)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="needs the package onnx: pip install onnx"):
        export.export_onnx(model, tmp_path / "a.onnx", CLASSES, MEAN, PALETTE)
    assert not list(tmp_path.iterdir())
