"""`add_drs` on networks of torchvision and on one written by hand: call sites, names, figures."""

import copy
import io
import pickle
import shutil
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import ROOT, run_script
from torch import nn
from torch.utils.checkpoint import checkpoint

from models import suppression
from models.drs import add_drs, remove_drs, suppress
from models.probe import find_sites

# Call sites and skipped activations; functional ones have DenseNet (1) and GoogLeNet (all).
NETWORKS = {"vgg16": (13, 2), "resnet18": (17, 0), "resnet50": (49, 0), "resnext50_32x4d": (49, 0),
            "mobilenet_v2": (35, 0), "mobilenet_v3_large": (31, 9), "efficientnet_b0": (33, 16),
            "convnext_tiny": (18, 0), "densenet121": (120, 0), "regnet_y_400mf": (49, 16),
            "swin_t": (12, 0)}
QUICK = ("resnet18", "mobilenet_v3_large")


def network(name: str) -> nn.Module:
    extra = {"init_weights": False} if name in ("vgg16", "googlenet") else {}
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, **extra).eval()


def images(side: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def on(names, slow=()):
    return pytest.mark.parametrize("name", [
        name if name in slow else pytest.param(name, marks=pytest.mark.slow) for name in names])


@on(NETWORKS, slow=QUICK)
def test_networks_of_torchvision(name):
    model, x = network(name), images()
    before, expected = {k: v.clone() for k, v in model.state_dict().items()}, None
    with torch.no_grad():
        expected = model(x)
    report = add_drs(model, delta=1)
    assert (len(report.sites), len(report.skipped)) == NETWORKS[name]
    assert len(report.functional) == (name == "densenet121")
    state = model.state_dict()
    assert list(state) == list(before) and not model.training
    assert all(torch.equal(state[key], value) for key, value in before.items())
    with torch.no_grad():
        assert torch.equal(model(x), expected)
        remove_drs(model)
        add_drs(model, delta=0.5)
        assert not torch.equal(model(x), expected)
        remove_drs(model)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("mode", ["fixed", "learnable"])
@on(NETWORKS, slow=("resnet18",))
def test_gradients_and_files(name, mode):
    model, x = network(name), images()
    names = set(model.state_dict())
    report = add_drs(model, mode)
    new = set(model.state_dict()) - names
    assert len(new) == (len(report.sites) if mode == "learnable" else 0)
    assert all(".control." in key for key in new) and names <= set(model.state_dict())
    model.train()
    model(x).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    model.eval().zero_grad()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = network(name)
    add_drs(other, mode)
    other.load_state_dict(torch.load(file))
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_densenet_strict():
    model = network("densenet121")
    with pytest.raises(ValueError, match=r"relu\(\) in the network itself, 1024 channels"):
        add_drs(model, strict=True)
    assert add_drs(model).sites  # nothing was left behind


@on(["vit_b_16"])
def test_a_network_of_one_size(name):
    with pytest.raises(ValueError, match="two image sizes.*Wrong image height.*give `inputs`"):
        add_drs(network(name))


def test_a_network_without_modules():
    with pytest.raises(ValueError, match=r"57 functional.*make them modules.*relu\(\) in conv1"):
        add_drs(network("googlenet"))


class Own(nn.Module):
    """A ReLU used three times with other channels, a functional one, PReLU, GELU, a gate, NHWC."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.relu, self.prelu = nn.ReLU(inplace=True), nn.PReLU(6)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.ReLU(),
                                  nn.Conv2d(6, 6, 1), nn.Sigmoid())
        self.linear, self.gelu = nn.Linear(6, 8), nn.GELU()
        self.tokens, self.unused = nn.Linear(8, 5), nn.SiLU()
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.second(x))
        x = self.prelu(x) * self.gate(x)
        x = F.relu(self.second.weight.mean() + x)
        x = self.gelu(self.linear(x.permute(0, 2, 3, 1)))
        return self.head(self.relu(self.tokens(x.flatten(1, 2))).mean(1))


def test_a_network_by_hand():
    model = Own()
    names = list(model.state_dict())
    report = add_drs(model, delta=1)
    assert [(site.path, site.call, site.channels, site.layout) for site in report.sites] == [
        ("relu", 0, 4, "BCHW"), ("relu", 1, 6, "BCHW"), ("relu", 2, 5, "BNC"),
        ("prelu", 0, 6, "BCHW"), ("gelu", 0, 8, "BHWC")]
    assert report.functional == ["relu() in the network itself, 6 channels"]
    assert report.skipped == {"gate.2": "its size does not follow the image's",
                              "unused": "it is not called in eval mode"}
    text = str(report)
    assert "5 call sites of DRS, 2 activations skipped, 1 functional" in text
    assert "relu #2" in text and "8 channels  BHWC" in text and "skipped unused" in text
    assert list(model.state_dict()) == names and model.training
    remove_drs(model)
    add_drs(model, "learnable")
    assert [key for key in model.state_dict() if key not in names] == [
        "relu.control.0.fc.0.weight", "relu.control.1.fc.0.weight", "relu.control.2.fc.0.weight",
        "prelu.control.0.fc.0.weight", "gelu.control.0.fc.0.weight"]


def test_each_layout_is_suppressed_as_written_out():
    for channel, layout in ((1, (2, 4, 9, 9)), (3, (2, 9, 9, 4)), (2, (2, 9, 4))):
        model = nn.Sequential(nn.GELU())
        side = {"n": 0}

        def inputs(pixels, layout=layout, side=side):
            return torch.zeros([pixels if n == 9 else n for n in layout])

        report = add_drs(model, delta=0.3, inputs=inputs)
        assert report.sites[0].channel == channel
        x = torch.randn(layout, requires_grad=True)
        y = F.gelu(x)
        dims = [dim for dim in range(1, y.dim()) if dim != channel]
        expected = suppress(y, y.amax(dims, keepdim=True), 0.3)
        assert torch.equal(model(x), expected) and torch.equal(model(x.detach()), expected)
        weights = torch.randn_like(expected)
        (ours,), (theirs,) = (torch.autograd.grad((output * weights).sum(), x, retain_graph=True)
                              for output in (model(x), expected))
        torch.testing.assert_close(ours, theirs)


def test_where_and_what_is_refused():
    model = network("resnet18")
    report = add_drs(model, where=("layer3.*", "layer4"), delta=0.7)
    assert {site.path for site in report.sites} == {"layer3.0.relu", "layer3.1.relu"}
    assert report.skipped["relu"] == report.skipped["layer4.0.relu"] == "not asked for"
    with pytest.raises(ValueError, match="remove_drs"):
        add_drs(model)
    remove_drs(model)
    hooks = [module for module in model.modules()
             if module._forward_hooks or module._forward_pre_hooks]
    assert not hooks and not [name for name, _ in model.named_modules() if "control" in name]
    for arguments in ({"delta": 0}, {"delta": 1.5}, {"mode": "none"}, {"mode": "other"},
                      {"where": "layer3.*"}):
        with pytest.raises(ValueError):
            add_drs(model, **arguments)
    with pytest.raises(ValueError, match="fits no activation.*relu, layer1.0.relu.*5 more"):
        add_drs(model, where=["nothing"])
    add_drs(model)  # none of them left anything


@pytest.mark.parametrize("mode", ["fixed", "learnable"])
@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradient_checkpointing_is_exact(mode, reentrant):
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            for block in self:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    plain = network("resnet18")
    add_drs(plain, mode)
    kept = copy.deepcopy(plain)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        setattr(kept, stage, Checkpointed(*getattr(kept, stage)))
    x = images()
    for model in (plain, kept):
        model(x).square().mean().backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), kept.named_parameters(),
                                       strict=True):
        assert torch.equal(one.grad, other.grad), name


class Block(nn.Module):
    """Calls an activation that is not its own."""

    def __init__(self, conv: nn.Module, relu: nn.Module) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))


def test_blocks_share_an_activation():
    """Each with other channels, also when gradient checkpointing runs one of them again."""
    relu = nn.ReLU()
    model = nn.Sequential(Block(nn.Conv2d(3, 4, 3), relu), Block(nn.Conv2d(4, 6, 3), relu))
    report = add_drs(model, "learnable")
    assert [(site.caller, site.channels) for site in report.sites] == [("0", 4), ("1", 6)]
    gradients = []
    for run in (model, lambda x: checkpoint(model[1], checkpoint(
            model[0], x, use_reentrant=False), use_reentrant=False)):
        model.zero_grad()
        run(images(16)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


class Alternating(nn.Module):
    """Calls its activation, then has a block call it, then calls it again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3), nn.ReLU()
        self.block = Block(nn.Conv2d(3, 3, 3), self.relu)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.block(self.relu(self.conv(x))))


