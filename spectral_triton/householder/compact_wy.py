r"""The blocked algebra of Householder products in plain PyTorch: every step is a matrix product.

Note [Compact WY blocks]
    b unit reflectors as rows of V (b, n) multiply to Q = I - Vᵀ T V with T = S⁻¹ upper triangular,
    S = striu(V Vᵀ) + I/2 (Schreiber and Van Loan, 1989). k reflectors are ⌈k/b⌉ such blocks,
    Q = Q₁ Q₂ ⋯; all S and T come from a few batched calls. A zero row leaves S diagonal there and
    contributes nothing to Vᵀ T V, so it is the identity, with zero gradient.

Note [Backward of a block]
    Vectors are rows. For y = x Qᵀ with output gradient g, both inputs are recovered from the
    outputs, since Q is orthogonal: with Z = [g; y] and D = Z Vᵀ T,

        [∂L/∂x; x] = Z - D V,    ∂L/∂V = D_yᵀ g - D_gᵀ y + stril(R - Rᵀ) V,    R = D_gᵀ D_y,

    so nothing but y is needed. For the transposed product T becomes Tᵀ and stril striu. With
    S + Sᵀ = V Vᵀ it follows that D_y = -C, the coefficients of y = x - C V, which the forward pass
    may hand on. Rows of V have length one here; the gradient is that of H(v) = I - 2vvᵀ/vᵀv, which
    is orthogonal to v, so dividing by the original length is all that is left.

Note [Backward of the product]
    The formula above sees g and y only through the antisymmetric K = yᵀg - gᵀy:

        ∂L/∂V = W - stril(E) V,    W = Tᵀ V K,    E = W Vᵀ T,    K ← Qⱼᵀ K Qⱼ = K - VᵀZ + ZᵀV,

    Z = W - E V / 2. One n x n matrix product forms K from the whole gradient, then each block costs
    6 n² b; with triangular reflectors only a trailing part of K is needed after each block.

All functions take matching leading batch dimensions (none or one). Those that apply and form Q are
here as they are differentiated, in forward mode too; ``compact_wy_inplace`` beside this module has
them as they run otherwise, ``wy_block`` for a single block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectral_triton.runtime.flop_count import flops_are_counted
from spectral_triton.runtime.forward_mode import is_differentiated

# Reflectors per block on the CPU, at most. Of 32 to 128 the fastest forward and backward together,
# or as fast, for n = 64 to 1024: more blocks are more calls, larger ones more arithmetic.
BLOCK_SIZE = 64


def unit_rows(
    reflectors: Tensor, triangular: bool = False, *, in_range: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows scaled to length one, zero rows kept, and what the rows were multiplied by.

    Of a zero row that is zero, as is its gradient. ``in_range`` says that squares are known to be.
    """
    rows = reflectors.triu() if triangular else reflectors
    limits = torch.finfo(rows.dtype)
    differentiated = is_differentiated()
    if not differentiated and (in_range or may_be_looked_at(rows)):
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        if in_range:
            length = length.masked_fill(length == 0, torch.inf)
        if in_range or _has_squares(rows, length):
            # Divided, not multiplied, which is faster, but the length would be off by a rounding.
            return (rows.div_(length) if triangular else rows / length), length.reciprocal_()
    # Scaling the largest entry to 2 to 4 first keeps the squares of 1e-30 or 1e30 in range. By a
    # power of two: what a program is traced to do here is to the bit what is done without.
    largest = rows.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    if differentiated:
        # H(v) has no derivative at zero and is given none, of any order. That cuts off what comes
        # before: masked afterwards it would be 0 * inf.
        rows, largest = rows.masked_fill(zero, 0), largest.masked_fill(zero, 1)
    largest = largest.clamp_min(limits.smallest_normal)
    scale = 4 * torch.frexp(largest).mantissa / largest
    rows = rows * scale
    # Two at least, but for rows of zeros or denormal numbers.
    if differentiated:
        # Not vector_norm, whose derivative in forward mode is taken in place (PyTorch 2.13).
        length = rows.masked_fill(zero, 1).square().sum(-1, keepdim=True).sqrt()
    else:
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    length = length.masked_fill(zero, torch.inf)
    # A scale is finite: the inverse of a denormal length times a gradient of zero would be NaN.
    return rows / length, (scale / length).clamp_max(limits.max)


def may_be_looked_at(rows: Tensor) -> bool:
    """Whether numbers may decide what is done: a GPU would be waited for, a program is traced."""
    plain = rows.is_cpu and type(rows) in (Tensor, nn.Parameter)
    return plain and not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def _has_squares(rows: Tensor, length: Tensor) -> bool:
    """Whether squares of the rows are known to be in range; makes the length of zero rows inf."""
    limits = torch.finfo(rows.dtype)
    if length.numel() == 0:
        return True
    try:
        least, most = (bound.item() for bound in length.aminmax())
        if least == 0:
            zero = length == 0
            if rows[zero.squeeze(-1)].any():  # Not zero, but too small to have a square.
                return False
            least = length.masked_fill_(zero, torch.inf).amin().item()
    except RuntimeError:  # Inside vmap no single value can be read.
        return False
    return limits.tiny**0.25 < least and most < limits.max**0.25


