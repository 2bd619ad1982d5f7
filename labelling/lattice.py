"""The permutohedral lattice: Gaussian filtering of values that lie anywhere in a few dimensions.

In: a feature vector of every pixel, such that the wanted Gaussian has standard deviation 1. Out: a
`Lattice`, which filters any number of values per pixel: splat them onto the lattice points around
each pixel, blur along the lattice's axes, slice the pixels' values out again.
Source: Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice"
(2010), sections 3.1 (points) and 3.2 (splat, blur, slice); normalised as in Krähenbühl and Koltun,
"Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials" (2011). The filter is an
approximation that depends on how numbers are rounded; here that is done as in their program,
because the published figures come from it. The order of the features matters too.

Terms: with d features, a lattice point ("vertex") has D = d + 1 integer coordinates that sum to 0
and leave the same remainder r when divided by D. A vertex is thus r and its d + 1 quotients, of
which one is superfluous. Every pixel lies in a simplex of D vertices, one of each remainder.
N counts pixels (of all images), M vertices, C the values of a pixel.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.files import UserError

ROWS = 1 << 15  # computed at once on a CPU: more would leave its caches, and page in new memory
TINY = 1e-20  # keeps the norm of a pixel without weight finite


def elevate(features: Tensor) -> Tensor:
    """Place features in the hyperplane that holds the lattice (section 3.1).

    Args:
        features: (d, N) float32.

    Returns:
        (D, N) float32, each column's sum 0.
    """
    d, count = features.shape
    spread = float(np.float32(math.sqrt(2 / 3) * (d + 1)))  # blurring adds up to variance 1
    elevated = features.new_empty(d + 1, count)
    total = features.new_zeros(count)
    for i in reversed(range(d)):
        scaled = features[i] * float(np.float32(spread / math.sqrt((i + 1) * (i + 2))))
        torch.sub(total, (i + 1) * scaled, out=elevated[i + 1])
        total += scaled
    elevated[0] = total
    return elevated


def enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each point (section 3.1).

    Args:
        elevated: (D, N) float32.

    Returns:
        quotients (D, N) float32 of the vertex of remainder 0; rank (D, N) int8 of each coordinate's
        distance from that vertex, 0 the largest; barycentric coordinates (D, N) float32 of the
        vertices of remainder 0 to d.
    """
    size = len(elevated)
    quotients = (elevated * (1 / size)).round_()
    distance = elevated - quotients * size
    # Rounded one by one, the quotients may miss the hyperplane: their sum shifts the ranks.
    rank = quotients.sum(0).to(torch.int8) + torch.arange(
        size, dtype=torch.int8, device=elevated.device)[:, None]
    for i in range(size):
        for j in range(i + 1, size):
            smaller = (distance[i] < distance[j]).view(torch.int8)
            rank[i] += smaller
            rank[j] -= smaller
    wrap = (rank < 0).view(torch.int8) - (rank >= size).view(torch.int8)
    rank += size * wrap
    quotients += wrap
    offset = (elevated - quotients * size) * (1 / size)
    ordered = _by_rank(offset, rank)
    barycentric = torch.empty_like(ordered)
    torch.sub(ordered[-1] + 1, ordered[0], out=barycentric[0])
    torch.sub(ordered[:-1].flip(0), ordered[1:].flip(0), out=barycentric[1:])
    return quotients, rank, barycentric


def _by_rank(values: Tensor, rank: Tensor) -> Tensor:
    """Reorder each column of (D, N) such that the value of rank r comes to row r."""
    count = rank.shape[1]
    target = rank.long().mul_(count).add_(torch.arange(count, device=rank.device))
    return torch.empty_like(rank, dtype=values.dtype).view(-1).scatter_(
        0, target.view(-1), values.reshape(-1)).view_as(rank)


