"""Products with some rows of a dense matrix in registers; Note [Layouts] in _low_rank.py says how.

A warp owns a run of columns, so that a program reads each state once, and all of the program's
rows; a thread a patch of both. Its sums over the patch are shares of one output each, and all
shares of an output meet in one exchange through shared memory. With fewer outputs than threads,
COPIES neighboring threads share one.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(
    weight_ptr,
    first_row,
    N,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
):
    """ROWS rows in the order of Note [Layouts]: (rows, columns, warp, lane, lane)."""
    IN_LANES: tl.constexpr = 32 // LANES_N
    COLUMNS: tl.constexpr = BLOCK_N // (WARPS * IN_LANES)
    cell = tl.arange(0, ROWS * BLOCK_N)
    row = first_row + cell // (32 * WARPS * COLUMNS) * LANES_N + (cell // IN_LANES) % LANES_N
    column = (cell // 32) % WARPS * (COLUMNS * IN_LANES)
    column += cell // (32 * WARPS) % COLUMNS * IN_LANES + cell % IN_LANES
    mask = (row < N) & (column < N)
    weight = tl.load(weight_ptr + row * N + column, mask, other=0.0)
    return tl.reshape(weight, (ROWS // LANES_N, COLUMNS, WARPS, LANES_N, IN_LANES))


@triton.jit
def load_states(
    state_ptr,
    size,
    start_ptr,
    limit,
    first,
    N,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
):
    """States of the sequences from ``first`` on, as ``multiply_rows`` takes them, from L2.

    Those below ``size`` lie at ``state_ptr``, those from there to ``limit`` at ``start_ptr``.
    """
    IN_LANES: tl.constexpr = 32 // LANES_N
    COLUMNS: tl.constexpr = BLOCK_N // (WARPS * IN_LANES)
    cell = tl.arange(0, LANES_N * BLOCK_N)
    column = (cell // 32) % WARPS * (COLUMNS * IN_LANES)
    column += cell // (32 * WARPS) * IN_LANES + cell % IN_LANES
    sequence = first + tl.arange(0, BLOCK_B)
    origin = tl.where(sequence < size, state_ptr, start_ptr) + sequence.to(tl.int64) * N
    mask = (sequence < limit)[:, None] & (column < N)[None]
    h = tl.load(origin[:, None] + column[None], mask, other=0.0, cache_modifier=".cg")
    return tl.reshape(h, (BLOCK_B, COLUMNS, WARPS, LANES_N, IN_LANES))


@triton.jit
def output_cells(BLOCK_B: tl.constexpr, ROWS: tl.constexpr, WARPS: tl.constexpr):
    """Sequence and row, from 0, of each output of ``multiply_rows``, and which copies store."""
    COPIES: tl.constexpr = max(1, 32 * WARPS // (BLOCK_B * ROWS))
    cell = tl.arange(0, BLOCK_B * ROWS * COPIES)
    return cell // (ROWS * COPIES), cell // COPIES % ROWS, cell % COPIES == 0


@triton.jit
def multiply_rows(h, weight):
    """Rows of W h, flat in the order of ``output_cells``."""
    WARPS: tl.constexpr = weight.shape[2]
    SHARES: tl.constexpr = WARPS * weight.shape[4]
    OUTPUTS: tl.constexpr = h.shape[0] * weight.shape[0] * weight.shape[3]
    COPIES: tl.constexpr = max(1, 32 * WARPS // OUTPUTS)
    shares = tl.sum(h[:, None] * weight[None], axis=2)
    shares = tl.permute(shares, (2, 4, 0, 1, 3))  # (warp, lane, sequence, rows, lane)
    shares = tl.reshape(shares, (SHARES // COPIES, COPIES, OUTPUTS))
    shares = tl.reshape(tl.permute(shares, (0, 2, 1)), (SHARES // COPIES, OUTPUTS * COPIES))
    z = tl.sum(tl.reshape(tl.sum(shares, axis=0), (OUTPUTS, COPIES)), axis=1)
    return tl.reshape(tl.broadcast_to(z[:, None], (OUTPUTS, COPIES)), (OUTPUTS * COPIES,))
