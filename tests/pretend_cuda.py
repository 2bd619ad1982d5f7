"""A cuda device played by the CPU: tensors say that they are there, and compute here.

Stricter than CUDA in nothing, and like it in this: tensors of two devices in one operation are an
error, for every operation passes `compute`, which asks each of its tensors where it is. What CUDA
allows across devices is listed, and nothing else passes: ACROSS, and tensors without dimensions.
PyTorch's FakeTensorMode raises the same error, but its tensors hold no values: it ends where code
looks at them (the classes of an image, the strips of a label, the loss that must be finite), which
is in every stage. These do, so that whole stages run to their end, and the end can be compared with
the CPU's. Forward passes only: autograd asks the real device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
# What CUDA allows across devices: copies, and indices that are on the CPU.
ACROSS = {"aten.copy_", "aten._to_copy", "aten.index", "aten.index_put_", "aten.index_put",
          "aten._index_put_impl_"}


class OnCuda(torch.Tensor):
    """A tensor that says it is on CUDA; `here` has its values."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "OnCuda":
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(),
            dtype=here.dtype, device=CUDA, requires_grad=False)
        made.here = here
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnCuda({self.here})"

    def tolist(self) -> Any:
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the CPU; its results are where they would be."""
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
    wrappers = {id(tensor.here): tensor for tensor in tensors if isinstance(tensor, OnCuda)}
    asked = kwargs.get("device")
    name = str(func).rpartition(".")[0]
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnCuda) and tensor.dim()]
    if wrappers and strangers and name not in ACROSS:
        raise RuntimeError(f"{func}: tensors on cuda:0 and on the cpu")
    if asked is not None:
        there = torch.device(asked).type == "cuda"
        kwargs = kwargs | {"device": CPU}
    elif name in ("aten.copy_", "aten.index", "aten.index_put_"):
        there = isinstance(args[0], OnCuda)
    else:
        there = bool(wrappers)
    if "pin_memory" in kwargs:
        kwargs = kwargs | {"pin_memory": False}

    def home(value: Any) -> Any:
        return value.here if isinstance(value, OnCuda) else value

    def away(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, OnCuda):
            return value
        if id(value) in wrappers:  # what was written into
            return wrappers[id(value)]
        return OnCuda(value) if there else value

    args, kwargs = tree_map(home, args), tree_map(home, kwargs)
    result = func(*args, **kwargs)
    if asked is not None and name == "aten._to_copy" and any(
            result is value for value in tree_iter(args)):
        result = result.clone()
    return tree_map(away, result)


def move(module: torch.nn.Module) -> torch.nn.Module:
    """A network with its weights there."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(OnCuda(value.detach()), False)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = OnCuda(value)
    return module


@contextmanager
def pretend_cuda(monkeypatch: Any) -> Iterator[None]:
    """Within it, stages find a GPU and use it."""
    from datasets.transforms import per_channel
    from labelling import crf
    from utils import runtime

    def setup(*_: object) -> runtime.Runtime:
        return runtime.Runtime(CUDA, 0, 1, None)

    kept = [per_channel, crf._position_lattice]
    def enter(self: Any) -> None:
        self.instead = torch.no_grad()
        self.instead.__enter__()

    with monkeypatch.context() as patch, _Mode(), torch.backends.cudnn.flags(enabled=False):
        # Inference tensors have no versions, and wrappers need them.
        patch.setattr(torch.inference_mode, "__enter__", enter)
        patch.setattr(torch.inference_mode, "__exit__",
                      lambda self, *error: self.instead.__exit__(*error))
        # As in PyTorch's own fake mode: no driver is asked for, and guards of a device do nothing.
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        torch._C._ensureCUDADeviceGuardSet()
        patch.setattr(runtime, "setup", setup)
        patch.setattr(runtime.Runtime, "move", lambda _, model: move(model))
        patch.setattr(runtime.Runtime, "describe", lambda _: "a GPU that is played by the CPU")
        for function in kept:
            function.cache_clear()
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(.., device="cuda")
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(before)
            for function in kept:
                function.cache_clear()
