r"""h_t = φ(W h_{t-1} + x_t) with the rows of a dense W spread over the programs of a grid.

For W that exceeds the registers of one SM. A program keeps its rows in registers through all steps
and computes them for every sequence of its share, BLOCK_B at a time; the programs that share
sequences exchange states through L2 and wait for each other after each step. Either one cooperative
launch runs all steps, with a barrier in memory, or there is one launch for each step.

The gradient with respect to z_t = W h_{t-1} + x_t follows the same recurrence backwards with Wᵀ;
gradients of the weights are GEMMs over all steps and belong to the caller.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from spectral_triton.kernels._activation import activate, activate_bwd
from spectral_triton.kernels._dense_rows import load_rows, load_states, multiply_rows, output_cells
from spectral_triton.kernels._grid_barrier import COUNTER_STRIDE, arrive, wait_for
from spectral_triton.kernels._launch import (
    cooperates,
    num_processors,
    num_steps,
    on_device,
    recurrence_options,
    require_contiguous,
)
from spectral_triton.kernels._sequence import rows_or_none
from spectral_triton.kernels.configuration import grid_config
from torch import Tensor

# Also keeps Triton from vectorizing, which would change the layouts the kernels count on.
_RUNTIME_SIZES = ("begin", "end", "T", "B", "N")


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def grid_fwd_kernel(
    x_ptr,
    h0_ptr,
    weight_ptr,
    bias_ptr,
    offsets_ptr,
    y_ptr,
    counters_ptr,
    begin,
    end,
    T,
    B,
    N,
    NONLINEARITY: tl.constexpr,
    SLOPE: tl.constexpr,
    PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
    BARRIER: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
):
    """ROWS features of every tile of BLOCK_B sequences that falls to it, steps begin to end."""
    counter_ptr = counters_ptr + tl.program_id(1) * COUNTER_STRIDE
    first, stride = tl.program_id(1) * BLOCK_B, tl.num_programs(1) * BLOCK_B
    first_row = tl.program_id(0) * ROWS
    weight = load_rows(weight_ptr, first_row, N, ROWS, BLOCK_N, WARPS, LANES_N)
    sequence, row, stores = output_cells(BLOCK_B, ROWS, WARPS)
    row += first_row
    bias = 0.0
    if NONLINEARITY == "modrelu":
        bias = tl.load(bias_ptr + row, row < N, other=0.0)

    direction = -1 if REVERSE else 1
    t = T - 1 - begin if REVERSE else begin
    start_before, size_before = rows_or_none(offsets_ptr, t - direction, T, B, PACKED)
    start, size = rows_or_none(offsets_ptr, t, T, B, PACKED)
    for step in range(begin, end):
        t += direction
        start_next, size_next = rows_or_none(offsets_ptr, t, T, B, PACKED)
        # Fetched before the wait, for it depends on no other program.
        cells = (start + first + sequence) * N + row
        x = tl.load(x_ptr + cells, (first + sequence < size) & (row < N), other=0.0)
        if BARRIER:
            wait_for(counter_ptr, (step - begin) * tl.num_programs(0))
        before_ptr = y_ptr + start_before * N
        h = load_states(
            before_ptr, size_before, h0_ptr, size, first, N, BLOCK_B, BLOCK_N, WARPS, LANES_N
        )
        for b in range(first, size, stride):
            mask = (b + sequence < size) & (row < N) & stores
            following = b + stride
            h_next = load_states(
                *(before_ptr, size_before, h0_ptr, size, following, N),
                *(BLOCK_B, BLOCK_N, WARPS, LANES_N),
            )
            cells_next = (start + following + sequence) * N + row
            inside = (following + sequence < size) & (row < N)
            x_next = tl.load(x_ptr + cells_next, inside, other=0.0)
            y = activate(x + multiply_rows(h, weight), bias, NONLINEARITY, SLOPE)
            tl.store(y_ptr + cells, y, mask)
            h, x, cells = h_next, x_next, cells_next
        if BARRIER:
            arrive(counter_ptr)
        start_before, size_before, start, size = start, size, start_next, size_next


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def grid_bwd_kernel(
    grad_y_ptr,
    y_ptr,
    weight_ptr,
    offsets_ptr,
    grad_z_ptr,
    grad_h0_ptr,
    counters_ptr,
    begin,
    end,
    T,
    B,
    N,
    NONLINEARITY: tl.constexpr,
    SLOPE: tl.constexpr,
    PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
    BARRIER: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
):
    """As the forward kernel, for Wᵀ and T + 1 steps: the last one has rows of h0 alone.

    A sequence that ends with a step, seen backwards in time, hands its gradient on to h0.
    """
    counter_ptr = counters_ptr + tl.program_id(1) * COUNTER_STRIDE
    first, stride = tl.program_id(1) * BLOCK_B, tl.num_programs(1) * BLOCK_B
    first_row = tl.program_id(0) * ROWS
    weight = load_rows(weight_ptr, first_row, N, ROWS, BLOCK_N, WARPS, LANES_N)
    sequence, row, stores = output_cells(BLOCK_B, ROWS, WARPS)
    row += first_row

    direction = 1 if REVERSE else -1
    t = begin if REVERSE else T - 1 - begin
    start_before, size_before = rows_or_none(offsets_ptr, t - direction, T, B, PACKED)
    start, size = rows_or_none(offsets_ptr, t, T, B, PACKED)
    for step in range(begin, end):
        t += direction
        start_next, size_next = rows_or_none(offsets_ptr, t, T, B, PACKED)
        # Fetched before the wait, for they depend on no other program.
        cells = (start + first + sequence) * N + row
        inside = (first + sequence < size) & (row < N)
        dy = tl.load(grad_y_ptr + cells, inside, other=0.0)
        y = tl.load(y_ptr + cells, inside, other=0.0)
        if BARRIER:
            wait_for(counter_ptr, (step - begin) * tl.num_programs(0))
        before_ptr = grad_z_ptr + start_before * N
        dz = load_states(
            *(before_ptr, size_before, before_ptr, size_before, first, N),
            *(BLOCK_B, BLOCK_N, WARPS, LANES_N),
        )
        limit = tl.maximum(size, size_before)
        for b in range(first, limit, stride):
            mask = (b + sequence < limit) & (row < N) & stores
            h0_cells = (b + sequence).to(tl.int64) * N + row
            inside = b + sequence < size
            following = b + stride
            dz_next = load_states(
                *(before_ptr, size_before, before_ptr, size_before, following, N),
                *(BLOCK_B, BLOCK_N, WARPS, LANES_N),
            )
            cells_next = (start + following + sequence) * N + row
            inside_next = (following + sequence < size) & (row < N)
            dy_next = tl.load(grad_y_ptr + cells_next, inside_next, other=0.0)
            y_next = tl.load(y_ptr + cells_next, inside_next, other=0.0)
            dh = multiply_rows(dz, weight)
            result = tl.where(inside, activate_bwd(dy + dh, y, NONLINEARITY, SLOPE), dh)
            target = tl.where(inside, grad_z_ptr + cells, grad_h0_ptr + h0_cells)
            tl.store(target, result, mask)
            dz, dy, y, cells = dz_next, dy_next, y_next, cells_next
        if BARRIER:
            arrive(counter_ptr)
        start_before, size_before, start, size = start, size, start_next, size_next


def grid_fwd(
    x: Tensor,
    h0: Tensor,
    weight: Tensor,
    nonlinearity: str,
    slope: float,
    bias: Tensor | None,
    offsets: Tensor | None,
    reverse: bool,
    cooperative: bool | None = None,
) -> Tensor:
    """All states for a dense weight (n, n); the other arguments as in ``folded_fwd``.

    ``cooperative`` tells one launch for all steps from one for each; None is the former where the
    device allows it.
    """
    require_contiguous(x=x, h0=h0, weight=weight, bias=bias, offsets=offsets)
    y = torch.empty_like(x)
    options = nonlinearity, slope, offsets, reverse, cooperative
    _launch(grid_fwd_kernel, (x, h0, weight, bias, offsets, y), x, h0, 0, *options)
    return y


def grid_bwd(
    grad_y: Tensor,
    y: Tensor,
    h0: Tensor,
    weight: Tensor,
    nonlinearity: str,
    slope: float,
    bias: Tensor | None,
    offsets: Tensor | None,
    reverse: bool,
    cooperative: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """(∂L/∂z, ∂L/∂h0) for a dense weight; as ``folded_bwd``."""
    require_contiguous(grad_y=grad_y, y=y, offsets=offsets)
    if not y.numel():
        return torch.empty_like(y), torch.zeros_like(h0)
    grad_z, grad_h0 = torch.empty_like(y), torch.empty_like(h0)
    tensors = grad_y, y, weight.mT.contiguous(), offsets, grad_z, grad_h0
    options = nonlinearity, slope, offsets, reverse, cooperative
    _launch(grid_bwd_kernel, tensors, y, h0, 1, *options)
    return grad_z, grad_h0


def _launch(
    kernel: triton.JITFunction,
    tensors: tuple[Tensor | None, ...],
    x: Tensor,
    h0: Tensor,
    extra_steps: int,
    nonlinearity: str,
    slope: float,
    offsets: Tensor | None,
    reverse: bool,
    cooperative: bool | None,
) -> None:
    if not x.numel():
        return
    batch, n = h0.shape
    if any(a.dtype != x.dtype for a in tensors if a is not None and a is not offsets):
        raise ValueError(f"states pass between steps in memory, so all tensors must be {x.dtype}")
    config = grid_config(n, x.dtype)
    grid = config.grid(n, batch, num_processors(x.device))
    if cooperative is None:
        cooperative = cooperates(x.device, grid[0] * grid[1])
    steps = num_steps(x, offsets)
    launches = steps + extra_steps
    counters = torch.zeros(grid[1] * COUNTER_STRIDE.value, dtype=torch.int32, device=x.device)
    options = recurrence_options(x.device, config, nonlinearity, slope, offsets, reverse)
    if cooperative:
        options["launch_cooperative_grid"] = True
    with on_device(x):
        for begin in range(0, launches, launches if cooperative else 1):
            end = launches if cooperative else begin + 1
            kernel[grid](
                *(*tensors, counters, begin, end, steps, batch, n),
                **options,
                BARRIER=cooperative,
            )
