"""At which frequency the symbol of a convolution is largest, and how large it is there.

See Note [Norm from samples of the symbol].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_triton.runtime.registered_op import register_vmap, registered_op

TOLERANCE = 2e-3
"""How far the squares at other frequencies may be above those at the one that is returned."""
SQUARINGS = 8
BLOCK = 32
CANDIDATES = 8
ELEMENTS = 2**17
"""Numbers of the matrices that are looked at together: what a cache holds."""


def squares_at(taps: Tensor, at: Tensor, points: Sequence[int]) -> Tensor:
    """No less than the largest eigenvalue of K̂ K̂* at one sample, differentiable.

    Args:
        taps: Shape (groups, out, in, *taps).
        at: Group and index of the frequency 2π index / points in each dimension.
        points: Samples in each dimension.
    """
    sizes = taps.shape[3:]
    turns = torch.zeros((), dtype=torch.float64, device=taps.device)
    for dim, (index, size, count) in enumerate(zip(at[1:].unbind(), sizes, points, strict=True)):
        t = torch.arange(size, device=taps.device).view(-1, *(1,) * (len(sizes) - dim - 1))
        turns = turns + (index * t % count).double() / count
    angle = turns.flatten() * (-2 * math.pi)
    one = taps.index_select(0, at[:1]).squeeze(0).flatten(2)
    return _largest_eigenvalue_bound(
        torch.view_as_complex(one @ torch.stack([angle.cos(), angle.sin()], -1).to(one))
    )


def _largest_eigenvalue_bound(symbol: Tensor) -> Tensor:
    """No less than the largest eigenvalue of A A*, for a matrix A, with its rounding."""
    a = symbol if symbol.shape[-2] <= symbol.shape[-1] else symbol.mH
    gram = a @ a.mH
    tiny = torch.finfo(gram.real.dtype).tiny
    log, weight = gram.real.new_zeros(()), 1.0
    for _ in range(SQUARINGS):
        size = torch.linalg.matrix_norm(gram).clamp_min(tiny)
        gram = gram / size
        log = log + weight * size.log()
        gram, weight = gram @ gram, weight / 2
    log = log + weight * torch.linalg.matrix_norm(gram).clamp_min(tiny).log()
    # Each product is off by a few units in the last place of its norm, times the length of its
    # sums, and counts with a weight that halves.
    slack = 16 * (a.shape[-1] + 2 * a.shape[-2] + 8) * torch.finfo(log.dtype).eps
    return log.exp() * (1 + slack)


def _fake(taps: Tensor, points: list[int]) -> Tensor:
    return taps.new_empty(1 + len(points), dtype=torch.int64)


@registered_op("largest_sample", _fake)
def largest_sample(taps: Tensor, points: list[int]) -> Tensor:
    """Group and frequency of a sample that no other exceeds by more than the tolerance.

    Which one depends on the values, so the device is waited for.
    """
    at = torch.zeros(1 + len(points), dtype=torch.int64, device=taps.device)
    scale = taps.abs().amax()
    if (taps.shape[0] == 1 and math.prod(points) == 1) or not (math.isfinite(scale) and scale > 0):
        return at
    taps = taps / scale
    if taps.shape[1] > taps.shape[2]:
        # K̂ᵀ at the same frequency: the same norm.
        taps = taps.transpose(1, 2)
    p, q = taps.shape[1:3]
    # What Cholesky factors and sums of these lengths may be off by, relative to the norm.
    rounding = 2 * (p * p + 16 * (q + 2 * p + 8)) * 2.0**-24
    if rounding > TOLERANCE / 2:
        taps, rounding = taps.double(), rounding * 2.0**-29
    best = -math.inf
    for grams, where in _gram_samples(taps, points):
        pending = torch.arange(len(grams), device=grams.device)
        if best > 0:
            pending = pending[~_is_below(grams, best * (1 + TOLERANCE) * (1 - rounding))]
        while len(pending):
            few = pending[:: max(1, len(pending) // CANDIDATES)]
            top = few[torch.linalg.eigvalsh(grams[few])[:, -1].argmax()]
            squares = float(squares_at(taps, where[top], points))
            if squares > best:
                best, at = squares, where[top]
            pending = pending[pending != top]
            limit = best * (1 + TOLERANCE) * (1 - rounding)
            pending = pending[~_is_below(grams[pending], limit)]
    return at


def _gram_samples(taps: Tensor, points: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """K̂ K̂* of all groups and half of the frequencies, in parts, with their group and index.

    The kernel is real: the other half has the conjugate matrices. All are the transform of the
    2D + 1 products Σ_s K_{s+t} K_sᵀ in each dimension.
    """
    d, device = len(points), taps.device
    odd = [2 * size - 1 for size in taps.shape[3:]]
    complex_dtype = torch.complex(taps.new_empty(0), taps.new_empty(0)).dtype
    symbol = taps.permute(0, *range(3, 3 + d), 1, 2).to(complex_dtype)
    for dim, (size, m) in enumerate(zip(taps.shape[3:], odd, strict=True), start=1):
        half = torch.arange(size if dim == 1 else m)
        symbol = _transform(symbol, dim, half, m, torch.arange(size))
    grid = symbol @ symbol.mH
    grid[:, 1:] *= 2  # For the conjugates of the other half, of which the real part is the sum.
    shifts = [(torch.arange(m) + m // 2) % m - m // 2 for m in odd]
    for dim, (t, m) in enumerate(zip(shifts, odd, strict=True), start=1):
        grid = _transform(grid, dim, -t, m, torch.arange(grid.shape[dim])) / m
    grid = grid.real.to(complex_dtype)
    for dim in range(2, 1 + d):
        m = points[dim - 1]
        grid = _transform(grid, dim, torch.arange(m), m, shifts[dim - 1])
    groups, p = grid.shape[0], grid.shape[-1]
    each = max(1, ELEMENTS // (groups * math.prod(points[1:]) * p * p))
    for indices in torch.arange(points[0] // 2 + 1).split(each):
        part = _transform(grid, 1, indices, points[0], shifts[0])
        ranges = [torch.arange(groups), indices, *(torch.arange(m) for m in points[1:])]
        where = torch.cartesian_prod(*ranges).to(device)
        yield part.reshape(-1, p, p), where


def _transform(x: Tensor, dim: int, indices: Tensor, count: int, t: Tensor) -> Tensor:
    """Σ_t x_t exp(-2πi j t / count) along a dimension, for the j of ``indices``."""
    angle = (indices[:, None] * t % count).double() * (-2 * math.pi / count)
    phases = torch.complex(angle.cos(), angle.sin()).to(x)
    return torch.matmul(phases, x.flatten(dim + 1)).unflatten(-1, x.shape[dim + 1 :])


def _is_below(grams: Tensor, limit: float) -> Tensor:
    """Whether a Cholesky factor of limit · I - G exists, (count,), for G (count, p, p).

    In blocks: those of LAPACK are slow for small matrices.
    """
    rest = grams.neg()
    rest.diagonal(dim1=-2, dim2=-1).add_(limit)
    below = torch.ones(len(grams), dtype=torch.bool, device=grams.device)
    while rest.shape[-1] > 0:
        factor, info = torch.linalg.cholesky_ex(rest[:, :BLOCK, :BLOCK])
        below &= info == 0
        row = rest[:, :BLOCK, BLOCK:]
        if row.shape[-1] == 0:
            break
        row = torch.linalg.solve_triangular(factor, row, upper=False)
        rest = rest[:, BLOCK:, BLOCK:] - row.mH @ row
    return below


def _largest_sample_vmap(info: Any, in_dims: Any, taps: Tensor, points: list[int]) -> Any:
    each = taps.movedim(in_dims[0], 0)
    return torch.stack([largest_sample(one, points) for one in each]), 0


register_vmap(largest_sample, _largest_sample_vmap)
