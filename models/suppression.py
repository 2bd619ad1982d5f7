"""The suppressor of DRS as one step of autograd: less kept, fewer passes over memory.

In: features x (B, C, H, W). Out: min(a, max(a) * control) with a = relu(x), or a = x. The figures
and gradients are those of the formula written out in `models.drs`; only the way differs.

Written out, autograd keeps a and the output y, and goes over tensors of full size about twenty
times. But the next convolution keeps y anyway, and y tells nearly everything about the gradient:
below the cap it is a's, at the cap it is the cap's, at zero the ReLU stops it. What y does not tell
is where a was exactly at the cap: there torch.minimum gives half to each of its arguments. So kept
are y and a bit an element for those ties. The control depends on a's average only; it has a small
graph of its own, on tensors (B, C, 1, 1), and any controller will do.

The step has a first derivative in reverse mode only. For others, and for torch.func, set `ENABLED`
to False: the formula written out is used then. It is used in any case where no gradient is asked
for, and under torch.compile and torch.export, where the compiler does the fusing. One gradient
differs from the formula's: where a control underflows to exactly zero, the ReLU's mask cannot be
read off y, and what would reach x by way of its average is lost.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ENABLED = True
BITS = 8  # elements that share a byte


def suits(x: Tensor, parameters: Iterable[nn.Parameter] = ()) -> bool:
    """Whether `CappedActivation` is the way for x, given the controller's parameters."""
    return (ENABLED and torch.is_grad_enabled() and not torch.compiler.is_compiling()
            and x.numel() > 0
            and (x.requires_grad or any(parameter.requires_grad for parameter in parameters)))


def on_cpu(x: Tensor) -> bool:
    """Whether x is where pooling is fast and looking at values is free, or on a GPU."""
    return x.is_cpu


def maxima(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's maximum, and where it is first found: (B, C, H, W) -> twice (B, C, 1, 1)."""
    if on_cpu(x):  # where pooling is the fastest way, in any layout; on a GPU it is the slowest
        return F.adaptive_max_pool2d(x, 1, return_indices=True)
    values, indices = x.flatten(2).max(dim=2)
    return values[:, :, None, None], indices[:, :, None, None]


def averages(x: Tensor) -> Tensor:
    """Each channel's average: (B, C, H, W) -> (B, C, 1, 1)."""
    if on_cpu(x):  # in bfloat16 and channels_last several times as fast as `mean`
        return F.avg_pool2d(x, x.shape[2:])
    return x.mean(dim=(2, 3), keepdim=True)


class CappedActivation(torch.autograd.Function):
    """`CappedActivation.apply(x, relu, control, *parameters)` -> min(a, max(a) * control).

    Args:
        x: (B, C, H, W), any layout; the output has the same.
        relu: whether a is relu(x) or x itself.
        control: a share in [0, 1]; or the controller, averages (B, C, 1, 1) -> shares (B, C, 1, 1).
        parameters: the controller's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, relu: bool, control: float | Callable[[Tensor], Tensor],
                *parameters: nn.Parameter) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        a = F.relu(x) if relu else x
        peaks, places = maxima(a)
        average = averages(a) if callable(control) else a.new_empty(0)
        peaks.requires_grad_()
        average.requires_grad_(callable(control))
        with torch.enable_grad():
            share = control(average) if callable(control) else control
            cap = (peaks * share).to(a.dtype)
        edge = cap.detach()
        # After a ReLU, ties at zero have no gradient: not worth a bit in every dead channel.
        tie = edge.where(edge > 0, -1.0) if relu else edge
        ties = _pack(torch.eq(a, _rows(tie, a), out=torch.empty_like(a)))
        y = torch.minimum(a, _rows(edge, a), out=a if relu else None)
        ctx.save_for_backward(y, places, ties)
        ctx.relu, ctx.cap, ctx.leaves = relu, cap, [peaks, average, *parameters]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, places, ties = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_layout(y))
        # The cap's part of the gradient: all of it where a was above the cap, half at a tie.
        part = torch.ge(y, _rows(ctx.cap.detach(), y), out=torch.empty_like(y))
        _halve(part, ties)
        part.mul_(gradient)
        found = iter(torch.autograd.grad(
            ctx.cap, [leaf for leaf in ctx.leaves if leaf.requires_grad],
            _sums(part).to(ctx.cap.dtype), retain_graph=True))
        of_peaks = next(found)
        of_average, *of_parameters = (next(found) if leaf.requires_grad else None
                                      for leaf in ctx.leaves[1:])
        if not ctx.needs_input_grad[0]:
            return None, None, None, *of_parameters
        # a's part, in place: what the cap left, the average's, the maximum's.
        torch.sub(gradient, part, out=part)
        if of_average is not None:
            part.add_(_rows(of_average / (y.shape[2] * y.shape[3]), y))
        image, channel = (torch.arange(n, device=y.device) for n in y.shape[:2])
        part[image[:, None, None, None], channel[:, None, None], places // y.shape[3],
             places % y.shape[3]] += of_peaks
        if ctx.relu:
            torch.ops.aten.threshold_backward.grad_input(part, y, 0, grad_input=part)
        return part, None, None, *of_parameters


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _flat(x: Tensor) -> Tensor:
    """The elements in the order of memory, which must be without gaps: a view."""
    return x.as_strided((x.numel(),), (1,))


def _rows(values: Tensor, x: Tensor) -> Tensor:
    """(B, C, 1, 1) values to broadcast against x; in channels_last a whole row of them, because
    inner loops over a few channels are slow."""
    if _layout(x) == torch.contiguous_format:
        return values
    return values.expand(-1, -1, 1, x.shape[3]).contiguous(memory_format=torch.channels_last)


def _sums(x: Tensor) -> Tensor:
    """Each channel's sum: (B, C, H, W) -> (B, C, 1, 1)."""
    if on_cpu(x):
        return averages(x) * (x.shape[2] * x.shape[3])
    return x.sum(dim=(2, 3), keepdim=True, dtype=torch.float32 if x.itemsize < 4 else None)


def _pack(mask: Tensor) -> Tensor:
    """0 and 1 of any type -> a bit each. Bit k of byte i is element i of the k-th eighth of memory,
    so that packing is a weighted sum of eighths."""
    first, *others = _flat(mask).split(-(-mask.numel() // BITS))
    packed = first.clone()
    for k, eighth in enumerate(others, start=1):
        packed[:len(eighth)].add_(eighth, alpha=2 ** k)
    return packed.to(torch.uint8)


def _halve(x: Tensor, packed: Tensor) -> None:
    """Set x to 1/2, in place, where the packed mask has a bit."""
    x = _flat(x)
    if on_cpu(x):  # the bits are few
        bytes_ = packed.nonzero()[:, 0]
        values = packed[bytes_]
        for k in range(BITS):
            x.index_fill_(0, bytes_[(values >> k) % 2 == 1] + k * len(packed), 0.5)
    else:  # without waiting for the GPU to count them
        for k, eighth in enumerate(x.split(len(packed))):
            eighth.masked_fill_((packed[:len(eighth)] >> k) % 2 == 1, 0.5)