def t_factor(v: Tensor, triangular: bool = False) -> Tensor:
    """T (..., b, b) of unit rows V (..., b, n), the blocks of a trapezoid if triangular."""
    gram = double_gram(v, triangular)
    twice = 2 * torch.eye(v.shape[-2], dtype=v.dtype, device=v.device)
    # T S = I doubled: the solver takes ones on the diagonal and does not read below it. From the
    # right it is a third faster than from the left.
    return torch.linalg.solve_triangular(
        gram, twice.expand_as(gram), upper=True, left=False, unitriangular=True
    )


def double_gram(v: Tensor, triangular: bool = False) -> Tensor:
    """2 V Vᵀ; of a trapezoid two blocks at a time, without the columns of zeros before both."""
    if triangular and v.dim() > 2 and v.shape[-3] > 3:
        b = v.shape[-2]
        pairs = [v[..., j : j + 2, :, j * b :] for j in range(0, v.shape[-3], 2)]
        return torch.cat([double_gram(pair) for pair in pairs], -3)
    flat = v.flatten(0, -3) if v.dim() > 3 else v
    # Zero, although it is multiplied by zero: inside vmap that would keep a NaN.
    gram = plus_product(v.new_zeros(()), flat, flat.mT, beta=0, alpha=2)
    return gram.view(*v.shape[:-1], v.shape[-2]) if v.dim() > 3 else gram


def plus_product(base: Tensor, a: Tensor, b: Tensor, beta: int = 1, alpha: int = 1) -> Tensor:
    """beta base + alpha a b in one call."""
    # alpha is an int: dynamic compilation lifts a float default to an input, which fails here.
    return (torch.addmm if a.dim() == 2 else torch.baddbmm)(base, a, b, beta=beta, alpha=alpha)


def add_product(base: Tensor, a: Tensor, b: Tensor, beta: int = 1, alpha: int = 1) -> Tensor:
    """The same in the memory of base."""
    if flops_are_counted():  # They are not of what is done in place.
        return base.copy_(plus_product(base if beta else base.new_zeros(()), a, b, beta, alpha))
    return (base.addmm_ if base.dim() == 2 else base.baddbmm_)(a, b, beta=beta, alpha=alpha)


def blocks(unit_reflectors: Tensor, block_size: int) -> Tensor:
    """V as blocks (..., m, b, n), of nearly equal size, the last one filled up with zero rows."""
    k = unit_reflectors.shape[-2]
    m = -(-k // block_size)
    b = -(-k // m)
    if m * b != k:
        unit_reflectors = torch.nn.functional.pad(unit_reflectors, (0, 0, 0, m * b - k))
    # A view, not unflatten, whose Python takes as long as a small product.
    return unit_reflectors.contiguous().view(
        *unit_reflectors.shape[:-2], m, b, unit_reflectors.shape[-1]
    )


def apply_fwd(x: Tensor, v: Tensor, t: Tensor, transpose: bool) -> Tensor:
    """x Qᵀ (x Q if transpose) for rows x (..., N, n)."""
    m = v.shape[-3]
    v_blocks, t_blocks = v.unbind(-3), t.unbind(-3)
    for j in range(m) if transpose else reversed(range(m)):
        x = x - (x @ v_blocks[j].mT) @ (t_blocks[j] if transpose else t_blocks[j].mT) @ v_blocks[j]
    return x


def apply_bwd(
    y: Tensor, grad_y: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of apply_fwd for x and for the rows of V; see Note [Backward of a block]."""
    m = v.shape[-3]
    grads: list[Tensor] = [v] * m
    v_blocks, t_blocks = v.unbind(-3), t.unbind(-3)
    for j in reversed(range(m)) if transpose else range(m):
        v_j, t_j = v_blocks[j], t_blocks[j].mT if transpose else t_blocks[j]
        d_g, d_y = grad_y @ v_j.mT @ t_j, y @ v_j.mT @ t_j
        r = d_g.mT @ d_y
        r = r - r.mT
        r = r.triu(1) if transpose else r.tril(-1)
        grads[j] = d_y.mT @ grad_y - d_g.mT @ y + r @ v_j
        grad_y, y = grad_y - d_g @ v_j, y - d_y @ v_j
    return grad_y, _rows(grads, triangular)


def product_bwd(q: Tensor, grad_q: Tensor, v: Tensor, t: Tensor, triangular: bool) -> Tensor:
    """Gradient of Q's first columns q for the rows of V; see Note [Backward of the product]."""
    k = q @ grad_q.mT
    k = k - k.mT
    grads = []
    for v_j, t_j in zip(v.unbind(-3), t.unbind(-3), strict=True):
        w = t_j.mT @ v_j @ k
        e = w @ v_j.mT @ t_j
        z = w - 0.5 * e @ v_j
        k = k - v_j.mT @ z + z.mT @ v_j
        grads.append(w - e.tril(-1) @ v_j)
    return _rows(grads, triangular)


def _rows(blocks: list[Tensor], triangular: bool) -> Tensor:
    rows = torch.cat(blocks, -2)
    return rows.triu() if triangular else rows
