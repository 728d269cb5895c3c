r"""The Fourier symbol of a convolution, and what it says of the convolution's norm.

Note [Norm from samples of the symbol]
    With K̂(ω) = Σ_t K_t exp(-i ω·t), out × in matrices, a convolution of stride 1 with circular
    padding has the singular values of K̂ at the frequencies of its input, exactly (Sedghi, Gupta,
    Long 2019). On infinite signals its norm is the supremum over all ω, and zero padding restricts
    that operator to some inputs and outputs, which makes no norm larger. With stride s the outputs
    see s^d shifted frequencies at once: G(ω) = s^-d Σ_j K̂(ω + 2πj/s) K̂(ω + 2πj/s)* has the squares.

    For vectors u and v, |u* K̂(ω) v| is that of a trigonometric polynomial of degree m = (k - 1)/2
    per dimension for odd k, and u* G(ω) u one of degree D = ⌊(k - 1)/s⌋. Such a polynomial exceeds
    its largest sample on M equally spaced points by the factor 1 / cos(π m / M) at most (Ehlich,
    Zeller 1964; Pfister, Liang 2018 for several dimensions). The largest eigenvalue of a sample of
    G is at most ‖G^(2^t)‖_F^(2^-t), by t squarings (Delattre et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_triton.layers.patches import bound_patches, count_patches
from spectral_triton.runtime.validation import full_precision

POINTS = 20
"""Samples per degree and dimension: 1 / cos(π / 20) = 1.012 in one dimension, 1.025 in two."""
SQUARINGS = 6


def _samples(kernel: Tensor, points: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """K̂ (groups, *points, out, in) of a kernel (groups, out, in, *taps), at all of ω = 2πj / M."""
    grid = kernel
    for dim, (count, step) in enumerate(zip(points, dilation, strict=True), start=3):
        # Taps beyond one period meet those that stand there.
        at = (torch.arange(grid.shape[dim], device=kernel.device) * step) % count
        shape = (*grid.shape[:dim], count, *grid.shape[dim + 1 :])
        grid = grid.new_zeros(shape).index_add(dim, at, grid)
    dims = tuple(range(3, grid.dim()))
    return torch.fft.fftn(grid, dim=dims).movedim((1, 2), (-2, -1))


def circular_singular_values(
    kernel: Tensor, input_size: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """All singular values of a circular convolution of stride 1, (groups * min(out, in) * Π size).

    Costs a transform and one decomposition of an out × in matrix for each element of the input.

    Args:
        kernel: Shape (groups, out, in, *taps), of one group.
        input_size: Length, (height, width) or (depth, height, width).
        dilation: Elements between taps.
    """
    wide = kernel.to(full_precision(kernel.dtype))
    return torch.linalg.svdvals(_samples(wide, input_size, dilation)).flatten()


def norm_bound(
    kernel: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[tuple[int, int]],
    padding_mode: str,
    input_size: Sequence[int] | None = None,
) -> Tensor:
    """No less than the norm of a convolution with its padding, see :func:`symbol_bound`.

    Circular padding of stride 1 that keeps the size is exact where the size is given. Other padding
    that copies elements counts by the norm of the copying, the root of the most copies of one.

    Args:
        kernel: Shape (groups, out, in, *taps), of one group.
        stride: Elements between outputs.
        dilation: Elements between taps.
        pads: Elements appended before and after, per dimension.
        padding_mode: "zeros", "circular", "reflect" or "replicate".
        input_size: Of the input, or None for any.

    Returns:
        Scalar tensor, differentiable.
    """
    along = list(zip(kernel.shape[3:], dilation, pads, strict=True))
    periodic = padding_mode == "circular" and all(sum(p) <= s * (k - 1) for k, s, p in along)
    if periodic:
        # Outputs are a part of those of all shifts, so a stride makes the norm no larger.
        kept = all(sum(p) == s * (k - 1) for k, s, p in along)
        if input_size is not None and kept and all(s == 1 for s in stride):
            exact = circular_singular_values(kernel, input_size, dilation).amax()
            return exact * (1 + 32 * torch.finfo(exact.dtype).eps)
        return symbol_bound(kernel, (1,) * len(along), dilation)
    bound = symbol_bound(kernel, stride, dilation)
    if padding_mode == "zeros":
        return bound
    if input_size is None:
        copies = [bound_patches(1, 1, 1, p, padding_mode) for _, _, p in along]
    else:
        sizes = zip(input_size, along, strict=True)
        copies = [count_patches(size, 1, 1, 1, p, padding_mode) for size, (_, _, p) in sizes]
    return bound * math.sqrt(math.prod(copies))


def symbol_bound(kernel: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """No less than the norm of the convolution of infinite signals, differentiable; see the note.

    Costs, with D = ⌊δ (k - 1) / s⌋ per dimension, seven products of square matrices of size
    min(out, in s^d) at each of (20 D)^d / 2 frequencies, or (10 (k - 1))^d / 2 for odd k and
    stride 1.

    Args:
        kernel: Shape (groups, out, in, *taps), of one group.
        stride: Elements between outputs.
        dilation: Elements between taps.
    """
    kernel = kernel.to(full_precision(kernel.dtype))
    taps, d = kernel.shape[3:], kernel.dim() - 3
    plain = all(s == 1 for s in stride)
    if plain:
        # The supremum over all frequencies is the same for every dilation.
        dilation = (1,) * d
    extents = [step * (k - 1) for step, k in zip(dilation, taps, strict=True)]
    # Of odd kernels without stride the polynomial itself, else its square.
    by_root = plain and all(extent % 2 == 0 for extent in extents)
    degrees = [e // 2 if by_root else e // s for e, s in zip(extents, stride, strict=True)]
    points = [max(1, POINTS * degree) for degree in degrees]
    symbol = _samples(kernel, [m * s for m, s in zip(points, stride, strict=True)], dilation)
    symbol = _aliased(symbol, points, stride)
    if d and points[-1] > 1:
        # The kernel is real: the other half of the frequencies has the conjugate matrices.
        symbol = symbol.narrow(d, 0, points[-1] // 2 + 1)
    # The maximum is at one sample, and its gradient comes from there alone.
    samples = symbol.flatten(0, -3)
    with torch.no_grad():
        largest = _largest_eigenvalue_bound(samples).argmax()
    squares = _largest_eigenvalue_bound(samples.index_select(0, largest.unsqueeze(0))).amax()
    excess = math.prod(math.cos(math.pi * g / m) for g, m in zip(degrees, points, strict=True))
    return (squares.sqrt() / excess) if by_root else (squares / excess).sqrt()


def _aliased(symbol: Tensor, points: Sequence[int], stride: Sequence[int]) -> Tensor:
    """K̂ at the s^d frequencies that fall together, side by side: (groups, *points, out, in s^d)."""
    d = len(points)
    if all(s == 1 for s in stride):
        return symbol
    shape = [size for s, m in zip(stride, points, strict=True) for size in (s, m)]
    groups, *_, out, inner = symbol.shape
    symbol = symbol.reshape(groups, *shape, out, inner)
    # (groups, s, m, s, m, ..., out, in) -> (groups, m, m, ..., out, s, s, ..., in)
    order = [0, *range(2, 2 * d + 1, 2), 2 * d + 1, *range(1, 2 * d, 2), 2 * d + 2]
    symbol = symbol.permute(order).reshape(groups, *points, out, inner * math.prod(stride))
    return symbol / math.sqrt(math.prod(stride))


def _largest_eigenvalue_bound(symbol: Tensor) -> Tensor:
    """No less than the largest eigenvalue of A A*, for matrices (..., p, q), with its rounding."""
    a = symbol if symbol.shape[-2] <= symbol.shape[-1] else symbol.mH
    gram = a @ a.mH
    log = gram.real.new_zeros(gram.shape[:-2])
    weight = 1.0
    tiny = torch.finfo(log.dtype).tiny
    for _ in range(SQUARINGS):
        size = torch.linalg.matrix_norm(gram).clamp_min(tiny)
        gram = gram / size[..., None, None]
        log = log + weight * size.log()
        gram, weight = gram @ gram, weight / 2
    size = torch.linalg.matrix_norm(gram).clamp_min(tiny)
    log = log + weight * size.log()
    # Each product is off by a few units in the last place of its norm, times the length of its
    # sums, and counts with a weight that halves.
    slack = 16 * (a.shape[-1] + 2 * a.shape[-2] + 8) * torch.finfo(log.dtype).eps
    return log.exp() * (1 + slack)