class Points:
    """The vertices that enclose any pixel, found by sorting.

    A vertex is one integer, its key: remainder, image and d quotients as digits of mixed radix. So
    a step to a neighbour is the same difference of keys for all vertices of one remainder.

    Args:
        quotients, rank: (D, N), see `enclosing_simplex`.
        images: the pixels are those of so many images of one size; they share no vertex.

    Attributes:
        pixels: (D N,) int64, the pixels around vertex 1, then around vertex 2, and so on; a D-th of
            it for each remainder.
        starts: (M,) int64, where the pixels of each vertex start.
        table: (D, N) int32, the numbers from 1 of the vertices of each pixel.

    Raises:
        UserError: the keys would be too large.
    """

    def __init__(self, quotients: Tensor, rank: Tensor, images: int) -> None:
        size, count = quotients.shape
        device = quotients.device
        # The first quotient is the superfluous one. In this order of the others, rows of the image
        # stay together in the smoothness kernel's lattice.
        digits = [2, 1, *range(size - 1, 2, -1)] if size > 2 else [1]
        lowest = quotients.amin(1) - 2  # a vertex has a quotient less, its neighbour another
        radix = (quotients.amax(1) - lowest + 2).long().tolist()
        self.steps, span = [0] * size, 1
        for i in reversed(digits):
            self.steps[i] = span
            span *= radix[i]
        self.block = span * images  # the keys of one remainder
        bits = count.bit_length()
        _check_bits(self.block * size, bits)
        steps = torch.tensor(self.steps, device=device) << bits
        # Key and pixel in one number: the sort then also groups the pixels of a vertex.
        keys = torch.empty(size, count, dtype=torch.long, device=device)
        torch.arange(count, out=keys[0])
        keys[0].view(images, -1).add_(torch.arange(images, device=device)[:, None] * span << bits)
        for i in digits:
            keys[0] += (quotients[i] - lowest[i]).long() * steps[i]
        # From remainder r - 1 to r, the quotient of the coordinate of rank D - r sinks by one.
        sinks = _by_rank(steps[:, None].expand_as(keys), rank)
        for r in range(1, size):
            torch.sub(keys[r - 1], sinks[size - r], out=keys[r])
        keys += (torch.arange(size, device=device) * self.block << bits)[:, None]
        keys = _sort(keys)
        pixels = keys & (1 << bits) - 1
        keys = keys.view(-1)
        first = torch.ones(size * count, dtype=torch.bool, device=device)
        torch.gt(keys[1:] ^ keys[:-1], (1 << bits) - 1, out=first[1:])
        self.starts = _positions(first)
        self.keys = keys[self.starts] >> bits
        numbers = first.cumsum(0, dtype=torch.int32).view(size, count)
        self.table = torch.empty_like(numbers).scatter_(1, pixels, numbers)
        self.pixels = pixels.view(-1)

    def neighbours(self, axis: int) -> tuple[Tensor, Tensor]:
        """Pairs of vertices one step apart along an axis: their numbers from 1, two (P,) int64.

        A step adds D to the coordinate of the axis and takes 1 from all of them. So the remainder
        sinks by one and the axis' quotient rises, except that remainder 0 becomes d, where all
        other quotients sink.
        """
        count = len(self.keys)
        zeros = int(torch.searchsorted(self.keys, self.block))
        bits = (count + 1).bit_length()
        _check_bits(int(self.keys[-1]) + self.block, bits + 1)
        flag, unit = 1 << bits, 1 << bits + 1
        tagged = self.keys * unit + torch.arange(1, count + 1, device=self.keys.device)
        size = len(self.steps)
        down = (self.steps[axis] - self.block) * unit + flag
        around = ((size - 1) * self.block - sum(self.steps) + self.steps[axis]) * unit + flag
        # Two sorted runs, merged: where a step ends at a vertex, they become neighbours.
        merged = _sort(torch.cat((tagged, tagged[zeros:] + down, tagged[:zeros] + around)))
        hits = _positions((merged[1:] ^ merged[:-1]) >> bits == 1)
        return merged[hits + 1] & flag - 1, merged[hits] & flag - 1


def _check_bits(keys: int, others: int) -> None:
    if keys.bit_length() + others > 63:
        raise UserError("CRF: the image is too large for ranges (standard deviations) this small, "
                        "its lattice has no 63-bit numbers: raise the ranges or shrink the image")


def _sort(values: Tensor) -> Tensor:
    """Sort along the last dimension; NumPy is faster on a CPU, and merges sorted runs."""
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    values.numpy().sort(axis=-1, kind="stable" if values.ndim == 1 else None)
    return values


def _positions(mask: Tensor) -> Tensor:
    """Where a vector is true, as int64; NumPy is five times faster on a CPU."""
    if mask.device.type != "cpu":
        return mask.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


