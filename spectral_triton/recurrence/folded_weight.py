r"""A square weight in SVD form as diag(σ) - P Qᵀ, for whatever multiplies by it many times.

Note [Folding]
    Of k reflectors of length √2 as rows R the product is Q = I - Rᵀ S⁻¹ R with S the unit upper
    triangle of R Rᵀ, or Q = I - Xᵀ R for Sᵀ X = R. So with U, V for the rows of both sides

        W = (I - X_Uᵀ U) diag(σ) (I - Vᵀ X_V) = diag(σ) - P Qᵀ,
        Q = [σ∘Uᵀ | X_Vᵀ],    P = [X_Uᵀ | (I - X_Uᵀ U) (σ∘Vᵀ)].

    Both sides are stacked, the shorter one filled up with zero rows, so one triangular solve gives
    both X. Its gradient, with D for Sᵀ's triangle of S⁻¹ (∂L/∂X) Xᵀ below the diagonal, is
    S⁻¹ (∂L/∂X) - (D + Dᵀ) R.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spectral_triton.householder.compact_wy import add_product, unit_rows
from spectral_triton.householder.direct_function import DirectFunction
from spectral_triton.runtime.cached import formed_once
from spectral_triton.runtime.forward_mode import functions_serve, is_differentiated
from spectral_triton.runtime.validation import without_autocast
from spectral_triton.svd.cached_svd import CachedSVD
from spectral_triton.svd.evaluated_svd import EvaluatedSVD
from spectral_triton.svd.operator import HouseholderSVD


def folds(n: int, num_reflectors: int) -> bool:
    """Whether a step multiplies by diag(σ) - P Qᵀ rather than by W, r reflectors on both sides.

    Folded, a step costs 2 n r multiply-adds and three elementwise passes, dense n². The passes
    count as 64 columns: measured forward and backward on two CPU cores for n = 64 to 1024.
    """
    return 2 * num_reflectors + 64 < n


def fold(factors: HouseholderSVD) -> tuple[Tensor, Tensor, Tensor]:
    """σ (n,), P and Q (n, r) with W = diag(σ) - P Qᵀ, for r = k_u + k_v reflectors.

    Two thin products for each step, where applying the two factors in turn takes four.
    """
    if isinstance(factors, EvaluatedSVD):
        folded = factors.keep("folded", lambda: _fold_factors(factors))
        assert folded is not None
        return folded
    tensors: tuple[Tensor | None, ...]
    if isinstance(factors, CachedSVD):
        tensors = factors.sources
    else:
        tensors = factors.left, factors.singular_values, factors.right, factors.signs
    return formed_once(factors, "folded", tensors, lambda: _fold_factors(factors))


def _fold_factors(factors: HouseholderSVD) -> tuple[Tensor, Tensor, Tensor]:
    sigma = factors.singular_values
    sigma = sigma if factors.signs is None else sigma * factors.signs
    left, right, triangular = factors.left, factors.right, factors.triangular
    # torch.compile refuses a Function that is given one tensor twice.
    twice = left is right and torch.compiler.is_compiling()
    make = Fold.apply if functions_serve() and not twice else _fold
    p, q, *_ = make(left, sigma, right, triangular)
    return sigma, p, q


def _fold(left: Tensor, sigma: Tensor, right: Tensor, triangular: bool) -> tuple[Tensor, ...]:
    """P, Q and what the backward needs, in operations with derivatives of every kind."""
    dtype, k_u, k_v = left.dtype, left.shape[-2], right.shape[-2]
    # An error of the folded weight repeats at each step: float32 lengths alone let the norm of an
    # orthogonal recurrence drift by 1e-4 in 10⁴ steps, float64 ones by about 1e-5.
    wide = dtype if left.device.type == "mps" else torch.float64
    both = torch.stack(_same_size(left, right)).to(wide)
    unit, scale = unit_rows(both, triangular, in_range=dtype is not wide)
    rows = unit * math.sqrt(2)
    gram = rows @ rows.mT
    # From the right: the solver then reads and writes rows as they lie in memory.
    x = torch.linalg.solve_triangular(gram, rows.mT, upper=True, left=False, unitriangular=True).mT
    scaled = rows * sigma.to(wide)
    inner = scaled[1] @ rows[0].mT
    last = scaled[1] - inner @ x[0]
    p = torch.cat((x[0, :k_u].mT, last[:k_v].mT), -1)
    q = torch.cat((scaled[0, :k_u].mT, x[1, :k_v].mT), -1)
    # Where it changes nothing, torch.compile of PyTorch 2.11 loses the gradient of what it returns.
    if dtype is not wide:
        p, q = p.to(dtype), q.to(dtype)
    return p, q, rows, scale, gram, x, scaled, inner


def _same_size(first: Tensor, second: Tensor) -> list[Tensor]:
    """Two matrices with as many rows as the larger has."""
    size = max(first.shape[-2], second.shape[-2])
    missing = [size - side.shape[-2] for side in (first, second)]
    sides = zip((first, second), missing, strict=True)
    return [torch.nn.functional.pad(a, (0, 0, 0, rows)) if rows else a for a, rows in sides]


class Fold(DirectFunction):
    """What ``_fold`` returns, differentiable by P and Q.

    One Function: autograd's way back through a fold takes more than twice as many calls.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, sigma: Tensor, right: Tensor, triangular: bool) -> tuple[Tensor, ...]:
        return _fold(left, sigma, right, triangular)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *factors, ctx.triangular = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*factors, *output[2:])

    @staticmethod
    def backward(ctx: Any, grad_p: Tensor | None, grad_q: Tensor | None, *_: None) -> Any:
        left, sigma, right, *kept = ctx.saved_tensors
        if grad_p is None and grad_q is None:
            return None, None, None, None
        shape = left.shape[-1], left.shape[-2] + right.shape[-2]
        grad_p = left.new_zeros(shape) if grad_p is None else grad_p
        grad_q = left.new_zeros(shape) if grad_q is None else grad_q
        with without_autocast(left.device.type):
            if is_differentiated():
                kept = _fold(left, sigma, right, ctx.triangular)[2:]
            k_u, k_v, dtype = left.shape[-2], right.shape[-2], left.dtype
            grads = _gradients(grad_p, grad_q, k_u, ctx.triangular, sigma, *kept)
            rows, grad_sigma = (grad.to(dtype) for grad in grads)
            return rows[0, :k_u], grad_sigma, rows[1, :k_v], None


