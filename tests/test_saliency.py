"""make_saliency.py: networks in ONNX files made here, wrong ones of every kind, resume."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ONNX_MACHINE, run_script, run_stage, stage_error
from PIL import Image

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

import make_saliency  # noqa: E402
from datasets.images import read_companion, read_image  # noqa: E402
from labelling.saliency import RECIPES, Resizing, SaliencyNetwork, to_photo  # noqa: E402

OPSET, IR_VERSION = 17, 8  # what every onnxruntime of the last years reads


def network(path: Path, shape: tuple, *, inputs: int = 1, output: str = "red",
            kind: int = TensorProto.FLOAT) -> Path:
    """Write a network whose map is the input's first channel ("red"), its sigmoid, or that returns
    "everything"; names in `shape` are sizes left open."""
    photos = [helper.make_tensor_value_info(f"photo{i}", kind, shape) for i in range(inputs)]
    if output == "everything":
        nodes, result = [helper.make_node("Identity", ["photo0"], ["map"])], shape
    else:
        result = (shape[0], 1, *shape[2:])
        nodes = [helper.make_node("Slice", ["photo0", "zero", "one", "one"], ["red"]),
                 helper.make_node("Sigmoid" if output == "sigmoid" else "Identity", ["red"],
                                  ["map"])]
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], [value])
                 for name, value in (("zero", 0), ("one", 1))]
    graph = helper.make_graph(nodes, "net", photos, [
        helper.make_tensor_value_info("map", kind, result)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)],
                              ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos whose left half is red on blue; one lies on its side, one is grey."""
    root = tmp_path / "photos"
    root.mkdir()
    (root / "classes.txt").write_text("cat\n")
    for number, (height, width) in enumerate([(20, 30), (41, 17), (16, 16)]):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, : width // 2, 0] = 200
        pixels[:, width // 2:, 2] = 200
        Image.fromarray(pixels).save(root / f"photo {number}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).resize((40, 24)).save(root / "turned.jpg", exif=exif)
    Image.new("L", (9, 9), 77).save(root / "grey.png")
    return root


def command(photos: Path, model: object, *more: object) -> list[object]:
    return ["make_saliency", "--data-root", photos, "--run-dir", photos.parent / "run",
            *ONNX_MACHINE, "--model", model, *more]


def make(photos: Path, model: object, *more: object) -> None:
    run_stage(*command(photos, model, *more))


def error(photos: Path, model: object, *more: object) -> str:
    return stage_error(*command(photos, model, *more))


def test_maps_lie_on_the_upright_photos(photos, tmp_path):
    make(photos, network(tmp_path / "net.onnx", ("n", 3, 16, 16)))
    folder = tmp_path / "run" / "saliency"
    assert {path.stem for path in folder.glob("[!.]*.png")} == {
        "photo 0", "photo 1", "photo 2", "turned", "grey"}
    for path in folder.glob("[!.]*.png"):
        with Image.open(path) as saliency:
            assert saliency.mode == "L"
        source = next(photos.glob(f"{path.stem}.*"))
        image, orientation = read_image(source)
        saliency = read_companion(path, (image.height, image.width), orientation)
        if path.stem.startswith("photo"):
            middle = image.width // 2
            assert saliency[:, : middle - 2].min() > 200
            assert saliency[:, middle + 2:].max() < 50
        if path.stem == "turned":  # its red half is on the upright photo's top
            assert saliency[:14].mean() > 200 > 50 > saliency[-14:].mean()


def test_finished_photos_are_skipped_and_other_networks_told_apart(photos, tmp_path):
    red = network(tmp_path / "red.onnx", ("n", 3, 16, 16))
    make(photos, red, "--batch-size", 1)
    folder = tmp_path / "run" / "saliency"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*.png")}
    gone = folder / "grey.png"
    gone.unlink()
    make(photos, red, "--batch-size", 1)
    after = {path: path.stat().st_mtime_ns for path in before}
    redone = {path for path in before if before[path] != after[path]}
    assert gone in redone and len(redone) <= 2  # a batch is done whole
    other = network(tmp_path / "other.onnx", ("n", 3, 16, 16), output="sigmoid")
    assert "network" in error(photos, other)
    make(photos, other, "--dry-run", "--overwrite")
    assert gone.stat().st_mtime_ns == after[gone]
    (photos / "train_aug.txt").write_text("grey 0\n")  # labels are none of its business
    make(photos, other, "--overwrite")
    assert all(path.stat().st_mtime_ns != after[path] for path in before)


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_batches_do_not_change_a_map(tmp_path, batch):
    found = SaliencyNetwork(network(tmp_path / "net.onnx", (batch, 3, 8, 8)), RECIPES["u2net"])
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8)).astype(np.uint8)
    together = found(images)
    assert together.shape == (5, 8, 8)
    for image, expected in zip(images, together, strict=True):
        np.testing.assert_array_equal(found(image[None])[0], expected)
        red = image[0].astype(float)
        np.testing.assert_allclose(expected, (red - red.min()) / (red.max() - red.min()), atol=1e-5)


