r"""The Fourier symbol of a convolution, and what it says of the convolution's norm.

Note [Norm from samples of the symbol]
    With K̂(ω) = Σ_t K_t exp(-i ω·t), out × in matrices, a convolution of stride 1 with circular
    padding has the singular values of K̂ at the frequencies of its input, exactly (Sedghi, Gupta,
    Long 2019). On infinite signals its norm is the supremum over all ω, and zero padding restricts
    that operator to some inputs and outputs, which makes no norm larger. A convolution of stride s
    is one of stride 1 whose inputs are the s^d interleaved parts of the input.

    For vectors u and v, exp(i ω·D/2) u* K̂(ω) v is a function of exponential type D/2, D = k - 1,
    per dimension, and the real part of one that is F somewhere is at least F cos(D δ / 2) at a
    distance δ ≤ π / D from there (Duffin, Schaeffer 1938). So the supremum exceeds the largest of M
    equally spaced samples by the factor 1 / cos(π D / 2M) at most in each dimension, as Pfister
    and Liang (2018) use it for trigonometric polynomials.

    Where the largest sample is takes no decomposition: with s at one of them, all others are below
    s (1 + TOLERANCE) if a Cholesky factor of s (1 + TOLERANCE) I - K̂ K̂* exists, at a tenth of the
    cost of the norm. Samples where it does not are the next to be tried. Of the sample that is left
    the largest eigenvalue is at most ‖G^(2^t)‖_F^(2^-t), by t squarings (Delattre et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_triton.layers.patches import bound_patches, count_patches
from spectral_triton.layers.symbol_sample import TOLERANCE, largest_sample, squares_at
from spectral_triton.runtime.validation import full_precision, without_autocast

POINTS = 10
"""Samples per D and dimension: 1 / cos(π / 20) = 1.012 in one dimension, 1.025 in two."""


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

    Costs, with D = ⌊δ (k - 1) / s⌋ per dimension, one to two Cholesky factors of size
    p = min(out, in s^d) at each of (10 D)^d / 2 frequencies; the gradient comes from one of them.

    Args:
        kernel: Shape (groups, out, in, *taps), of one group.
        stride: Elements between outputs.
        dilation: Elements between taps.
    """
    dtype = full_precision(kernel.dtype)
    taps = _of_stride_one(kernel.to(dtype), stride, dilation)
    degrees = [size - 1 for size in taps.shape[3:]]
    points = [max(1, POINTS * degree) for degree in degrees]
    # The squares of a tiny or huge kernel leave the range of numbers.
    scale = taps.detach().abs().amax().clamp_min(torch.finfo(dtype).tiny)
    taps = taps / scale
    with without_autocast(kernel.device.type):
        at = largest_sample(taps.detach(), points)
        largest = squares_at(taps, at, points)
    if taps.shape[0] > 1 or math.prod(points) > 1:
        largest = largest * (1 + TOLERANCE)
    # A list, since compilers take no generator.
    angles = [math.pi * g / (2 * m) for g, m in zip(degrees, points, strict=True)]
    excess = math.prod([math.cos(angle) for angle in angles])
    return (scale * largest.sqrt() / excess * (1 + 4 * torch.finfo(dtype).eps)).to(dtype)


def _of_stride_one(kernel: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """The kernel (groups, out, in s^d, *taps) on the interleaved parts of the input."""
    if all(s == 1 for s in stride):
        # The supremum over all frequencies is the same for every dilation.
        return kernel
    for dim, (s, step) in enumerate(zip(stride, dilation, strict=True), start=3):
        count = kernel.shape[dim]
        at = torch.arange(count, device=kernel.device) * step
        length = -(-(step * (count - 1) + 1) // s) * s
        shape = (*kernel.shape[:dim], length, *kernel.shape[dim + 1 :])
        spread = kernel.new_zeros(shape).index_add(dim, at, kernel)
        kernel = spread.unflatten(dim, (-1, s)).movedim(dim + 1, 3).flatten(2, 3)
    return kernel
