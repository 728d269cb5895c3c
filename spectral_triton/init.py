r"""Starting points for the reflectors of U and V, in place and reproducible from a generator.

All take tensors in triangular form (row i, counted from 0, uses the columns from i on) and write
zeros before the diagonal. Reflectors of half precision are drawn in float32 and rounded, which
keeps U and V orthogonal. Leading dimensions are batches of independent draws.

Every reflector begins about as long as a row of standard normal numbers, :math:`\sqrt{n - i}`. Its
length has no meaning for W, but one for the optimizer: a step of Adam, which moves each entry by
about the learning rate, turns a reflector of this length by about that many radians.

A row of zeros is the identity, and a point where W jumps: the smallest change makes it a
reflection. :func:`flip_zero_rows_` removes those that the functions here leave, which have no signs
to absorb a flip; the layers do so at their start.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from spectral_triton.runtime.validation import check_floating, full_precision


@torch.no_grad()
def haar_(reflectors: Tensor, *, generator: Generator | None = None) -> Tensor:
    r"""Draws reflectors whose product is uniform over the orthogonal matrices.

    Row i becomes :math:`v = x - \|x\| e_i` with x standard normal on the columns from i on, so that
    :math:`H(v) e_i` is uniform on its sphere. The product of n such rows is exactly Haar on O(n),
    both signs of the determinant included (the last row is zero half of the time); the first k
    columns of a product of k < n rows are uniform on the Stiefel manifold. Costs O(k n).

    Args:
        reflectors: Overwritten, shape ``(..., k, n)``.
        generator: Source of randomness; the global one by default.

    Returns:
        ``reflectors``.

    Raises:
        TypeError: if what is to be filled is not a real floating-point tensor.
        ValueError: if ``reflectors`` has fewer than two dimensions or k > n.

    Example:
        >>> reflectors = haar_(torch.empty(3, 3), generator=torch.Generator().manual_seed(0))
        >>> bool((reflectors == reflectors.triu()).all())
        True

    References:
        Diaconis, Shahshahani. The subgroup algorithm for generating uniform random variables.
        Probability in the Engineering and Informational Sciences 1, 1987.
    """
    _check("reflectors", reflectors)
    x = _normal(reflectors.shape, reflectors, generator).triu()
    head = x.diagonal(dim1=-2, dim2=-1)
    tail = x.triu(1).square().sum(-1)
    norm = (head.square() + tail).sqrt()
    # x_i - |x| without cancellation where x_i > 0.
    new_head = torch.where(head > 0, -tail / (head + norm), head - norm)
    x.diagonal(dim1=-2, dim2=-1).copy_(new_head)
    return reflectors.copy_(_long_enough(x))


def identity_(left: Tensor, right: Tensor, *, generator: Generator | None = None) -> None:
    r"""Draws reflectors with :math:`U I V^\top = I`, while every reflector keeps a gradient.

    Left and right hold the same random rows, confined to the first p = min(m, n) columns, so a
    rectangular W is the identity in its leading p × p block and zero elsewhere. Where one side
    has more rows, these come in equal pairs, which cancel. An odd number of them leaves one row of
    zeros, without a gradient: no nonzero choice has W = I, because each reflector flips the sign of
    the determinant. Rows after the first p, of which W has no use, are zero too.

    Args:
        left: Overwritten, shape ``(..., k_u, m)``.
        right: Overwritten, shape ``(..., k_v, n)``.
        generator: Source of randomness; the global one by default.

    Raises:
        TypeError: if what is to be filled is not a real floating-point tensor.
        ValueError: if a tensor has fewer than two dimensions, more rows than columns, or the
            batch shapes differ.

    Example:
        >>> left, right = torch.empty(2, 4), torch.empty(2, 4)
        >>> identity_(left, right)
        >>> bool((left == right).all())
        True
    """
    _rotations_(left, right, None, generator)


def henaff_(left: Tensor, right: Tensor, *, generator: Generator | None = None) -> None:
    r"""Draws reflectors with :math:`U V^\top` block diagonal: plane rotations by any angle.

    Coordinates 2i and 2i + 1 are turned by :math:`\theta_i \sim U(-\pi, \pi)`: the left reflector
    a and the right one b of that plane enclose half the angle. Reflectors of different planes
    commute. With fewer rows than planes the other planes stay as they are; with more, the rest
    cancel as in :func:`identity_`.

    Args:
        left: Overwritten, shape ``(..., k_u, m)``.
        right: Overwritten, shape ``(..., k_v, n)``.
        generator: Source of randomness; the global one by default.

    Raises:
        TypeError, ValueError: as :func:`identity_`.

    Example:
        >>> left, right = torch.empty(4, 4), torch.empty(4, 4)
        >>> henaff_(left, right, generator=torch.Generator().manual_seed(0))

    References:
        Henaff, Szlam, LeCun. Recurrent orthogonal networks and long-memory tasks. ICML 2016.
        https://arxiv.org/abs/1602.06662
    """
    _rotations_(left, right, (-math.pi, math.pi), generator)


def cayley_(left: Tensor, right: Tensor, *, generator: Generator | None = None) -> None:
    r"""Draws reflectors with :math:`U V^\top` block diagonal: plane rotations by up to 90 degrees.

    As :func:`henaff_` with :math:`\theta_i \sim U(0, \pi/2)`, which is the Cayley transform of
    skew blocks :math:`s = \sqrt{(1 - \cos\theta)/(1 + \cos\theta)}`.

    Args:
        left: Overwritten, shape ``(..., k_u, m)``.
        right: Overwritten, shape ``(..., k_v, n)``.
        generator: Source of randomness; the global one by default.

    Raises:
        TypeError, ValueError: as :func:`identity_`.

    Example:
        >>> left, right = torch.empty(4, 4), torch.empty(4, 4)
        >>> cayley_(left, right, generator=torch.Generator().manual_seed(0))

    References:
        Helfrich, Willmott, Ye. Orthogonal recurrent neural networks with scaled Cayley transform.
        ICML 2018. https://arxiv.org/abs/1707.09520
    """
    _rotations_(left, right, (0.0, math.pi / 2), generator)


@torch.no_grad()
def flip_zero_rows_(left: Tensor, right: Tensor, signs: Tensor) -> None:
    r"""Replaces rows of zeros by reflectors that change nothing: each flips a sign of ``signs``.

    .. math:: U \,\mathrm{diag}(s) = U' \,\mathrm{diag}(s'), \qquad v'_i = \sqrt{n - i}\; e_i,
        \quad s'_i = -s_i \quad\text{where}\quad v_i = 0

    :math:`H(e_i)` commutes with the reflectors that follow, whose entry i is zero, so that W stays
    what it is, and is continuous in its reflectors afterwards.

    Args:
        left: Triangular reflectors of U, shape ``(..., k_u, m)``, changed in place.
        right: Triangular reflectors of V, shape ``(..., k_v, n)``, changed in place.
        signs: ±1 of shape ``(..., p)`` with p of at least k_u and k_v, changed in place.

    Example:
        >>> left, right, signs = torch.zeros(2, 3), torch.ones(1, 3), torch.ones(3)
        >>> flip_zero_rows_(left, right, signs)
        >>> signs
        tensor([-1., -1.,  1.])
    """
    for reflectors in (left, right):
        k = reflectors.shape[-2]
        if k == 0:
            continue
        zero = (reflectors.triu() == 0).all(-1)
        heads = reflectors.diagonal(dim1=-2, dim2=-1)
        heads.copy_(torch.where(zero, usual_length(reflectors).to(reflectors.dtype), heads))
        own = signs[..., :k]
        own.copy_(torch.where(zero, -own, own))


def usual_length(reflectors: Tensor) -> Tensor:
    """What each row of ``(..., k, n)`` begins with: :math:`\\sqrt{n - i}`, shape ``(k,)``."""
    k, n = reflectors.shape[-2:]
    dtype = full_precision(reflectors.dtype)
    return torch.arange(n, n - k, -1, dtype=dtype, device=reflectors.device).sqrt()


@torch.no_grad()
def _rotations_(
    left: Tensor, right: Tensor, angles: tuple[float, float] | None, generator: Generator | None
) -> None:
    """Rotates as many planes as rows allow (none without ``angles``); all other rows cancel."""
    _check("left", left)
    _check("right", right)
    if left.shape[:-2] != right.shape[:-2]:
        raise ValueError(
            f"left and right must have the same batch dimensions, got shapes "
            f"{tuple(left.shape)} and {tuple(right.shape)}"
        )
    (k_u, m), (k_v, n) = left.shape[-2:], right.shape[-2:]
    p = min(m, n)
    batch, common, most = left.shape[:-2], min(k_u, k_v), max(k_u, k_v)
    planes = 0 if angles is None else min(common, p // 2)
    rows = _long_enough(_normal((*batch, most, p), left, generator).triu())
    # Reflectors at common and common + 1 are equal, and so on: H(v) H(v) = I.
    pairs = max(min(most, p) - common, 0) // 2
    first = common + 2 * torch.arange(pairs, device=left.device)
    rows[..., first, :] = rows[..., first + 1, :]
    rows[..., common + 2 * pairs :, :] = 0
    left.zero_()[..., :p] = rows[..., :k_u, :]
    right.zero_()[..., :p] = rows[..., :k_v, :]
    if planes:
        low, high = angles  # type: ignore[misc]
        theta = _uniform((*batch, planes), left, generator, low, high)
        phase = _uniform((*batch, planes), left, generator, -math.pi, math.pi)
        _set_planes(left, phase + 0.5 * theta)
        _set_planes(right, phase)


def _set_planes(reflectors: Tensor, angle: Tensor) -> None:
    """Row i becomes the vector at ``angle`` in the plane of coordinates 2i and 2i + 1."""
    i = torch.arange(angle.shape[-1], device=reflectors.device)
    length = usual_length(reflectors)[: len(i)]
    reflectors[..., : len(i), :] = 0
    reflectors[..., i, 2 * i] = (length * angle.cos()).to(reflectors.dtype)
    reflectors[..., i, 2 * i + 1] = (length * angle.sin()).to(reflectors.dtype)


def _long_enough(rows: Tensor) -> Tensor:
    """Rows (..., k, n) of which none but zeros is shorter than half the usual length.

    A change turns a short row by a large angle, and W with it.
    """
    length, usual = torch.linalg.vector_norm(rows, dim=-1), usual_length(rows)
    short = (length > 0) & (length < usual / 2)
    return rows * torch.where(short, usual / length, 1).unsqueeze(-1)


def _check(name: str, reflectors: Tensor) -> None:
    check_floating(name, reflectors)
    if reflectors.dim() < 2 or reflectors.shape[-2] > reflectors.shape[-1]:
        raise ValueError(
            f"{name} must have shape (..., k, n) with k <= n, got {tuple(reflectors.shape)}"
        )
    kept = reflectors if reflectors._base is None else reflectors._base
    if kept.grad_fn is not None:
        raise ValueError(
            f"{name} is computed from other tensors, as layer.weight is, so what is drawn would be "
            "lost: give the reflectors themselves (layer.svd.left, layer.svd.right), or call "
            "layer.reset_parameters()"
        )


def _normal(shape: tuple[int, ...], like: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(
        shape, dtype=full_precision(like.dtype), device=like.device, generator=generator
    )


def _uniform(
    shape: tuple[int, ...], like: Tensor, generator: Generator | None, low: float, high: float
) -> Tensor:
    unit = torch.rand(
        shape, dtype=full_precision(like.dtype), device=like.device, generator=generator
    )
    return low + (high - low) * unit
