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

    so nothing but y is stored. For the transposed product T becomes Tᵀ and stril striu. With
    E = [D_y; -D_g] the three terms are Eᵀ Z and stril(Dᵀ E) V. Rows of V have length one here; the
    gradient is that of H(v) = I - 2vvᵀ/vᵀv, which is orthogonal to v, so dividing by the original
    length is all that is left.

Note [Backward of the product]
    The formula above sees g and y only through the antisymmetric K = yᵀg - gᵀy:

        ∂L/∂V = W - stril(E) V,    W = Tᵀ V K,    E = W Vᵀ T,    K ← Qⱼᵀ K Qⱼ = K - VᵀZ + ZᵀV,

    Z = W - E V / 2. One n x n matrix product forms K from the whole gradient, then each block costs
    6 n² b; with triangular reflectors only a trailing part of K is needed after each block.

All functions take matching leading batch dimensions (none or one). All but product_fwd are
differentiable, in forward mode too, which is how second derivatives are had.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_triton.forward_mode import is_differentiated

# Reflectors per block on the CPU, at most. Of 32 to 128 the fastest forward and backward together,
# or as fast, for n = 64 to 1024: more blocks are more calls, larger ones more arithmetic.
BLOCK_SIZE = 64


def unit_rows(reflectors: Tensor, triangular: bool = False) -> tuple[Tensor, Tensor]:
    """Rows scaled to length one, zero rows kept, and what the rows were multiplied by."""
    rows = reflectors.triu() if triangular else reflectors
    limits = torch.finfo(rows.dtype)
    # Scaling by the largest entry first keeps the squares of 1e-30 or 1e30 in range.
    entries = rows.detach()
    largest = torch.maximum(entries.amax(-1, keepdim=True), -entries.amin(-1, keepdim=True))
    # A scale is finite: the inverse of a denormal length times a gradient of zero would be NaN.
    if is_differentiated():
        largest = torch.where(largest == 0, 1, largest)
        rows = rows / largest
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        length = torch.where(length == 0, 1, length)
        return rows / length, (1 / (length * largest)).clamp_max(limits.max)
    scale = largest.clamp_min_(limits.smallest_normal).reciprocal_()
    rows = rows.mul_(scale) if triangular else rows * scale
    # Only rows of denormal numbers are shorter than one now, and only zero rows shorter than this.
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min_(0.5 * limits.eps)
    # Divided, not multiplied, which is faster, but the length would be off by one rounding more.
    return rows.div_(length), scale.div_(length).clamp_max_(limits.max)


def t_factor(v: Tensor, triangular: bool = False) -> Tensor:
    """T (..., b, b) of unit rows V (..., b, n), the blocks of a trapezoid if triangular."""
    gram = _gram(v) if triangular else v @ v.mT
    twice = 2 * torch.eye(v.shape[-2], dtype=v.dtype, device=v.device)
    # T S = I doubled: the solver takes ones on the diagonal and does not read below it. From the
    # right it is a third faster than from the left.
    return torch.linalg.solve_triangular(
        2 * gram, twice.expand_as(gram), upper=True, left=False, unitriangular=True
    )


