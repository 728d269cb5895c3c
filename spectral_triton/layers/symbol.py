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
    Zeller 1964; Pfister, Liang 2018 for several dimensions).

Note [Largest eigenvalue of all samples]
    Of the Hermitian matrices A A* of all samples only the largest eigenvalue counts. A candidate λ
    is that of the matrices which a few steps of power iteration find large. A Cholesky
    decomposition of θ I - A A*, for θ just above λ, exists where all eigenvalues are below θ, and
    costs a sixth of a product of such matrices. Where it fails the eigenvalue is larger: those
    matrices are looked at again in the same way. A A*, of A of p × q, is off by at most
    (p + q + 8) ε tr(A A*), and the decomposition that exists by p (p + 2) ε θ (Higham 2002, 10.1);
    of large matrices it is taken in float64.

    A program that is traced or transformed cannot go by values. There ‖(A A*)^(2^t)‖_F^(2^-t) is
    the bound, by t squarings (Gram iteration, Delattre et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_triton.layers.patches import bound_patches, count_patches
from spectral_triton.runtime.validation import full_precision

POINTS = 18
"""Samples per degree and dimension: 1 / cos(π / 18) = 1.015 in one dimension, 1.031 in two."""
SQUARINGS = 6
POWER_STEPS, CANDIDATES, ROUNDS = 6, 4, 8
ABOVE = 1e-3
"""How far above the largest eigenvalue that is known all others are shown to end."""


def _samples(kernel: Tensor, points: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """K̂ (groups, *points, out, in) of a kernel (groups, out, in, *taps), at all of ω = 2πj / M."""
    places = [torch.arange(count, device=kernel.device) for count in points]
    return _symbol(kernel, places, points, dilation)


def _symbol(
    kernel: Tensor, places: Sequence[Tensor], points: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """K̂ (groups, *places, out, in) at the frequencies 2πj / M of the places j of each dimension.

    By one product with the waves, since taps are few: it leaves the matrices as they are read.
    """
    groups, out, inner, *taps = kernel.shape
    turns = kernel.new_zeros((1, 1), dtype=torch.float64)
    for j, count, step, k in zip(places, points, dilation, taps, strict=True):
        along = torch.outer(j, step * torch.arange(k, device=kernel.device)) % count / count
        # (places, taps) of the dimensions before, and of this one.
        turns = (
            (turns[:, None, :, None] + along[None, :, None, :].double()).flatten(2).flatten(0, 1)
        )
    angle = -2 * math.pi * turns
    waves = torch.stack((angle.cos(), angle.sin())).to(kernel.dtype)
    rows = kernel.flatten(3).flatten(1, 2).mT
    real, imaginary = waves.unsqueeze(1) @ rows
    shape = (groups, *map(len, places), out, inner)
    return torch.complex(real, imaginary).reshape(shape)


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

    Costs, with D = ⌊δ (k - 1) / s⌋ per dimension, a product of square matrices of size
    min(out, in s^d) and a sixth of one at each of (18 D)^d / 2 frequencies, or (9 (k - 1))^d / 2
    for odd k and stride 1.

    Args:
        kernel: Shape (groups, out, in, *taps), of one group.
        stride: Elements between outputs.
        dilation: Elements between taps.
    """
    kernel = kernel.to(full_precision(kernel.dtype))
    if _by_values(kernel) and not kernel.isfinite().all():
        return kernel.abs().sum()
    tiny = torch.finfo(kernel.dtype).tiny
    scale = kernel.detach().abs().amax().clamp_min(tiny)
    kernel = kernel / scale
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
    squares = _largest_square(kernel, points, stride, dilation)
    excess = math.prod(math.cos(math.pi * g / m) for g, m in zip(degrees, points, strict=True))
    return scale * ((squares.sqrt() / excess) if by_root else (squares / excess).sqrt())


def _aliased(
    kernel: Tensor,
    places: Sequence[Tensor],
    points: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """K̂ at the s^d frequencies that fall together, side by side: (groups, *places, out, in s^d)."""
    if all(s == 1 for s in stride):
        return _symbol(kernel, places, points, dilation)
    d = len(points)
    together = [
        (j.unsqueeze(1) + m * torch.arange(s, device=j.device)).flatten()
        for j, m, s in zip(places, points, stride, strict=True)
    ]
    periods = [m * s for m, s in zip(points, stride, strict=True)]
    symbol = _symbol(kernel, together, periods, dilation)
    groups, *_, out, inner = symbol.shape
    shape = [size for j, s in zip(places, stride, strict=True) for size in (len(j), s)]
    symbol = symbol.reshape(groups, *shape, out, inner)
    # (groups, m, s, m, s, ..., out, in) -> (groups, m, m, ..., out, s, s, ..., in)
    order = [0, *range(1, 2 * d + 1, 2), 2 * d + 1, *range(2, 2 * d + 2, 2), 2 * d + 2]
    symbol = symbol.permute(order).flatten(d + 2)
    return symbol / math.sqrt(math.prod(stride))


def _largest_square(
    kernel: Tensor, points: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """No less than the largest squared singular value of all samples, see the note.

    The maximum is at one sample, and its gradient comes from there alone.
    """
    with torch.no_grad():
        # The kernel is real: the other half of the frequencies has the conjugate matrices.
        kept = (*points[:-1], points[-1] // 2 + 1)
        at = [torch.arange(count, device=kernel.device) for count in kept]
        a = _aliased(kernel, at, points, stride, dilation).flatten(0, -3)
        a = a if a.shape[-2] <= a.shape[-1] else a.mH
        if not _by_values(kernel):
            bounds = _squared(a)
            upper, largest = bounds.amax(), bounds.argmax()
        else:
            upper, largest = _largest_eigenvalue(a)
        place = []
        for size in reversed(kept):
            place.append(largest % size)
            largest = largest // size
    group = kernel.index_select(0, largest.reshape(1))
    own = _aliased(group, [j.reshape(1) for j in place[::-1]], points, stride, dilation)
    own = own.flatten(0, -3)[0]
    gram = own @ own.mH if own.shape[-2] <= own.shape[-1] else own.mH @ own
    value = torch.linalg.eigvalsh(gram)[-1]
    # By a factor, as it has been shown; the root of zero would have no slope.
    tiny = torch.finfo(value.dtype).tiny
    return value * (upper / value.detach().clamp_min(tiny)).clamp_min(1) + tiny


def _by_values(kernel: Tensor) -> bool:
    """Whether numbers may decide what is computed."""
    transformed = torch._C._are_functorch_transforms_active()
    return not (torch.compiler.is_compiling() or transformed or kernel.is_meta)


def _largest_eigenvalue(a: Tensor) -> tuple[Tensor, Tensor]:
    """What no eigenvalue of A A* exceeds among matrices (N, p, q), and which has the largest."""
    grams = a @ a.mH
    n, p = grams.shape[:2]
    eps = torch.finfo(a.dtype).eps
    trace = grams.diagonal(dim1=-2, dim2=-1).real.sum(-1).amax()
    slack = (a.shape[-2] + a.shape[-1] + 8) * eps * trace
    wide = grams.dtype if p * p * eps < ABOVE else torch.complex128
    rounding = p * (p + 2) * torch.finfo(wide).eps
    # A column is a step of power iteration; the longest has most of the largest eigenvector.
    heaviest = grams.diagonal(dim1=-2, dim2=-1).real.argmax(-1)
    left = torch.arange(n, device=a.device)
    x = grams[left, :, heaviest]
    largest, theta, remaining = left[0], trace.new_zeros(()), grams
    for _ in range(ROUNDS):
        for _ in range(POWER_STEPS):
            x = torch.nn.functional.normalize(x, dim=-1)
            x = (remaining @ x.unsqueeze(-1)).squeeze(-1)
        tried = torch.linalg.vector_norm(x, dim=-1).topk(min(CANDIDATES, len(left))).indices
        values = torch.linalg.eigvalsh(remaining[tried])[:, -1]
        if values.amax() * (1 + ABOVE) > theta:
            theta, largest = values.amax() * (1 + ABOVE), left[tried[values.argmax()]]
        shifted = remaining.neg().to(wide)
        shifted.diagonal(dim1=-2, dim2=-1).add_(theta)
        failed = torch.linalg.cholesky_ex(shifted).info != 0
        if not failed.any():
            return theta * (1 + rounding) + slack, largest
        left, x, remaining = left[failed], x[failed], remaining[failed]
    values = torch.linalg.eigvalsh(remaining)[:, -1]
    largest = left[values.argmax()]
    return torch.maximum(theta, values.amax() * (1 + ABOVE)) * (1 + rounding) + slack, largest


def _squared(a: Tensor) -> Tensor:
    """No less than the largest eigenvalue of A A*, for matrices (..., p, q), with its rounding."""
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
