"""The triangular factor T of the compact WY form, for all blocks of reflectors in one launch.

With S = striu(V Vᵀ) + ½ I for the unit rows V of a block, T = S⁻¹, by substitution in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from spectral_triton.kernels._launch import (
    architecture,
    launch_options,
    on_device,
    require_contiguous,
)
from spectral_triton.kernels._low_rank import load_factor, sum_over_features
from spectral_triton.kernels.configuration import t_factor_config
from torch import Tensor


@triton.jit(do_not_specialize=("K", "N", "num_blocks", "block_size", "stride_n"))
def t_factor_fwd_kernel(
    v_ptr,
    t_ptr,
    K,
    N,
    num_blocks,
    block_size,
    stride_n,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
    TILED: tl.constexpr,
):
    """One program owns one block of reflectors; T S = I gives one column of T after another."""
    COPIES: tl.constexpr = 32 // BLOCK_K
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    matrix, block = pid // num_blocks, pid % num_blocks
    first = block * block_size
    size = tl.minimum(K - first, block_size)
    v_ptr += (matrix * K + first) * N
    feature = tl.arange(0, BLOCK_N)
    lane = tl.arange(0, WARPS * 32)
    own = tl.reshape(lane % BLOCK_K, (1, WARPS, COPIES, BLOCK_K))
    column = tl.reshape(tl.arange(0, BLOCK_K), (BLOCK_K, 1, 1, 1))

    t = tl.zeros((BLOCK_K, WARPS, COPIES, BLOCK_K), dtype=dtype)  # columns, then rows on lanes
    v = load_factor(v_ptr, N, size, 1, N, BLOCK_N, BLOCK_K, WARPS, LANES_N)
    row = tl.load(v_ptr + feature * stride_n, feature < N, other=0.0)
    for j in range(0, size):
        row_ptr = v_ptr + j * N
        next_ptr = v_ptr + tl.minimum(j + 1, size - 1) * N
        next_row = tl.load(next_ptr + feature * stride_n, feature < N, other=0.0)
        gram = sum_over_features(row, v, WARPS, LANES_N)
        row = next_row
        if TILED:
            for start in range(BLOCK_N, N, BLOCK_N):
                inside = start + feature < N
                rest = tl.load(row_ptr + (start + feature) * stride_n, inside, other=0.0)
                tile = load_factor(
                    v_ptr + start, N - start, size, 1, N, BLOCK_N, BLOCK_K, WARPS, LANES_N
                )
                gram += sum_over_features(rest, tile, WARPS, LANES_N)
        # S[l, j] for l < j is gram[l]; the diagonal of S is 1/2, or 1 for a zero row.
        above = tl.where(own < j, gram, 0.0)
        solved = tl.sum(tl.permute(above, (3, 1, 2, 0)) * t, axis=0)[None]
        new = tl.where(own == j, tl.where(gram > 0, 2.0, 1.0).to(dtype), -2.0 * solved)
        t = tl.where(column == j, new, t)

    target = tl.arange(0, BLOCK_K * WARPS * 32) % BLOCK_K
    source = tl.arange(0, BLOCK_K * WARPS * 32) // (WARPS * 32)
    is_first = tl.arange(0, BLOCK_K * WARPS * 32) % (WARPS * 32) < BLOCK_K
    t_ptr += pid * block_size * block_size
    stored = is_first & (target < block_size) & (source < block_size)
    t = tl.reshape(t, (BLOCK_K * WARPS * 32,))
    t = tl.where((source >= size) & (target == source), 1.0, t)
    tl.store(t_ptr + target * block_size + source * stride_n, t, stored)


def t_factor_fwd(unit_reflectors: Tensor, block_size: int) -> Tensor:
    """T of every block in one launch: (M, k, n) -> (M, ceil(k / b), b, b).

    Rows have length one, or are zero and stand for the identity. float32 or float64.
    """
    require_contiguous(unit_reflectors=unit_reflectors)
    m, k, n = unit_reflectors.shape
    num_blocks = triton.cdiv(k, block_size)
    t_factors = unit_reflectors.new_empty(m, num_blocks, block_size, block_size)
    if t_factors.numel():
        config = t_factor_config(n, block_size, unit_reflectors.dtype)
        with on_device(unit_reflectors):
            t_factor_fwd_kernel[(m * num_blocks,)](
                *(unit_reflectors, t_factors, k, n, num_blocks, block_size, 1),
                BLOCK_K=config.block_k,
                BLOCK_N=config.block_n,
                WARPS=config.num_warps,
                LANES_N=config.lanes_n,
                TILED=config.block_n < n,
                **launch_options(config.num_warps, architecture(unit_reflectors.device)),
            )
    return t_factors
