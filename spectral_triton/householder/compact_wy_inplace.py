r"""The blocked algebra of ``compact_wy`` in buffers, for the passes of autograd.

On a CPU small products cost as much by their calls as by their arithmetic, and new memory of the
size of V more than both. So blocks only do what has to wait for the block before: what does not is
done for all of them in one batched product. Rows of a triangular V are taken from the first column
of their block on. Results are those of the functions of the same names there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_triton.householder.compact_wy import add_product, plus_product


def _columns_from(z: Tensor, first: int) -> Tensor:
    # Not a slice from 0, which is an alias that gradients of batches (is_grads_batched) lack.
    return z[..., first:] if first else z


def apply_fwd(
    x: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool
) -> tuple[Tensor, Tensor]:
    """x Qᵀ (x Q if transpose) for rows x (..., N, n), and the coefficients C (..., m, N, b)."""
    m, b = v.shape[-3:-1]
    x = x.clone(memory_format=torch.contiguous_format)
    coefficients = x.new_empty(*x.shape[:-2], m, x.shape[-2], b)
    v_blocks, t_blocks = v.unbind(-3), t.unbind(-3)
    for j in range(m) if transpose else reversed(range(m)):
        first = j * b if triangular else 0
        v_j, t_j, x_j = _columns_from(v_blocks[j], first), t_blocks[j], _columns_from(x, first)
        # Not one of unbind's views, which torch.export must not write to.
        c_j = coefficients.select(-3, j)
        add_product(c_j, x_j @ v_j.mT, t_j if transpose else t_j.mT, beta=0)
        add_product(x_j, c_j, v_j, alpha=-1)
    return x, coefficients


def apply_bwd(
    y: Tensor,
    grad_y: Tensor,
    v: Tensor,
    t: Tensor,
    transpose: bool,
    triangular: bool,
    coefficients: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of apply_fwd for x and for the rows of V; see Note [Backward of a block].

    With Z = [g; -y], D = Z Vᵀ T = [D_g; C] and E = [-C; D_g], for C = -D_y, the terms of the
    gradient are Eᵀ Z and stril(Dᵀ E) V. Without the coefficients of the forward pass C is computed.
    """
    m, b = v.shape[-3:-1]
    num = y.shape[-2]
    z = torch.cat((grad_y, -y), -2)
    # E and D of all blocks in one buffer: -C, D_g, C.
    both = z.new_empty(*y.shape[:-2], m, 3 * num, b)
    d, e = both[..., num:, :], both[..., : 2 * num, :]
    new_z, new_d = z, d
    if coefficients is not None:
        d[..., num:, :].copy_(coefficients)
        e[..., :num, :].copy_(coefficients).neg_()
        new_z, new_d = z[..., :num, :], d[..., :num, :]
    grad_v = z.new_zeros(v.shape)
    parts = [buffer.unbind(-3) for buffer in (v, t, grad_v, d, e, new_d)]
    for j in reversed(range(m)) if transpose else range(m):
        v_j, t_j, grad_j, d_j, e_j, new_d_j = (part[j] for part in parts)
        first = j * b if triangular else 0
        v_j, z_j = _columns_from(v_j, first), _columns_from(z, first)
        c_j = _columns_from(new_z, first) @ v_j.mT
        add_product(new_d_j, c_j, t_j.mT if transpose else t_j, beta=0)
        if coefficients is None:
            e_j[..., :num, :].copy_(d_j[..., num:, :]).neg_()
        add_product(_columns_from(grad_j, first), e_j.mT, z_j)
        add_product(z_j, d_j, v_j, alpha=-1)
    r = d.mT @ e
    _add_block_products(grad_v, r.triu_(1) if transpose else r.tril_(-1), v)
    return z[..., :num, :], _rows(grad_v, triangular)


def product_fwd(v: Tensor, h: Tensor, num_columns: int, triangular: bool) -> Tensor:
    """The first columns of Q, (..., n, num_columns), built in place, for H = TᵀV/2 of all blocks.

    See Note [WY form of one block].
    """
    m, b, n = v.shape[-3:]
    q = torch.eye(n, num_columns, dtype=v.dtype, device=v.device)
    q = q.expand(*v.shape[:-3], n, num_columns).contiguous()
    v_blocks, h_blocks = v.unbind(-3), h.unbind(-3)
    for j in reversed(range(m)):
        first = j * b if triangular else 0
        v_j, h_j = _columns_from(v_blocks[j], first), _columns_from(h_blocks[j], first)
        start = min(first, num_columns)
        part = q[..., first:, start:]
        # Before the first product this part is the identity.
        inner = v_j @ part if j < m - 1 else v_j[..., : num_columns - start]
        add_product(part, h_j.mT, inner, alpha=-2)
    return q


def product_bwd(q: Tensor, grad_q: Tensor, v: Tensor, h: Tensor, triangular: bool) -> Tensor:
    """Gradient of product_fwd for the rows of V; see Note [Backward of the product].

    W, E and Z of that note are twice, four times and twice what is computed here.
    """
    m, b = v.shape[-3:-1]
    k = q @ grad_q.mT
    k = k - k.mT
    grad_v, e = k.new_zeros(v.shape), k.new_empty(*v.shape[:-1], b)
    parts = [buffer.unbind(-3) for buffer in (v, h, grad_v, e)]
    for j in range(m):
        v_j, h_j, grad_j, e_j = (part[j] for part in parts)
        first = j * b if triangular else 0
        v_j, h_j, w = (_columns_from(part, first) for part in (v_j, h_j, grad_j))
        add_product(w, h_j, k, beta=0)
        add_product(e_j, w, h_j.mT, beta=0)
        if j + 1 < m:
            z = plus_product(w, e_j, v_j, alpha=-1)
            if triangular:
                k, v_j, z = k[..., b:, b:], v_j[..., b:], z[..., b:]
            add_product(k, v_j.mT, z, alpha=-2)
            add_product(k, z.mT, v_j, alpha=2)
    _add_block_products(grad_v, e.tril_(-1), v, beta=2, alpha=-4)
    return _rows(grad_v, triangular)


def _add_block_products(base: Tensor, a: Tensor, v: Tensor, beta: int = 1, alpha: int = 1) -> None:
    """beta base + alpha a V for all blocks, in place."""
    # view here and below: flatten and unflatten lack a rule for gradients of batches.
    base, a, v = (x.view(-1, *x.shape[-2:]) for x in (base, a, v))
    add_product(base, a, v, beta=beta, alpha=alpha)


def _rows(grad_v: Tensor, triangular: bool) -> Tensor:
    """All blocks as rows, of a trapezoid zero before the diagonal."""
    *batch, m, b, n = grad_v.shape
    if triangular:
        # Square blocks on the diagonal of the first m, at once; of the last one less may be left.
        squares = min(m, n // b)
        diagonal = grad_v.narrow(-3, 0, squares).narrow(-1, 0, squares * b)
        diagonal = diagonal.view(*batch, squares, b, squares, b).diagonal(0, -4, -2)
        diagonal.movedim(-1, -3).triu_()
        if squares < m:
            grad_v[..., squares, :, squares * b :].triu_()
    return grad_v.view(*batch, m * b, n)
