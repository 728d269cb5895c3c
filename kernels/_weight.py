"""The weight of a recurrence in the registers of one program, folded or dense."""

from __future__ import annotations

import triton
import triton.language as tl
from spectral_triton.kernels._dense import load_dense, multiply_dense
from spectral_triton.kernels._low_rank import load_factor, sum_over_features, sum_over_ranks


@triton.jit
def load_weight(
    scale_ptr,
    p_ptr,
    q_ptr,
    column,
    inside,
    N,
    R,
    stride_pn,
    stride_pr,
    DENSE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
):
    """Scale, P and Q; dense, P is W."""
    if DENSE:
        p = load_dense(p_ptr, N, stride_pn, stride_pr, BLOCK_N, WARPS, LANES_N)
        return 0.0, p, 0.0
    else:
        scale = tl.load(scale_ptr + column, inside, other=0.0)
        p = load_factor(p_ptr, N, R, stride_pn, stride_pr, BLOCK_N, BLOCK_R, WARPS, LANES_N)
        q = load_factor(q_ptr, N, R, stride_pn, stride_pr, BLOCK_N, BLOCK_R, WARPS, LANES_N)
        return scale, p, q


@triton.jit
def add_product(z, h, scale, p, q, DENSE: tl.constexpr, WARPS: tl.constexpr, LANES_N: tl.constexpr):
    """z + W h for flat states h (BLOCK_B BLOCK_N); see Note [Layouts]."""
    if DENSE:
        return z + multiply_dense(h, p, WARPS, LANES_N)
    else:
        inner = sum_over_features(h, q, WARPS, LANES_N)
        return z + scale * h - sum_over_ranks(inner, p, WARPS, LANES_N)