def test_calls_that_alternate_are_left_alone():
    """Which call it is cannot be counted from where its caller starts."""
    with pytest.raises(ValueError, match="no activation"):
        add_drs(Alternating())


class Twice(nn.Module):
    """Has a block of its own run twice, the second time on what `change` makes of its output."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.change = nn.Conv2d(3, 4, 3), change
        self.block = Block(nn.Identity(), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.change(self.block(self.conv(x))))


@pytest.mark.parametrize(("change", "layout"), [
    (lambda x: x * 2, "BCHW"), (lambda x: torch.cat([x, x], 1), None),
    (lambda x: x.permute(0, 2, 3, 1), None)], ids=["alike", "other channels", "other layout"])
def test_a_block_that_runs_twice_gets_drs_if_its_features_are_alike(change, layout):
    report = find_sites(Twice(change))
    if layout:
        assert [(site.path, site.layout) for site in report.sites] == [("block.relu", layout)]
    else:
        assert report.sites == [] and report.skipped == {
            "block.relu": "block runs several times, with other channels"}


@pytest.mark.parametrize("mode", ["fixed", "learnable"])
def test_copies(mode):
    model, x = Own().eval(), images(32)
    add_drs(model, mode, 0.5)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)
        remove_drs(other)
        assert not torch.equal(other(x), expected) and torch.equal(model(x), expected)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fixed", "learnable"])
def test_compiled(mode):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no C++ compiler")
    model, x = Own(), images(32)
    add_drs(model, mode, 0.5)
    compiled = torch.compile(model, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), model(x))
    for output in (compiled(x), model(x)):
        model.zero_grad()
        output.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM"])
def test_pytorch_grad_cam(method):
    package = pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, x = network("resnet18"), images()

    def cam():
        with getattr(package, method)(model=model, target_layers=[model.layer4[-1]]) as maps:
            return maps(input_tensor=x, targets=[ClassifierOutputTarget(7)] * 2)

    plain = cam()
    add_drs(model, delta=1)
    assert abs(cam() - plain).max() < 1e-5
    remove_drs(model)
    for mode in ("fixed", "learnable"):
        add_drs(model, mode, 0.5)
        suppressed = cam()
        assert suppressed.shape == (2, 64, 64) and 0 <= suppressed.min() <= suppressed.max() <= 1
        assert abs(suppressed - plain).max() > 1e-3
        remove_drs(model)


@pytest.mark.slow
def test_the_formula_and_the_one_step_agree(monkeypatch):
    model, x = network("resnet18"), images()
    add_drs(model, "learnable")
    gradients = []
    for enabled in (True, False):
        monkeypatch.setattr(suppression, "ENABLED", enabled)
        gradients.append(torch.autograd.grad(model(x).square().mean(), list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one():
    run_script("tests/anywhere_processes.py", processes=2)


def test_the_page_runs(capsys):
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    code, printed = (part.removeprefix("python") for part in text.split("```")[1:4:2])
    exec(compile(code, "docs/backbones.md", "exec"), {})
    report = capsys.readouterr().out
    assert all(line in report for line in printed.splitlines() if line != "  ...")


def test_new_statistics_as_the_page_says():
    """Of a network that is used without training: those of the capped features."""
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    code = next(part for part in text.split("```python\n") if "update_bn" in part).split("```")[0]
    torch.manual_seed(0)
    plain, model = (torchvision.models.resnet18() for _ in range(2))
    model.load_state_dict(plain.state_dict())
    batches = [torch.randn(2, 3, 64, 64) for _ in range(3)]
    exec(code, {"torch": torch, "add_drs": add_drs, "model": model, "batches": batches})
    torch.optim.swa_utils.update_bn(batches, plain)
    early, late = (torch.equal(model.get_buffer(name), plain.get_buffer(name)) for name in
                   ("layer2.1.bn2.running_mean", "layer4.1.bn2.running_mean"))
    assert early and not late  # DRS follows activations from layer3 on


def test_a_network_that_was_looked_at_keeps_its_modes():
    """Frozen batch norms stay frozen, and the rest goes on training."""
    model = torchvision.models.resnet18()
    model.layer1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    add_drs(model)
    after = dict(model.named_modules())
    assert {name: after[name].training for name in before} == before
