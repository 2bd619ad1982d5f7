"""The fused suppressor: the figures and gradients of the formula written out, for less memory."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import suppression
from models.classifier import Classifier, classification_loss
from models.drs import FixedDRS, LearnableDRS

SHAPES = [(2, 8, 7, 9), (3, 1, 5, 4), (2, 5, 6, 1), (1, 3, 1, 1), (2, 16, 10, 10)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
# Half the figures repeat, so that many elements lie exactly at the maximum and at the cap.
DELTA = 0.5


def with_ties(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randint(-6, 7, shape).to(dtype) / 2
    x[0, 0] = -1  # a dead channel
    return x


def learnable(channels: int, dtype: torch.dtype = torch.float64, half: bool = False
              ) -> LearnableDRS:
    """With a control that differs between channels; or, `half`, exactly 1/2, for ties."""
    drs = LearnableDRS(channels).to(dtype)
    nn.init.zeros_(drs.fc[0].weight) if half else nn.init.normal_(drs.fc[0].weight)
    return drs


def results(monkeypatch: pytest.MonkeyPatch, fused: bool, module: nn.Module, x: Tensor,
            gradient: Tensor, *arguments: object) -> list[Tensor]:
    """Output and gradients of input and parameters."""
    monkeypatch.setattr(suppression, "ENABLED", fused)
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = module(x, *arguments)
    assert ("CappedActivation" in type(y.grad_fn).__name__) == fused
    y.backward(gradient)
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "the way of a GPU"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_equals_the_formula_written_out(monkeypatch, gpu, dtype, layout, relu):
    if gpu:
        monkeypatch.setattr(suppression, "on_cpu", lambda x: False)
    tied = 0
    for shape in SHAPES:
        x = with_ties(shape, dtype).contiguous(memory_format=layout)
        gradient = torch.randn(shape).to(dtype)
        for module in (FixedDRS(DELTA), FixedDRS(1.0), learnable(shape[1], dtype, half=True),
                       learnable(shape[1], dtype)):
            ours, expected = (results(monkeypatch, fused, module, x, gradient, relu)
                              for fused in (True, False))
            assert torch.equal(ours[0], expected[0])
            # Of the size of the terms: in the sum, which a parameter gets, they may cancel out.
            size = max(float(one.abs().max()) for one in expected[1:])
            for one, other in zip(ours[1:], expected[1:], strict=True):
                torch.testing.assert_close(one, other, rtol=DTYPES[dtype],
                                           atol=DTYPES[dtype] * size)
            assert all(t.is_contiguous(memory_format=layout) for t in ours[:2])
            tied += int(((ours[0] == x) & (x == x.amax((2, 3), keepdim=True) / 2)).sum())
    assert tied > 20


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("module", [FixedDRS(0.6), learnable(3)], ids=["fixed", "learnable"])
def test_gradcheck(module, relu):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: module(x, relu), (x, *module.parameters()))


def test_odd_inputs(monkeypatch):
    """Slices, broadcast gradients, other orders of memory, nothing at all."""
    base = with_ties((4, 8, 9, 9))
    module = learnable(8)
    for x in (base[1:3], base[:, :, 1:7, ::2], base.transpose(2, 3), base.permute(0, 1, 3, 2)[:2]):
        gradient = torch.ones((), dtype=x.dtype).expand(x.shape)
        for one, other in zip(*(results(monkeypatch, fused, module, x, gradient)
                                for fused in (True, False)), strict=True):
            torch.testing.assert_close(one, other)
    assert module(base[:0].requires_grad_()).shape == (0, 8, 9, 9)


def test_what_is_frozen_gets_no_gradient():
    module, x = learnable(8), with_ties((2, 8, 5, 5))
    module(x).sum().backward()  # the first layers of a network whose trunk is frozen
    expected, module.fc[0].weight.grad = module.fc[0].weight.grad, None
    y = module(x.clone().requires_grad_())
    y.sum().backward()
    torch.testing.assert_close(module.fc[0].weight.grad, expected)
    module.requires_grad_(False).zero_grad()
    x.requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None and module.fc[0].weight.grad is None


def test_without_gradients_the_formula_is_used():
    module, x = learnable(8), with_ties((2, 8, 5, 5)).requires_grad_()
    expected = module(x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = module(x)
            assert y.grad_fn is None and torch.equal(y, expected)
    assert FixedDRS(0.5)(x.detach()).grad_fn is None  # nothing to learn


def test_second_derivatives_are_refused_or_written_out(monkeypatch):
    x = with_ties((1, 2, 3, 3)).requires_grad_()
    for fused in (True, False):
        monkeypatch.setattr(suppression, "ENABLED", fused)
        gradient, = torch.autograd.grad(learnable(2)(x).square().sum(), x, create_graph=True)
        if fused:
            with pytest.raises(RuntimeError, match="once_differentiable"):
                gradient.sum().backward()
        else:
            gradient.sum().backward()
            assert x.grad.abs().sum() > 0


def test_backward_twice():
    module, x = learnable(4), with_ties((2, 4, 5, 5)).requires_grad_()
    y = module(x)
    first, second = (torch.autograd.grad(y.sum(), [x, *module.parameters()], retain_graph=True)
                     for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# The network

def network(drs: str = "learnable") -> Classifier:
    torch.manual_seed(0)
    model = Classifier(3, drs, width=0.0625)
    return model.to(memory_format=torch.channels_last)


def step(model: nn.Module, autocast: bool = False, forward=None) -> list[Tensor]:
    """Loss and gradients of one step."""
    torch.manual_seed(1)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(images) if forward is None else forward(images)
        loss = classification_loss(logits, labels)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def agree(one: list[Tensor], other: list[Tensor], tolerance: float) -> None:
    """All tensors alike to a share of the largest entry of each."""
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max() + 1e-6))


@pytest.mark.parametrize("drs", ["fixed", "learnable"])
def test_a_network_trains_as_with_the_formula(monkeypatch, drs):
    model = network(drs).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    gradients = []
    for fused in (True, False):
        monkeypatch.setattr(suppression, "ENABLED", fused)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    agree(*gradients, 1e-9)


@pytest.mark.parametrize("drs", ["fixed", "learnable"])
def test_autocast(monkeypatch, drs):
    """In bfloat16 as far from float32 as the formula is, and the same figures forward."""
    model = network(drs)
    exact = step(model)
    errors, losses = [], []
    for fused in (True, False):
        monkeypatch.setattr(suppression, "ENABLED", fused)
        found = step(model, autocast=True)
        losses.append(found[0])
        errors.append(sum(float((a - b).norm() / b.norm().clamp(min=1e-9))
                          for a, b in zip(found, exact, strict=True)) / len(exact))
    assert losses[0] == losses[1]
    assert errors[0] < 1.1 * errors[1] + 0.01


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model = network()
    recomputed = step(model, forward=lambda images: checkpoint(
        model, images.requires_grad_(), use_reentrant=reentrant))
    agree(recomputed, step(model), 0)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "pickle"])
def test_copies_are_independent(copier):
    model = network()
    step(model)  # with gradients, as in the middle of a training
    twin = copier(model)
    agree(step(twin), step(model), 0)
    nn.init.zeros_(twin.layer1_relu1.fc[0].weight)
    assert model.layer1_relu1.fc[0].weight.abs().sum() > 0


def kept_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that autograd keeps for the backward pass, parameters left out."""
    storages, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # alive, so that no two have one address
        return tensor

    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)).sum()
    return sum(storages.values())


