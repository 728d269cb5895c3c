r"""The blocked algebra of Householder products in plain PyTorch: every step is a matrix product.

Note [Compact WY blocks]
    b unit reflectors as rows of V (b, n) multiply to Q = I - Vᵀ T V with T = S⁻¹ upper triangular,
    S = striu(V Vᵀ) + I/2 (Schreiber and Van Loan, 1989). k reflectors are ⌈k/b⌉ such blocks,
    Q = Q₁ Q₂ ⋯; all S and T come from two batched calls. A zero row leaves S diagonal there and
    contributes nothing to Vᵀ T V, so it is the identity, with zero gradient.

Note [Backward of a block]
    Vectors are rows. For y = x Qᵀ with output gradient g, both inputs are recovered from the
    outputs, since Q is orthogonal: with Z = [g; y] and D = Z Vᵀ T,

        [∂L/∂x; x] = Z - D V,    ∂L/∂V = D_yᵀ g - D_gᵀ y + stril(R - Rᵀ) V,    R = D_gᵀ D_y,

    so nothing but y is stored. For the transposed product T becomes Tᵀ and stril striu. Rows of V
    have length one here; the gradient is that of H(v) = I - 2vvᵀ/vᵀv, which is orthogonal to v, so
    dividing by the original length is all that is left.

Note [Backward of the product]
    The formula above sees g and y only through the antisymmetric K = gᵀy - yᵀg:

        ∂L/∂V = -W + stril(E) V,    W = Tᵀ V K,    E = W Vᵀ T,    K ← Qⱼᵀ K Qⱼ = K - VᵀZ + ZᵀV,

    Z = W - E V / 2. One n x n matrix product forms K from the whole gradient, then each block costs
    6 n² b; with triangular reflectors only a trailing part of K is needed after each block.

All functions take matching leading batch dimensions (none or one). All but product_fwd are
differentiable, in forward mode too, which is how second derivatives are had.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_triton.forward_mode import is_differentiated

# Of 16 to 96, the fastest forward and backward together: one block up to 64 reflectors, of 32
# beyond that, for n = 64 to 1024 on one and two CPU threads.
BLOCK_SIZE, SINGLE_BLOCK = 32, 64


def unit_rows(reflectors: Tensor, triangular: bool = False) -> tuple[Tensor, Tensor]:
    """Rows scaled to length one, zero rows kept, and the lengths (1 for zero rows)."""
    rows = reflectors.triu() if triangular else reflectors
    # Dividing by the largest entry first keeps the squares of 1e-30 or 1e30 in range.
    with torch.no_grad():
        largest = torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True))
        largest = largest.masked_fill(largest == 0, 1).detach()
    if is_differentiated():
        scaled = rows / largest
        length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
        length = torch.where(length == 0, 1, length)
        return scaled / length, length * largest
    scaled = rows.div_(largest) if triangular else rows / largest
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    length.masked_fill_(length == 0, 1)
    return scaled.div_(length), length * largest


def t_factor(v: Tensor) -> Tensor:
    """T (..., b, b) of unit rows V (..., b, n)."""
    gram = v @ v.mT
    twice = 2 * torch.eye(v.shape[-2], dtype=v.dtype, device=v.device)
    # S T = I doubled: the solver takes ones on the diagonal and does not read below it.
    return torch.linalg.solve_triangular(
        2 * gram, twice.expand_as(gram), upper=True, unitriangular=True
    )


def block_size(num_reflectors: int) -> int:
    """Reflectors per block on the CPU."""
    return SINGLE_BLOCK if num_reflectors <= SINGLE_BLOCK else BLOCK_SIZE


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

    Temporaries of the size of V cost more than the arithmetic, as each is new memory.
    """

    def __init__(self, v: Tensor, like: Tensor) -> None:
        m, b, n = v.shape[-3:]
        self.size = b
        self.blocks: list[Tensor] | None = [None] * m if is_differentiated() else None
        if self.blocks is None:
            self.buffer = like.new_zeros(*v.shape[:-3], m * b, n)

    def put(self, j: int, first: int, grad: Tensor) -> None:
        """Sets block j from column ``first`` on, the columns before it to zero."""
        if self.blocks is None:
            rows = self.buffer.narrow(-2, j * self.size, self.size)
            _columns_from(rows, first).copy_(grad)
        else:
            self.blocks[j] = torch.nn.functional.pad(grad, (first, 0)) if first else grad

    def rows(self) -> Tensor:
        return self.buffer if self.blocks is None else torch.cat(self.blocks, -2)


