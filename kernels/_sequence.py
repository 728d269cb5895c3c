"""Where the rows of a step are, for padded and for packed sequences."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def step_rows(offsets_ptr, step, last, B, PACKED: tl.constexpr):
    """First row and number of rows of a step; steps out of range repeat the nearest one."""
    step = tl.minimum(tl.maximum(step, 0), last)
    if PACKED:
        start = tl.load(offsets_ptr + step).to(tl.int64)
        size = (tl.load(offsets_ptr + step + 1).to(tl.int64) - start).to(tl.int32)
    else:
        start = step.to(tl.int64) * B
        size = B
    return start, size


@triton.jit
def rows_or_none(offsets_ptr, step, T, B, PACKED: tl.constexpr):
    """As ``step_rows``; steps out of range have no rows."""
    start, size = step_rows(offsets_ptr, step, T - 1, B, PACKED)
    return start, tl.where((step >= 0) & (step < T), size, 0)


@triton.jit
def count_steps(offsets_ptr, T, sequence, PACKED: tl.constexpr):
    """Steps of one sequence: those with more rows than its index."""
    steps = T
    if PACKED:
        steps = T * 0
        for start in range(0, T, 128):
            t = start + tl.arange(0, 128)
            low = tl.load(offsets_ptr + t, t < T, other=0)
            high = tl.load(offsets_ptr + t + 1, t < T, other=0)
            steps += tl.sum(((high - low) > sequence).to(tl.int32), axis=0)
    return steps
