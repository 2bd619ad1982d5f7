"""DeepLab's network, losses and schedule against the golden figures and against formulas."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_recipe import GOLDEN, KEYS, load_golden, relative_error, rnd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "DeepLab-V2-PyTorch"))

from libs.deeplab import DeepLabV2, MultiScale
from libs.losses import cross_entropy, deeplab_loss, online_labels, resize_labels
from libs.resnet import ConvBN
from libs.schedule import poly_factor, poly_schedule


def small(num_classes: int = 21, **options) -> MultiScale:
    return MultiScale(DeepLabV2(num_classes, blocks=(1, 1, 1, 1), **options))


def test_resnet101_has_the_released_keys_and_shapes():
    with torch.device("meta"):
        model = MultiScale(DeepLabV2())
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == KEYS["deeplabv2_resnet101_msc"]
    assert list(shapes) == list(KEYS["deeplabv2_resnet101_msc"])


def test_golden_logits():
    model = load_golden(MultiScale(DeepLabV2())).eval()
    with torch.inference_mode():
        logits = model(rnd("deeplab", (1, 3, 97, 113)) * 40)
    assert relative_error(logits, GOLDEN["deeplab_logits"]) < 1e-4


@pytest.mark.parametrize("relu", [False, True])
def test_frozen_batch_norm_in_the_convolution_is_the_layer(relu):
    """And so are all gradients, also of batch norm that is only in evaluation mode."""
    block, x = ConvBN(3, 5, 3, stride=2, dilation=2, relu=relu).double().eval(), torch.randn(
        2, 3, 9, 11, dtype=torch.float64)
    for tensor in (block.bn.weight, block.bn.bias, block.bn.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(block.bn.running_var, 0.1, 2)
    plain = block.bn(block.conv(x)).relu() if relu else block.bn(block.conv(x))
    found, weights = block(x), list(block.parameters())
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), weights),
                               torch.autograd.grad(plain.square().sum(), weights))


def test_images_of_one_pixel_have_logits():
    model = small().eval()
    with torch.inference_mode():
        for size in ((1, 1), (1, 40)):
            assert model(rnd("pixel", (1, 3, *size))).isfinite().all()


def test_golden_training():
    model = load_golden(small()).train()
    groups = model.parameter_groups()
    lr = 2.5e-6
    optimizer = torch.optim.SGD([
        {"params": groups["conv_weights"], "lr": lr, "weight_decay": 5e-4},
        {"params": groups["aspp_weights"], "lr": 10 * lr, "weight_decay": 5e-4},
        {"params": groups["aspp_biases"], "lr": 20 * lr, "weight_decay": 0.0}], momentum=0.9)
    images = rnd("deeplab-train", (2, 3, 65, 65)) * 40
    labels = torch.from_numpy(GOLDEN["deeplab_train_labels"]).long()
    present = torch.from_numpy(GOLDEN["deeplab_train_cls"])
    losses = []
    for _ in range(4):
        maps = model(images)
        loss = deeplab_loss(maps, labels, present)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [list(m.shape[2:]) for m in maps] == GOLDEN["deeplab_train_logit_sizes"].tolist()
    np.testing.assert_allclose(losses, GOLDEN["deeplab_train_losses"], rtol=1e-3)
    state = model.state_dict()
    norms = [float(state[key].norm()) for key in (
        "base.layer1.conv1.conv.weight", "base.aspp.c0.weight", "base.aspp.c0.bias")]
    np.testing.assert_allclose(norms, GOLDEN["deeplab_train_norms"], rtol=1e-4)


@pytest.mark.parametrize("freeze_bn", [True, False])
def test_every_trainable_parameter_is_in_one_group(freeze_bn):
    model = small(width=0.25, freeze_bn=freeze_bn)
    groups = model.parameter_groups()
    grouped = [id(p) for parameters in groups.values() for p in parameters]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert ("batch_norm" in groups) is not freeze_bn


@pytest.mark.parametrize("is_new", [True, False])  # else train() was called
def test_frozen_batch_norm_does_not_move(is_new):
    model = load_golden(small(width=0.25))
    if not is_new:
        model.train()
    before = {k: v.clone() for k, v in model.state_dict().items() if ".bn." in k}
    model(torch.randn(2, 3, 65, 65))[0].sum().backward()
    after = model.state_dict()
    assert before and all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("size", [(321, 321), (65, 97), (97, 65), (224, 150), (33, 500)])
@pytest.mark.parametrize("target", [(41, 41), (9, 13), (13, 9), (28, 19), (100, 7)])
def test_labels_are_resized_as_pillow_does(size, target):
    labels = np.random.default_rng(0).integers(0, 256, (2, *size), dtype=np.uint8)
    expected = [np.asarray(Image.fromarray(label).resize(target[::-1], Image.Resampling.NEAREST))
                for label in labels]
    resized = resize_labels(torch.from_numpy(labels).long(), target)
    np.testing.assert_array_equal(resized.numpy(), np.stack(expected))


def test_online_labels():
    logits = torch.tensor([-1.0, -2.0, 3.0, -4.0]).view(1, 4, 1, 1)
    present = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert online_labels(logits, present, "official").item() == 2  # 0 * 3 beats -1
    assert online_labels(logits, present, "masked").item() == 0
    with pytest.raises(ValueError, match="offf"):
        online_labels(logits, present, "offf")


def test_losses_are_the_sums_over_maps():
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 16, 24))
    labels[:, :5] = 255
    present = torch.ones(2, 4)
    maps = [torch.randn(2, 4, 8, 12), torch.randn(2, 4, 4, 6)]
    losses = deeplab_loss(maps, labels, present, "masked")
    pseudo = sum(F.cross_entropy(m, resize_labels(labels, tuple(m.shape[2:])), ignore_index=255)
                 for m in maps)
    online = sum(F.cross_entropy(m, m.argmax(1)) for m in maps)
    torch.testing.assert_close(losses["pseudo"], pseudo)
    torch.testing.assert_close(losses["online"], online)
    torch.testing.assert_close(losses["loss"], pseudo + online)
    assert set(deeplab_loss(maps, labels, present, "off")) == {"loss", "pseudo"}


def test_nothing_but_ignored_pixels_is_no_loss():
    labels = torch.full((1, 4, 4), 255)
    assert cross_entropy(torch.randn(1, 3, 4, 4), labels).item() == 0


def test_poly_schedule_follows_the_formula():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [parameters[0]], "lr": 0.1},
                                 {"params": [parameters[1]], "lr": 1.0}])
    schedule = poly_schedule(optimizer, 95, 0.9, 10)
    for iteration in range(95):
        expected = (1 - iteration // 10 * 10 / 95) ** 0.9
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(
            [0.1 * expected, expected])
        optimizer.step()
        schedule.step()
    assert poly_factor(100, 100, 0.9, 10) == 0
