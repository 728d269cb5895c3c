"""From a dense matrix to reflectors, singular values and signs."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_triton.householder.products import apply_reflectors, reflectors_from_orthogonal
from spectral_triton.init import usual_length
from spectral_triton.runtime.validation import (
    check_choice,
    check_floating,
    full_precision,
    resolve_num_reflectors,
)
from spectral_triton.svd.base import draw_pairs_
from spectral_triton.svd.bounds import into_bounds


class DenseFactors(NamedTuple):
    """What :func:`factor_dense` finds: reflectors, σ and signs, and bases where it takes them."""

    left: Tensor
    singular_values: Tensor
    right: Tensor
    signs: Tensor
    left_base: Tensor | None = None
    right_base: Tensor | None = None


class TooFewReflectorsError(ValueError):
    """A dense matrix cannot be written with the number of reflectors asked for."""


@torch.no_grad()
def factor_dense(
    w: Tensor,
    num_reflectors: int | Sequence[int] | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    out_of_bounds: str = "raise",
    base: str = "never",
    name: str = "the matrix",
) -> DenseFactors:
    r"""Factors :math:`W = U \,\mathrm{diag}(s \circ \sigma)\, V^\top` into reflectors of U and V.

    A singular value decomposition and two QR factorisations, in float32 at least. Singular vectors
    of singular values that vanish to rounding are free, so a matrix of rank r needs r reflectors.

    Args:
        w: The matrix, shape ``(..., m, n)``.
        num_reflectors: All p = min(m, n) per side (None), an int or a pair (left, right).
        bounds: Interval of the singular values; those outside by no more than the rounding error
            of the decomposition are moved onto the bound. Where -σ is nearer to it than σ, it is
            taken instead, with the other sign.
        out_of_bounds: "raise", or "clip" to move any singular value into the bounds.
        base: "never", "always", or "if needed", where the reflectors alone do not suffice: then the
            singular vectors are the bases, and the reflectors are drawn in pairs that cancel.
        name: What the matrix is called where it is out of bounds.

    Returns:
        left ``(..., k_u, m)``, σ ``(..., p)`` with \|σ\| falling, right ``(..., k_v, n)``, both
        triangular and about as long as drawn ones (:mod:`spectral_triton.init`), and signs
        ``(..., p)`` of ±1. No gradient flows to ``w``.

    Raises:
        TypeError: if ``w`` is not a real floating point tensor.
        ValueError: if ``w`` is not a non-empty finite matrix, a singular value is out of bounds,
            ``num_reflectors`` is out of range, or (:class:`TooFewReflectorsError`) too small for
            this matrix without a base.

    Example:
        >>> found = factor_dense(torch.randn(3, 5))
        >>> found.left.shape, found.singular_values.shape, found.right.shape
        (torch.Size([3, 3]), torch.Size([3]), torch.Size([3, 5]))
    """
    check_floating("w", w)
    check_choice("out_of_bounds", out_of_bounds, ("raise", "clip"))
    check_choice("base", base, ("never", "always", "if needed"))
    if w.dim() < 2 or 0 in w.shape[-2:]:
        raise ValueError(f"w must be a matrix (..., m, n) with m, n >= 1, got {tuple(w.shape)}")
    if w.is_meta:
        raise ValueError("w must have values, got a tensor on the meta device")
    if not w.isfinite().all():
        raise ValueError("w must be finite, got NaN or infinite entries")
    k_u, k_v = resolve_num_reflectors(num_reflectors, *w.shape[-2:])
    u, sigma, vh = torch.linalg.svd(w.to(full_precision(w.dtype)), full_matrices=False)
    rtol = max(w.shape[-2:]) * torch.finfo(sigma.dtype).eps
    if not sigma.isfinite().all():
        raise ValueError(f"w must have singular values that {sigma.dtype} can hold")
    matters = sigma > rtol * sigma[..., :1]
    sides = (u, k_u), (vh.mT, k_v)
    suffices = base != "always" and all(
        k == sigma.shape[-1] or _suffices(q, k, matters) for q, k in sides
    )
    if not suffices and base == "never":
        steps = range(sigma.shape[-1] + 1)
        needed = tuple(
            bisect.bisect_left(steps, True, key=partial(_suffices, q, matters=matters))
            for q, _ in sides
        )
        raise TooFewReflectorsError(
            f"num_reflectors = {(k_u, k_v)} is too small to represent this matrix, which needs "
            f"{needed} (left, right) by its singular value decomposition; from a matrix that "
            "fewer have made they cannot be recovered"
        )
    if suffices:
        (left, left_signs, _), (right, right_signs, _) = (_columns(q, k) for q, k in sides)
        left, right, bases = _lengthened(left), _lengthened(right), []
        signs = left_signs * right_signs
    else:
        left, right = (q.new_empty(*q.shape[:-2], k, q.shape[-2]) for q, k in sides)
        bases = [u.clone(), vh.mT.clone()]
        draw_pairs_(left, bases[0])
        draw_pairs_(right, bases[1])
        signs = torch.ones_like(sigma)
    if bounds is not None:
        # Errors of the matrix and of its decomposition, relative to the norm: a few more units in
        # the last place where it was formed from factors, however small it is.
        slack = max(16, *w.shape[-2:]) * torch.finfo(sigma.dtype).eps * sigma[..., :1]
        sigma, signs = into_bounds(sigma, signs, bounds, out_of_bounds, slack, name)
    return DenseFactors(left, sigma, right, signs, *bases)


def _lengthened(reflectors: Tensor) -> Tensor:
    """The same reflectors about as long as drawn ones, for an optimizer; exact, by powers of 2."""
    ratio = usual_length(reflectors) / torch.linalg.vector_norm(reflectors, dim=-1)
    return torch.ldexp(reflectors, ratio.log2().round().unsqueeze(-1))


def _columns(q: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """k reflectors for the first columns of q, signs for all, and what is left of the others."""
    reflectors, signs = reflectors_from_orthogonal(q[..., :k])
    others = q[..., k:].mT
    if others.shape[-2] == 0:
        return reflectors, signs, others
    others = apply_reflectors(others, reflectors, transpose=True, triangular=True)
    diagonal = others.diagonal(k, dim1=-2, dim2=-1)
    other_signs = torch.where(diagonal < 0, -1, 1).to(q.dtype)
    units = torch.eye(q.shape[-2], dtype=q.dtype, device=q.device)[k : q.shape[-1]]
    remainder = others - other_signs.unsqueeze(-1) * units
    return reflectors, torch.cat((signs, other_signs), -1), remainder


def _suffices(q: Tensor, k: int, matters: Tensor) -> bool:
    """Whether the columns after the first k are ± unit vectors once k reflectors are undone."""
    remainder = _columns(q, k)[2] * matters[..., k:, None]
    tolerance = 30 * q.shape[-2] ** 0.5 * torch.finfo(q.dtype).eps
    return bool((remainder.abs() <= tolerance).all())