def apply_fwd(x: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool) -> Tensor:
    """x Qᵀ (x Q if transpose) for rows x (..., N, n)."""
    m, b = v.shape[-3:-1]
    x = x.clone(memory_format=torch.contiguous_format)
    for j in range(m) if transpose else reversed(range(m)):
        first = j * b if triangular else 0
        v_j, t_j = _columns_from(v[..., j, :, :], first), t[..., j, :, :]
        coefficients = (_columns_from(x, first) @ v_j.mT) @ (t_j if transpose else t_j.mT)
        x = _subtract_product(x, first, coefficients, v_j)
    return x


def apply_bwd(
    y: Tensor, grad_y: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of apply_fwd for x and for the unit rows; see Note [Backward of a block]."""
    m, b = v.shape[-3:-1]
    if m == 1:
        return _single_block_bwd(y, grad_y, v.squeeze(-3), t.squeeze(-3), transpose)
    num_vectors = y.shape[-2]
    z = torch.cat((grad_y, y), -2)
    grad_v = _Gradient(v, z)
    for j in reversed(range(m)) if transpose else range(m):
        first = j * b if triangular else 0
        v_j, t_j = _columns_from(v[..., j, :, :], first), t[..., j, :, :]
        z_j = _columns_from(z, first)
        d = (z_j @ v_j.mT) @ (t_j.mT if transpose else t_j)
        d_g, d_y = d[..., :num_vectors, :], d[..., num_vectors:, :]
        grad = _mixed(d_g, d_y, transpose) @ v_j
        grad_v.put(j, first, _plus_product(grad, torch.cat((d_y, -d_g), -2).mT, z_j))
        z = _subtract_product(z, first, d, v_j)
    return z[..., :num_vectors, :], grad_v.rows()


def _mixed(d_g: Tensor, d_y: Tensor, transpose: bool) -> Tensor:
    """stril(R - Rᵀ), or striu, of R = D_gᵀ D_y."""
    r = d_g.mT @ d_y
    return (r - r.mT).triu(1) if transpose else (r - r.mT).tril(-1)


def _single_block_bwd(
    y: Tensor, grad_y: Tensor, v: Tensor, t: Tensor, transpose: bool
) -> tuple[Tensor, Tensor]:
    """apply_bwd for one block: nothing needs x, so it is not recovered."""
    t = t.mT if transpose else t
    d_g, d_y = (grad_y @ v.mT) @ t, (y @ v.mT) @ t
    grad = _plus_product(_mixed(d_g, d_y, transpose) @ v, d_y.mT, grad_y)
    grad = _plus_product(grad, d_g.mT, y, alpha=-1)
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
    """Gradient of product_fwd for the unit rows; see Note [Backward of the product]."""
    m, b = v.shape[-3:-1]
    k = grad_q @ q.mT
    k = k - k.mT
    grad_v = _Gradient(v, k)
    for j in range(m):
        first = j * b if triangular else 0
        v_j, t_j = _columns_from(v[..., j, :, :], first), t[..., j, :, :]
        if j and triangular:
            k = k[..., b:, b:]
        w = t_j.mT @ (v_j @ k)
        e = w @ v_j.mT @ t_j
        grad_v.put(j, first, e.tril(-1) @ v_j - w)
        if j + 1 < m:
            z = w - 0.5 * (e @ v_j)
            k = _add_product(k, torch.cat((z, -v_j), -2).mT, torch.cat((v_j, z), -2))
    return grad_v.rows()