class RowSums:
    """Weighted sums of rows, a sparse matrix in the form that `embedding_bag` takes.

    Args:
        indices: (R, K) int32, or all rows' in one, (L,).
        weights: as indices, float; None: all 1.
        starts: (R,) int64, where a row's indices start, if they are in one.
    """

    def __init__(self, indices: Tensor, weights: Tensor | None = None,
                 starts: Tensor | None = None) -> None:
        count = len(indices if starts is None else starts)
        step = ROWS if indices.device.type == "cpu" else count
        self.parts: list[tuple[slice, dict[str, Any]]] = []
        for start in range(0, count, step):
            rows = taken = slice(start, start + step)
            part = dict[str, Any]()
            if starts is not None:
                begin = int(starts[start])
                end = int(starts[rows.stop]) if rows.stop < count else len(indices)
                taken = slice(begin, end)
                part["offsets"] = (starts[rows] - begin).int()
            part["input"] = indices[taken]
            if weights is not None:
                part["per_sample_weights"] = weights[taken]
            self.parts.append((rows, part))

    def __call__(self, values: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Values (.., C) -> slices of rows with their sums, (rows, C)."""
        for rows, part in self.parts:
            yield rows, F.embedding_bag(weight=values, mode="sum", **part)


class Lattice:
    """A normalised Gaussian filter, as mean-field inference needs it.

    It multiplies by weight * n K n, where K is the lattice's approximation of the Gaussian and
    n = (K 1)^-1/2 ("symmetric normalisation").

    Args:
        features: (d, N) float32.
        weight: a factor.
        images: the pixels are those of so many images of one size, filtered each for itself.
        dtype: of the values to come, float32 or float64.

    Raises:
        UserError: see `Points`.
    """

    def __init__(self, features: Tensor, weight: float = 1.0, images: int = 1,
                 dtype: torch.dtype = torch.float32) -> None:
        quotients, rank, barycentric = enclosing_simplex(elevate(features))
        points = Points(quotients, rank, images)
        size, count = barycentric.shape
        barycentric, pixels = barycentric.to(dtype), points.pixels.view(size, count)
        at_pixels = barycentric.t().contiguous()
        at_vertices = barycentric.gather(1, pixels).view(-1)
        self.vertices = len(points.starts) + 1  # number 0 is the missing neighbour
        self.splat = RowSums(points.pixels.int(), at_vertices, F.pad(points.starts, (1, 0)))
        self.blurs = []
        for axis in range(size):
            both = torch.zeros(2, self.vertices, dtype=torch.int32, device=features.device)
            one, other = points.neighbours(axis)
            both[0].scatter_(0, one, other.int())
            both[1].scatter_(0, other, one.int())
            self.blurs.append(RowSums(both.t().contiguous()))
        self.slice = RowSums(points.table.t().contiguous(), at_pixels)
        norm = (self(barycentric.new_ones(count, 1))[:, 0] + TINY).rsqrt_()
        at_vertices *= norm.index_select(0, points.pixels)
        at_pixels *= (weight * norm)[:, None]

    def blurred(self, values: Tensor, work: Tensor, reverse: bool = False) -> Tensor:
        """Splat and blur values (N, C): (M + 1, C), the first row 0.

        Args:
            work: (2, at least M + 1, C), overwritten; the result is in there.
            reverse: the axes in the opposite order, which gives the transposed filter.
        """
        now, then = work[:, :self.vertices]
        for rows, part in self.splat(values):
            now[rows] = part
        for blur in reversed(self.blurs) if reverse else self.blurs:
            for rows, part in blur(now):
                torch.add(now[rows], part, alpha=0.5, out=then[rows])
            now, then = then, now
        return now

    def __call__(self, values: Tensor, reverse: bool = False) -> Tensor:
        """Filter values (N, C); `reverse`: by the transposed matrix."""
        work = values.new_empty(2, self.vertices, values.shape[1])
        parts = self.slice(self.blurred(values, work, reverse))
        return torch.cat([part for _, part in parts])


class Filter(torch.autograd.Function):
    """`Filter.apply(values, lattice, reverse)` is `lattice(values, reverse)` with a gradient."""

    @staticmethod
    def forward(ctx, values: Tensor, lattice: Lattice, reverse: bool = False) -> Tensor:
        ctx.lattice, ctx.reverse = lattice, reverse
        return lattice(values, reverse)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return Filter.apply(gradient.contiguous(), ctx.lattice, not ctx.reverse), None, None
