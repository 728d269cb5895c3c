r"""One block of reflectors in WY form, for the passes of autograd.

Note [WY form of one block]
    With W = TᵀV the compact form Q = I - VᵀTV of ``compact_wy`` is Q = I - WᵀV
    (Bischof and Van Loan, 1987). Sᵀ W = V, so H = W/2 takes one solve with the unit triangle of
    2 V Vᵀ, as T does, and then

        x Qᵀ = x - 2 (x Vᵀ) H,    x Q = x - 2 (x Hᵀ) V,

    without a third product. In the backward pass D = Z Vᵀ T is 2 Z Hᵀ. For the transposed product
    T becomes Tᵀ and H = TV/2. Of few reflectors a call costs as much as its arithmetic, so fewer
    calls count. Of several blocks only the formed product gains; applied to a few rows they would
    solve for more than they save.

V and H are (..., b, n), rows are (..., N, n), with one leading batch dimension or none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_triton.householder.compact_wy import add_product, double_gram, plus_product


def half_w(v: Tensor, transpose: bool, gram: Tensor | None = None) -> Tensor:
    """H of unit rows V; 2 V Vᵀ may be handed in."""
    gram = double_gram(v) if gram is None else gram
    # From the right: the solver then reads and writes rows as they lie in memory.
    return torch.linalg.solve_triangular(
        gram.mT if transpose else gram,
        v.mT,
        upper=not transpose,
        left=False,
        unitriangular=True,
    ).mT


def apply_fwd(x: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """x Qᵀ for H = TᵀV/2, x Q for H = TV/2; with V and H exchanged the product the other way."""
    return plus_product(x, x @ v.mT, h, alpha=-2)


def apply_bwd(
    y: Tensor, grad_y: Tensor, v: Tensor, h: Tensor, transpose: bool, triangular: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of apply_fwd for x and for the rows of V."""
    d_y, d_g = y @ h.mT, grad_y @ h.mT
    half = add_product(d_y.mT @ grad_y, d_g.mT, y, alpha=-1)
    return plus_product(grad_y, d_g, v, alpha=-2), _row_gradient(half, v, h, transpose, triangular)


def product_fwd(v: Tensor, h: Tensor, num_columns: int) -> Tensor:
    """The first columns of Q, (..., n, num_columns)."""
    n = v.shape[-1]
    eye = torch.eye(n, num_columns, dtype=v.dtype, device=v.device)
    return plus_product(eye, h.mT, v if num_columns == n else v[..., :num_columns], alpha=-2)


def product_bwd(q: Tensor, grad_q: Tensor, v: Tensor, h: Tensor, triangular: bool) -> Tensor:
    """Gradient of product_fwd for the rows of V: H K and what follows, K = q gᵀ - g qᵀ."""
    (b, n), columns = v.shape[-2:], q.shape[-1]
    if 4 * b * columns < n * (b + columns):
        half = add_product((h @ q) @ grad_q.mT, h @ grad_q, q.mT, alpha=-1)
    else:
        k = q @ grad_q.mT
        half = h @ (k - k.mT)
    return _row_gradient(half, v, h, False, triangular)


def _row_gradient(half: Tensor, v: Tensor, h: Tensor, transpose: bool, triangular: bool) -> Tensor:
    """W K - stril(W K Wᵀ) V from H K, in its memory; striu for the transposed product."""
    e = half @ h.mT
    grad = add_product(half, e.triu_(1) if transpose else e.tril_(-1), v, beta=2, alpha=-4)
    return grad.triu_() if triangular else grad
