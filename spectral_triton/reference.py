r"""Every operation again in a few plain torch lines: the definition, and the oracle of the tests.

Nothing here is fast and nothing here is imported by the rest of the library's fast paths. All
functions are differentiable by autograd, any number of times, and work in any floating dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def reflector(v: Tensor) -> Tensor:
    r"""H(v) = I - 2 v vᵀ / vᵀv for v of shape (..., n); the identity where v is zero."""
    is_zero = (v == 0).all(-1, keepdim=True)
    v = v.masked_fill(is_zero, 0)  # Without a derivative of any order.
    scaled = v / v.detach().abs().amax(-1, keepdim=True).masked_fill(is_zero, 1)
    squared = (scaled * scaled).sum(-1, keepdim=True).masked_fill(is_zero, 1)
    outer = scaled.unsqueeze(-1) * (scaled / squared).unsqueeze(-2)
    return torch.eye(v.shape[-1], dtype=v.dtype, device=v.device) - 2 * outer


def householder_product(reflectors: Tensor, num_columns: int | None = None) -> Tensor:
    r"""Q = H(v₁) ⋯ H(v_k), or its first columns; reflectors (..., k, n) -> (..., n, n)."""
    n = reflectors.shape[-1]
    q = torch.eye(n, dtype=reflectors.dtype, device=reflectors.device)
    q = q.expand(*reflectors.shape[:-2], n, n)
    for v in reflectors.unbind(-2):
        q = q @ reflector(v)
    return q[..., :num_columns]


def apply_reflectors(x: Tensor, reflectors: Tensor, *, transpose: bool = False) -> Tensor:
    r"""y = Q x (Qᵀ x) for every vector along the last dimension: as torch.matmul(x, Q.mT)."""
    q = householder_product(reflectors)
    return torch.matmul(x, q if transpose else q.mT)


def svd_to_dense(
    left: Tensor, singular_values: Tensor, right: Tensor, signs: Tensor | None = None
) -> Tensor:
    r"""W = U diag(signs ∘ σ) Vᵀ, (..., m, n), from left (..., k, m) and right (..., k, n)."""
    p = min(left.shape[-1], right.shape[-1])
    sigma = singular_values if signs is None else singular_values * signs
    u, v = householder_product(left, p), householder_product(right, p)
    return (u * sigma.unsqueeze(-2)) @ v.mT


def activation(z: Tensor, nonlinearity: str, slope: float, bias: Tensor | None = None) -> Tensor:
    r"""φ(z); ``slope`` belongs to leaky_relu, ``bias`` to modrelu: sign(z) max(|z| + bias, 0)."""
    if nonlinearity == "tanh":
        return z.tanh()
    if nonlinearity == "relu":
        return z.relu()
    if nonlinearity == "leaky_relu":
        return torch.nn.functional.leaky_relu(z, slope)
    if nonlinearity == "modrelu":
        return z.sign() * (z.abs() + bias).relu()
    assert nonlinearity == "identity", nonlinearity
    return z


def recurrence(
    x: Tensor,
    h0: Tensor,
    weight: Tensor,
    *,
    nonlinearity: str = "tanh",
    slope: float = 0.01,
    bias: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    r"""h_t = φ(W h_{t-1} + x_t) for all steps: x (T, B, n), h0 (B, n), W (n, n) -> (T, B, n)."""
    h, outputs = h0, []
    for x_t in reversed(x.unbind(0)) if reverse else x.unbind(0):
        h = activation(h @ weight.mT + x_t, nonlinearity, slope, bias)
        outputs.append(h)
    return torch.stack(outputs[::-1] if reverse else outputs) if outputs else torch.zeros_like(x)


def packed_recurrence(
    x: Tensor, h0: Tensor, batch_sizes: Sequence[int], weight: Tensor, **options: Any
) -> Tensor:
    r"""The same for the rows of a PackedSequence, longest sequence first: x (Σ batch_sizes, n)."""
    starts = [sum(batch_sizes[:t]) for t in range(len(batch_sizes))]
    y = torch.zeros_like(x)
    for b in range(h0.shape[0]):
        rows = [start + b for start, size in zip(starts, batch_sizes, strict=True) if b < size]
        own = recurrence(x[rows].unsqueeze(1), h0[b : b + 1], weight, **options)
        y = y.index_copy(0, torch.tensor(rows, device=x.device), own.squeeze(1))
    return y
