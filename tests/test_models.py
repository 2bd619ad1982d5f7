"""Invariants of DRS and of the two networks, on random tensors."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build
from models.classifier import Classifier, classification_loss
from models.drs import FixedDRS, LearnableDRS, activation_factory, max_extractor, suppress
from models.localization import upsample
from models.refine import RefineNet, refinement_loss, strongest
from models.vgg import OUTPUT_STRIDE

NETWORKS = [Classifier(3, "learnable", width=0.0625), Classifier(3, "fixed", width=0.0625),
            Classifier(3, "none", width=0.0625, batch_norm=True), RefineNet(3, width=0.0625),
            Classifier(3, "learnable", width=0.0625, batch_norm=True)]


def features(channels: int = 8) -> torch.Tensor:
    return torch.randn(4, channels, 7, 9) * 3


# DRS

@pytest.mark.parametrize("delta", [0.05, 0.55, 1.0])
def test_fixed_suppression_caps_each_channel_at_its_share(delta):
    x = features()
    before = x.clone()
    y = FixedDRS(delta)(x)
    peak = F.relu(x).amax((2, 3), keepdim=True)
    assert torch.equal(x, before)
    assert (y <= delta * peak + 1e-6).all() and (y >= 0).all()
    below = F.relu(x) <= delta * peak
    assert torch.equal(y[below], F.relu(x)[below])  # what is below the cap stays as it is
    torch.testing.assert_close(y.amax((2, 3), keepdim=True), delta * peak)


def test_control_one_is_relu():
    x = features()
    assert torch.equal(FixedDRS(1.0)(x), F.relu(x))
    assert torch.equal(suppress(F.relu(x), max_extractor(F.relu(x)), 1.0), F.relu(x))


def test_of_equal_maxima_one_gets_the_gradient():
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    max_extractor(x).sum().backward()
    assert torch.equal(x.grad.sum((2, 3)), torch.ones(2, 3)) and x.grad.max() == 1


def test_learnable_control_is_a_function_of_the_average():
    drs, x = LearnableDRS(8), features()
    nn.init.normal_(drs.fc[0].weight)
    active = F.relu(x)
    control = torch.sigmoid(active.mean((2, 3)) @ drs.fc[0].weight.T)[:, :, None, None]
    assert control.std() > 0.1  # it differs between images and channels
    expected = torch.minimum(active, control * active.amax((2, 3), keepdim=True))
    torch.testing.assert_close(drs(x), expected)
    shuffled = x.flatten(2)[:, :, torch.randperm(63)].view_as(x)
    torch.testing.assert_close(drs(shuffled).sum((2, 3)), drs(x).sum((2, 3)))


def test_learnable_control_learns():
    drs, x = LearnableDRS(8), features()
    drs(x).sum().backward()
    assert drs.fc[0].weight.grad.abs().sum() > 0
    assert drs.fc[0].bias is None


@pytest.mark.parametrize("delta", [0.0, -0.1, 1.01, float("nan")])
def test_delta_out_of_range(delta):
    with pytest.raises(ValueError, match="delta"):
        FixedDRS(delta)


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'learnt'"):
        activation_factory("learnt")


# The networks

@pytest.mark.parametrize("model", NETWORKS, ids=lambda m: str(m.config))
def test_every_trainable_parameter_is_in_exactly_one_group(model):
    groups = model.parameter_groups()
    grouped = [id(p) for group in groups.values() for p in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    names = {id(p): name for name, p in model.named_parameters()}
    members = {group: {names[id(p)] for p in ps} for group, ps in groups.items()}
    assert "features.0.weight" in members["trunk_weights"]
    assert "features.0.bias" in members["trunk_biases"]
    assert {f"extra_conv{i}.bias" for i in range(1, 5)} <= members["head_biases"]
    drs = {name for name in names.values() if ".fc." in name}
    assert drs <= members["head_weights"]
    assert len(drs) == (16 if model.config.get("drs") == "learnable" else 0)


@pytest.mark.parametrize("model", NETWORKS, ids=lambda m: str(m.config))
def test_config_rebuilds_the_network(model):
    again = build(model.config)
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model.eval()(images))


@pytest.mark.parametrize("model", NETWORKS, ids=lambda m: str(m.config))
def test_output_stride(model):
    maps = model.class_maps(torch.randn(2, 3, 48, 64))
    assert maps.shape == (2, 3, 48 // OUTPUT_STRIDE, 64 // OUTPUT_STRIDE)


def test_initial_weights():
    classifier, refine = Classifier(20, width=0.25), RefineNet(20, width=0.25)
    for conv in classifier.head_convs():
        fan_out = conv.kernel_size[0] ** 2 * conv.out_channels
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    for conv in refine.head_convs():
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    for conv in (*classifier.head_convs(), *refine.head_convs()):
        assert abs(conv.weight.mean().item()) < 0.1 * conv.weight.std().item()
        assert not conv.bias.any()
    linear = [m for m in classifier.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 16
    for layer in linear[2:]:  # the first two are too small for a steady figure
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_trunks_from_scratch_keep_the_scale_of_their_input():
    """He et al.: the variance of a weight is two by what a neuron sees."""
    for conv in RefineNet(3, width=0.25).features.values():
        seen = conv.in_channels * 9
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / seen), rel=0.1)
        assert not conv.bias.any()


def test_channel_counts_are_rounded():
    """A checkpoint of any width is rebuilt: 0.3 of 64, 128, 256, 512."""
    found = [conv.out_channels for conv in RefineNet(3, width=0.3).features.values()]
    assert found == [19] * 2 + [38] * 2 + [77] * 3 + [154] * 6


def test_logits_are_the_average_of_the_maps():
    model, images = Classifier(3, width=0.0625), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), model.class_maps(images).mean((2, 3)))


def test_delta_one_is_the_plain_classifier():
    plain = Classifier(3, "none", width=0.0625).eval()
    fixed = Classifier(3, "fixed", 1.0, width=0.0625).eval()
    fixed.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(images), fixed(images))
    suppressed = Classifier(3, "fixed", 0.3, width=0.0625).eval()
    suppressed.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(images), suppressed(images))


def test_no_classes():
    with pytest.raises(ValueError, match="at least one class"):
        Classifier(0)


def test_the_strongest_maps_of_each_image_and_ties_are_kept():
    maps = torch.tensor([[[0.9, 0.2, 0.5, 0.0]], [[0.1, 0.7, 0.5, 0.0]], [[0.3, 0.1, 0.2, 0.0]],
                         [[0.1, 0.1, 0.1, 0.1]]])
    before, owner = maps.clone(), torch.tensor([0, 0, 0, 2])
    expected = torch.tensor([[0.9, 0.0, 0.5, 0.0], [0.0, 0.7, 0.5, 0.0], [0.0] * 4, [0.1] * 4])
    assert torch.equal(strongest(maps, owner, 3)[:, 0], expected)
    assert torch.equal(maps, before)
    assert strongest(maps[:0], owner[:0], 3).shape == (0, 1, 4)  # images without any class


def test_classification_loss():
    logits, labels = torch.randn(4, 3), torch.randint(0, 2, (4, 3)).float()
    signs = 1 - 2 * labels
    torch.testing.assert_close(classification_loss(logits, labels),
                               (1 + (signs * logits).exp()).log().mean())
    assert classification_loss(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [((0, 2), (), (1,)), ((), (), ())])
def test_refinement_loss_is_that_of_the_enlarged_maps(classes, dtype):
    """And so is its gradient, under autocast, too."""
    owner = torch.tensor([image for image, mine in enumerate(classes) for _ in mine]).long()
    number = torch.tensor([one for mine in classes for one in mine]).long()
    stored = torch.randint(0, 8, (len(owner), 30, 41), dtype=torch.uint8) * 36  # with ties
    class_maps = torch.randn(3, 3, 5, 7).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = refinement_loss(class_maps, stored, owner, number)
    dense = torch.zeros(3, 3, 30, 41)
    dense[owner, number] = stored / 255
    target = torch.where(dense == dense.amax(1, keepdim=True), dense, 0)
    plain = (upsample(class_maps.float(), (30, 41)) - target).square().mean()
    torch.testing.assert_close(loss, plain)
    assert loss.dtype == torch.float32
    gradient, = torch.autograd.grad(loss, class_maps)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, class_maps)[0])


# Localization maps

@pytest.mark.parametrize("model", NETWORKS, ids=lambda m: str(m.config))
def test_localization_maps(model):
    # In float64: in float32 a batch and a single image may round differently, by a different
    # amount on each machine, and a weak map's scaling to its maximum makes much of that.
    model = copy.deepcopy(model).eval().double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    sizes = [(20, 31), (9, 8), (40, 24)]
    before = images.clone(), labels.clone()
    maps = model.localization_maps(images, labels, sizes, [24, 32, 40])
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1])
    assert [tuple(m.shape) for m in maps] == [(2, 20, 31), (0, 9, 8), (1, 40, 24)]
    assert all(m.dtype == torch.float32 and (m >= 0).all() for m in maps)
    single = [model.localization_maps(images, labels, sizes, [s]) for s in (24, 32, 40)]
    for i, merged in enumerate(maps):
        assert torch.equal(merged, torch.stack([one[i] for one in single]).amax(0))
    for i in range(3):  # whatever its company, an image has the same maps
        alone, = model.localization_maps(images[i:i + 1], labels[i:i + 1], sizes[i:i + 1],
                                         [24, 32, 40])
        torch.testing.assert_close(alone, maps[i], atol=1e-6, rtol=0)
    # The order is that of the classes, and a map does not depend on the other labels.
    only, = model.localization_maps(images[:1], torch.tensor([[0.0, 0, 1]]), sizes[:1],
                                    [24, 32, 40])
    torch.testing.assert_close(only[0], maps[0][1], atol=1e-6, rtol=0)


def test_classifier_maps_are_scaled_to_their_own_maximum():
    model = Classifier(3, width=0.0625).eval()
    maps = model.score_maps(torch.randn(3, 4, 4) * torch.tensor([1.0, 10, 100])[:, None, None],
                            (16, 16))
    assert (maps < 1).all() and (maps.amax((1, 2)) > 0.99).all()
    assert not model.score_maps(-torch.rand(2, 4, 4), (16, 16)).any()  # no evidence at all


def test_upsample_keeps_the_points_of_the_grid():
    maps = torch.randn(2, 4, 5)
    large = upsample(maps, (13, 17))
    assert torch.allclose(large[:, ::4, ::4], maps, atol=1e-6)
    assert torch.equal(upsample(maps[None], (13, 17))[0], large)
    assert upsample(maps[:0], (13, 17)).shape == (0, 13, 17)


# Initial weights from another network

def test_load_trunk_takes_the_trunk_only():
    source = Classifier(5, "none", width=0.0625, batch_norm=True)
    target = RefineNet(3, width=0.0625, batch_norm=True)
    head = {k: v.clone() for k, v in target.state_dict().items() if k.startswith("extra_")}
    names = target.load_trunk(source.state_dict())
    state = target.state_dict()
    assert {"features.0.weight", "layer5_bn3.running_var"} <= set(names)
    assert all(torch.equal(state[name], source.state_dict()[name]) for name in names)
    assert all(torch.equal(state[name], value) for name, value in head.items())
    assert not set(names) & set(head)


@pytest.mark.parametrize("other", [{"width": 0.125}, {"width": 0.0625, "batch_norm": True}])
def test_load_trunk_refuses_what_does_not_fit(other):
    source, target = Classifier(3, width=0.0625), RefineNet(3, **other)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=r"layer\d_bn|features\.0\.weight"):
        target.load_trunk(source.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
