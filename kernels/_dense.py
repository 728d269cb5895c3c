"""Products with a dense square matrix in registers; Note [Layouts] in _low_rank.py says how."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_dense(
    p_ptr,
    N,
    stride_pn,
    stride_pr,
    BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
):
    """The dense weight in the order of Note [Layouts]: (rows, columns, warp, lane, lane)."""
    IN_LANES: tl.constexpr = 32 // LANES_N
    COLUMNS: tl.constexpr = BLOCK_N // IN_LANES
    cell = tl.arange(0, BLOCK_N * BLOCK_N)
    row = (cell // 32) % WARPS * 32 + cell // (32 * WARPS * COLUMNS) * LANES_N
    row += (cell // IN_LANES) % LANES_N
    column = cell % IN_LANES * COLUMNS + cell // (32 * WARPS) % COLUMNS
    mask = (row < N) & (column < N)
    weight = tl.load(p_ptr + row * stride_pn + column * stride_pr, mask, other=0.0)
    return tl.reshape(weight, (32 // LANES_N, COLUMNS, WARPS, LANES_N, IN_LANES))


@triton.jit
def multiply_dense(h, weight, WARPS: tl.constexpr, LANES_N: tl.constexpr):
    """Every warp reads all of h and owns 32 rows of W: (rows, columns, warp, lane, lane)."""
    IN_LANES: tl.constexpr = 32 // LANES_N
    BLOCK_N: tl.constexpr = 32 * WARPS
    BLOCK_B: tl.constexpr = h.shape[0] // BLOCK_N
    columns = tl.permute(tl.reshape(h, (BLOCK_B, IN_LANES, BLOCK_N // IN_LANES)), (0, 2, 1))
    z = tl.sum(columns[:, None, :, None, None, :] * weight[None], axis=2)
    z = tl.permute(tl.sum(z, axis=4), (0, 2, 1, 3))  # (BLOCK_B, warp, rows, lane)
    return tl.reshape(z, (BLOCK_B * BLOCK_N,))