@pytest.mark.parametrize("drs", ["fixed", "learnable"])
def test_memory(monkeypatch, drs):
    plain, ours = kept_bytes(network("none")), kept_bytes(network(drs))
    monkeypatch.setattr(suppression, "ENABLED", False)
    written_out = kept_bytes(network(drs))
    assert ours < 1.1 * plain < written_out


# Compilers

@pytest.fixture
def _compiler():
    torch.compiler.reset()
    try:
        torch.compile(lambda x: x.relu() + 1)(torch.ones(3))
    except Exception as error:
        pytest.skip(f"no working compiler here: {type(error).__name__}")
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("_compiler")
def test_compiled_network_gives_the_same_losses():
    model = network()
    compiled = torch.compile(model, fullgraph=True)  # fullgraph: a graph break is an error
    agree(step(model, forward=compiled), step(model), 1e-4)


@pytest.mark.parametrize("drs", ["fixed", "learnable"])
def test_graph_without_breaks(drs):
    """The same without a C++ compiler: dynamo alone, training and labelling."""
    model, images = network(drs), torch.randn(2, 3, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    agree(step(model, forward=compiled), step(model), 1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(compiled.class_maps(images), model.class_maps(images))


@pytest.mark.parametrize("drs", ["fixed", "learnable"])
def test_export(drs):
    model, images = network(drs).eval(), torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))


def test_the_step_is_what_trains():
    """All 16 activations of a classifier go through it."""
    model = network()
    seen, todo = set(), [model(torch.randn(1, 3, 32, 32)).grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    names = [type(node).__name__ for node in seen]
    assert names.count("CappedActivationBackward") == 16
    assert not any("Relu" in name for name in names)