def test_photos_are_scaled_as_the_table_says():
    colours = np.array([10, 20, 40], np.uint8).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(
        RECIPES["u2net"].scaled(colours).ravel(),
        [(0.25 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (1.0 - 0.406) / 0.225], rtol=1e-5)
    np.testing.assert_allclose(RECIPES["isnet"].scaled(colours).ravel(),
                               np.array([10, 20, 40]) / 255 - 0.5, rtol=1e-5)
    black = RECIPES["u2net"].scaled(np.zeros((2, 1, 3, 3), np.uint8))
    np.testing.assert_allclose(black, -0.449 / 0.226, rtol=1e-4)
    assert (RECIPES["u2net"].side, RECIPES["isnet"].side) == (320, 1024)
    assert tuple(RECIPES) == make_saliency.MODELS
    photo = {"image": Image.new("RGB", (5, 7), (1, 2, 3))}
    assert Resizing((4, 6), 3).sample(photo, None)["image"].shape == (3, 4, 6)
    assert Resizing((4, 6), 1).sample(photo, None)["image"].shape == (1, 4, 6)


def test_a_flat_map_is_not_stretched(tmp_path):
    found = SaliencyNetwork(network(tmp_path / "net.onnx", (1, 3, 8, 8)), RECIPES["isnet"])
    np.testing.assert_allclose(found(np.full((1, 3, 8, 8), 255, np.uint8)), 0.5)
    np.testing.assert_allclose(found(np.zeros((1, 3, 8, 8), np.uint8)), 0)
    assert to_photo(np.full((8, 8), 0.5, np.float32), (3, 5)).tolist() == [[128] * 5] * 3


def test_open_sizes_grey_networks_and_half_precision(photos, tmp_path):
    open_size = network(tmp_path / "open.onnx", ("n", 3, "h", "w"))
    assert SaliencyNetwork(open_size, RECIPES["u2net"]).transform.size == (320, 320)
    make(photos, open_size, "--input-size", 24)
    grey = SaliencyNetwork(network(tmp_path / "grey.onnx", ("n", 1, 8, 12)), RECIPES["isnet"])
    assert (grey.transform.channels, grey.transform.size) == (1, (8, 12))
    half = SaliencyNetwork(network(tmp_path / "half.onnx", ("n", 3, 8, 8),
                                   kind=TensorProto.FLOAT16), RECIPES["isnet"])
    assert half(np.zeros((2, 3, 8, 8), np.uint8)).dtype == np.float32


def _text(path: Path) -> Path:
    path.write_text("<html>404</html>")
    return path


def _cut(path: Path) -> Path:
    network(path, (1, 3, 8, 8))
    path.write_bytes(path.read_bytes()[:40])
    return path


WRONG = {
    "two inputs": (lambda path: network(path, (1, 3, 8, 8), inputs=2), "photo0, photo1"),
    "five channels": (lambda path: network(path, (1, 5, 8, 8), output="everything"), "1, 5, 8, 8"),
    "channels last": (lambda path: network(path, (1, 8, 8, 3), output="everything"), "1, 8, 8, 3"),
    "no image": (lambda path: network(path, (1, 3), output="everything"), "1, 3"),
    "integers": (lambda path: network(path, (1, 3, 8, 8), output="everything",
                                      kind=TensorProto.INT64), "int64"),
    "three maps": (lambda path: network(path, (1, 3, 8, 8), output="everything"), "3, 8, 8"),
    "text": (_text, "no ONNX"),
    "cut short": (_cut, "no ONNX"),
    "missing": (lambda path: path, "neither u2net nor isnet nor a file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_networks_end_in_one_line(photos, tmp_path, kind):
    make_file, words = WRONG[kind]
    message = error(photos, make_file(tmp_path / "wrong.onnx"))
    assert "wrong.onnx" in message
    assert words in message
    assert not list((tmp_path / "run").glob("saliency/*.png"))


def test_missing_networks_and_packages_say_how_to_get_them(photos, tmp_path, monkeypatch):
    message = error(photos, "isnet", "--checkpoint-dir", tmp_path)
    assert "python download.py isnet" in message
    assert str(tmp_path / "isnet-general-use.onnx") in message
    fixed = network(tmp_path / "net.onnx", ("n", 3, 16, 16))
    assert "16x16" in error(photos, fixed, "--input-size", 24)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install -r requirements-extra.txt" in error(photos, fixed)


def test_a_bad_photo_does_not_stop_the_others(photos, tmp_path):
    (photos / "broken.jpg").write_text("no photo")
    message = error(photos, network(tmp_path / "net.onnx", (1, 3, 16, 16)))
    assert re.search(r"1 of 6 .*broken\.jpg", message)
    assert len(list((tmp_path / "run" / "saliency").glob("[!.]*.png"))) == 5


def test_a_list_and_worker_processes(photos, tmp_path):
    (photos / "some.txt").write_text("grey\nturned.jpg\n")
    name, *options = command(photos, network(tmp_path / "net.onnx", ("n", 3, 16, 16)))
    run_script(f"{name}.py", *options, "--list", "some", "--num-workers", 2,
               "--output-dir", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("[!.]*.png")} == {
        "grey.png", "turned.png"}