def _gram(v: Tensor) -> Tensor:
    """V Vᵀ of the blocks of a trapezoid: the later half of them starts with columns of zeros."""
    m, b = v.shape[-3:-1]
    if m < 4:
        return v @ v.mT
    early, late = v[..., : m // 2, :, :], v[..., m // 2 :, :, m // 2 * b :]
    return torch.cat((early @ early.mT, late @ late.mT), -3)


def blocks(unit_reflectors: Tensor, block_size: int) -> Tensor:
    """V as blocks (..., m, b, n), of nearly equal size, the last one filled up with zero rows."""
    k = unit_reflectors.shape[-2]
    m = -(-k // block_size)
    b = -(-k // m)
    if m * b != k:
        unit_reflectors = torch.nn.functional.pad(unit_reflectors, (0, 0, 0, m * b - k))
    return unit_reflectors.unflatten(-2, (m, b))


def _plus_product(base: Tensor, a: Tensor, b: Tensor, alpha: int = 1) -> Tensor:
    """base + alpha a b in one call."""
    # alpha is an int: dynamic compilation lifts a float default to an input, which fails here.
    return (torch.addmm if base.dim() == 2 else torch.baddbmm)(base, a, b, alpha=alpha)


def _add_product(base: Tensor, a: Tensor, b: Tensor, alpha: int = 1) -> Tensor:
    """base + alpha a b, in place unless derivatives are taken."""
    if is_differentiated():
        return _plus_product(base, a, b, alpha)
    return (base.addmm_ if base.dim() == 2 else base.baddbmm_)(a, b, alpha=alpha)


def _columns_from(z: Tensor, first: int) -> Tensor:
    # Not a slice from 0, which is an alias that gradients of batches (is_grads_batched) lack.
    return z[..., first:] if first else z


def _subtract_product(z: Tensor, first: int, a: Tensor, b: Tensor) -> Tensor:
    """z with a b taken from its columns ``first`` on: in place unless derivatives are taken."""
    tail = _add_product(_columns_from(z, first), a, b, alpha=-1)
    return torch.cat((z[..., :first], tail), -1) if is_differentiated() else z


class _Gradient:
    """The gradient of V as it grows, block by block: in one buffer unless derivatives are taken.

    Temporaries of the size of V cost more than the arithmetic, as each is new memory. The blocks of
    a trapezoid are held from their diagonals on. A single block needs no buffer around it.
    """

    def __init__(self, v: Tensor, like: Tensor, triangular: bool) -> None:
        m, b, n = v.shape[-3:]
        self.triangular = triangular
        self.starts = [j * b if triangular else 0 for j in range(m)]
        self.buffer: Tensor | None = None
        self.blocks: list[Tensor | None] = [None] * m
        if m > 1 and not is_differentiated():
            self.buffer = like.new_zeros(*v.shape[:-3], m * b, n)
            parts = zip(self.buffer.split(b, -2), self.starts, strict=True)
            self.blocks = [_columns_from(rows, first) for rows, first in parts]

    def add(self, j: int, a: Tensor, b: Tensor, alpha: int = 1) -> Tensor:
        """Adds alpha a b to block j, which starts at zero (with alpha = 1), and returns it."""
        block = self.blocks[j]
        self.blocks[j] = block = a @ b if block is None else _add_product(block, a, b, alpha)
        return block

    def rows(self) -> Tensor:
        """All blocks, of a trapezoid zero before the diagonal."""
        blocks = [block for block in self.blocks if block is not None]
        if self.buffer is not None:
            for block in blocks if self.triangular else ():
                block.narrow(-1, 0, min(block.shape[-2:])).triu_()
            return self.buffer
        if self.triangular:
            blocks = [block.triu() for block in blocks]
        if len(blocks) == 1:
            return blocks[0]
        pairs = zip(blocks, self.starts, strict=True)
        return torch.cat([torch.nn.functional.pad(block, (j, 0)) for block, j in pairs], -2)


class _Coefficients:
    """D = [D_g; D_y] of a block and E = [D_y; -D_g], in one buffer unless derivatives are taken."""

    def __init__(self, z: Tensor, block_size: int) -> None:
        n = self.num_vectors = z.shape[-2] // 2
        self.buffer: Tensor | None = None
        if not is_differentiated():
            self.buffer = z.new_empty(*z.shape[:-2], 3 * n, block_size)
            self.d, self.e = self.buffer[..., : 2 * n, :], self.buffer[..., n:, :]
            self.first, self.last = self.buffer[..., :n, :], self.buffer[..., 2 * n :, :]

    def of(self, c: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """D = C T, and E."""
        if self.buffer is None:
            d = c @ t
            return d, torch.cat((d[..., self.num_vectors :, :], -d[..., : self.num_vectors, :]), -2)
        (self.d.addmm_ if c.dim() == 2 else self.d.baddbmm_)(c, t, beta=0)
        self.last.copy_(self.first).neg_()
        return self.d, self.e


def apply_fwd(x: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool) -> Tensor:
    """x Qᵀ (x Q if transpose) for rows x (..., N, n)."""
    m, b = v.shape[-3:-1]
    if m == 1:
        v, t = v.squeeze(-3), t.squeeze(-3)
        return _plus_product(x, (x @ v.mT) @ (t if transpose else t.mT), v, alpha=-1)
    x = x.clone(memory_format=torch.contiguous_format)
    v_blocks, t_blocks = v.unbind(-3), t.unbind(-3)
    for j in range(m) if transpose else reversed(range(m)):
        first = j * b if triangular else 0
        v_j, t_j = _columns_from(v_blocks[j], first), t_blocks[j]
        coefficients = (_columns_from(x, first) @ v_j.mT) @ (t_j if transpose else t_j.mT)
        x = _subtract_product(x, first, coefficients, v_j)
    return x


def apply_bwd(
    y: Tensor, grad_y: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of apply_fwd for x and for the rows of V; see Note [Backward of a block]."""
    m, b = v.shape[-3:-1]
    if m == 1:
        return _single_block_bwd(y, grad_y, v.squeeze(-3), t.squeeze(-3), transpose, triangular)
    z = torch.cat((grad_y, y), -2)
    grad_v, coefficients = _Gradient(v, z, triangular), _Coefficients(z, b)
    v_blocks, t_blocks = v.unbind(-3), t.unbind(-3)
    for j in reversed(range(m)) if transpose else range(m):
        first = j * b if triangular else 0
        v_j, t_j = _columns_from(v_blocks[j], first), t_blocks[j]
        z_j = _columns_from(z, first)
        d, e = coefficients.of(z_j @ v_j.mT, t_j.mT if transpose else t_j)
        r = d.mT @ e
        grad_v.add(j, e.mT, z_j)
        grad_v.add(j, r.triu(1) if transpose else r.tril(-1), v_j)
        z = _subtract_product(z, first, d, v_j)
    return z[..., : y.shape[-2], :], grad_v.rows()


def _single_block_bwd(
    y: Tensor, grad_y: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool
) -> tuple[Tensor, Tensor]:
    """apply_bwd for one block: nothing needs x, so it is not recovered."""
    t = t.mT if transpose else t
    d_g, d_y = (grad_y @ v.mT) @ t, (y @ v.mT) @ t
    r = d_g.mT @ d_y
    r = r - r.mT
    grad = _add_product((r.triu(1) if transpose else r.tril(-1)) @ v, d_y.mT, grad_y)
    grad = _add_product(grad, d_g.mT, y, alpha=-1)
    if triangular:
        grad = grad.triu() if is_differentiated() else grad.triu_()
    return _plus_product(grad_y, d_g, v, alpha=-1), grad


def product_fwd(v: Tensor, t: Tensor, num_columns: int, triangular: bool) -> Tensor:
    """The first columns of Q, (..., n, num_columns), built in place."""
    m, b, n = v.shape[-3:]
    q = torch.eye(n, num_columns, dtype=v.dtype, device=v.device)
    q = q.expand(*v.shape[:-3], n, num_columns).contiguous()
    for j in reversed(range(m)):
        first = j * b if triangular else 0
        v_j = _columns_from(v[..., j, :, :], first)
        start = min(first, num_columns)
        part = q[..., first:, start:]
        # Before the first product this part is the identity.
        inner = v_j @ part if j < m - 1 else v_j[..., : num_columns - start]
        coefficients = t[..., j, :, :] @ inner
        (part.addmm_ if part.dim() == 2 else part.baddbmm_)(v_j.mT, coefficients, alpha=-1)
    return q


def product_bwd(q: Tensor, grad_q: Tensor, v: Tensor, t: Tensor, triangular: bool) -> Tensor:
    """Gradient of product_fwd for the rows of V; see Note [Backward of the product]."""
    m, b = v.shape[-3:-1]
    k = q @ grad_q.mT
    k = k - k.mT
    grad_v = _Gradient(v, k, triangular)
    v_blocks, t_blocks = v.unbind(-3), t.unbind(-3)
    for j in range(m):
        v_j, t_j = _columns_from(v_blocks[j], j * b if triangular else 0), t_blocks[j]
        if j and triangular:
            k = k[..., b:, b:]
        w = grad_v.add(j, t_j.mT, v_j @ k)
        e = w @ v_j.mT @ t_j
        if j + 1 < m:
            z = _plus_product(w, 0.5 * e, v_j, alpha=-1)
            k = _add_product(k, torch.cat((z, -v_j), -2).mT, torch.cat((v_j, z), -2))
        grad_v.add(j, e.tril(-1), v_j, alpha=-1)
    return grad_v.rows()