def _gradients(
    grad_p: Tensor,
    grad_q: Tensor,
    k_u: int,
    triangular: bool,
    sigma: Tensor,
    rows: Tensor,
    scale: Tensor,
    gram: Tensor,
    x: Tensor,
    scaled: Tensor,
    inner: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients for the stacked rows as they were given and for σ."""
    p_rows, q_rows = (grad.mT.split((k_u, grad.shape[-1] - k_u)) for grad in (grad_p, grad_q))
    grad_x = torch.stack(_same_size(p_rows[0], q_rows[1])).to(rows.dtype)
    grad = torch.stack(_same_size(q_rows[0], p_rows[1])).to(rows.dtype)  # That of ``scaled``.
    minus_grad_inner = grad[1] @ x[0].mT
    grad_x = _minus_product(grad_x, 0, inner.mT, grad[1])
    grad = _minus_product(grad, 1, minus_grad_inner, rows[0])
    grad_sigma = (grad * rows).sum((0, 1))
    grad = _minus_product(grad * sigma, 0, minus_grad_inner.mT, scaled[1])
    # S Z = ∂L/∂X, solved as Zᵀ Sᵀ = (∂L/∂X)ᵀ.
    z = torch.linalg.solve_triangular(
        gram, grad_x.mT, upper=False, left=False, unitriangular=True
    ).mT
    below = (z @ x.mT).tril(-1)
    grad = grad + z - (below + below.mT) @ rows
    # What would change the length of a row is gone: of length √2 it has twice its unit's square.
    along = (grad * rows).sum(-1, keepdim=True)
    # The largest scale there is has no room for a factor.
    grad = (grad - rows * (along * 0.5)) * scale * math.sqrt(2)
    return grad.triu() if triangular else grad, grad_sigma


def _minus_product(pair: Tensor, index: int, a: Tensor, b: Tensor) -> Tensor:
    """The pair with a b taken from one of both, in its memory where nobody differentiates that."""
    if is_differentiated():
        parts = list(pair.unbind())
        parts[index] = parts[index] - a @ b
        return torch.stack(parts)
    add_product(pair[index], a, b, alpha=-1)
    return pair
