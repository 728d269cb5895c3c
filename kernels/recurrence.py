r"""h_t = φ(W h_{t-1} + x_t) for all steps in one launch, with W held in registers.

W is either folded, W h = scale ∘ h - P (Qᵀ h) with P and Q of shape (n, r), or dense. The chain of
dependent steps is what takes the time, so a program owns one or two sequences and all of W, every
product is a broadcast and a ``tl.sum`` (exact in float32, where ``tl.dot`` would re-read W from
shared memory at each step), and the next step's input is fetched before the current one's sums.

The gradient with respect to z_t = W h_{t-1} + x_t follows the same recurrence backwards with Wᵀ;
gradients of the weights are GEMMs over all steps and belong to the caller.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from spectral_triton.kernels._activation import activate, activate_bwd
from spectral_triton.kernels._launch import (
    num_steps,
    on_device,
    recurrence_options,
    require_contiguous,
)
from spectral_triton.kernels._sequence import count_steps, step_rows
from spectral_triton.kernels._weight import add_product, load_weight
from spectral_triton.kernels.configuration import (
    RecurrenceConfig,
    dense_config,
    folded_config,
    needs_grid,
)
from spectral_triton.kernels.grid_recurrence import grid_bwd, grid_fwd
from torch import Tensor

# Also keeps Triton from vectorizing, which would change the layouts the kernels count on.
_RUNTIME_SIZES = ("T", "B", "N", "R", "stride_pn", "stride_pr", "stride_xn")


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def recurrence_fwd_kernel(
    x_ptr,
    h0_ptr,
    scale_ptr,
    p_ptr,
    q_ptr,
    bias_ptr,
    offsets_ptr,
    y_ptr,
    T,
    B,
    N,
    R,
    stride_pn,
    stride_pr,
    stride_xn,
    NONLINEARITY: tl.constexpr,
    SLOPE: tl.constexpr,
    DENSE: tl.constexpr,
    PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
):
    """One program owns BLOCK_B sequences from their first step to their last."""
    dtype: tl.constexpr = p_ptr.dtype.element_ty
    first = tl.program_id(0) * BLOCK_B
    sequence = first + tl.arange(0, BLOCK_B * BLOCK_N) // BLOCK_N
    feature = tl.arange(0, BLOCK_B * BLOCK_N) % BLOCK_N
    inside = feature < N
    column = feature * stride_xn
    scale, p, q = load_weight(
        *(scale_ptr, p_ptr, q_ptr, column, inside, N, R, stride_pn, stride_pr),
        *(DENSE, BLOCK_N, BLOCK_R, WARPS, LANES_N),
    )
    bias = 0.0
    if NONLINEARITY == "modrelu":
        bias = tl.load(bias_ptr + column, inside, other=0.0).to(dtype)
    state_cells = sequence.to(tl.int64) * N + column
    h = tl.load(h0_ptr + state_cells, (sequence < B) & inside, other=0.0).to(dtype)

    steps = count_steps(offsets_ptr, T, first, PACKED)
    direction = -1 if REVERSE else 1
    t = steps - 1 if REVERSE else steps * 0
    # Rows are known three steps ahead and inputs two, so that no load is waited for.
    start, size = step_rows(offsets_ptr, t, T - 1, B, PACKED)
    start_1, size_1 = step_rows(offsets_ptr, t + direction, T - 1, B, PACKED)
    start_2, size_2 = step_rows(offsets_ptr, t + 2 * direction, T - 1, B, PACKED)
    inside = feature < tl.where(steps > 0, N, 0)
    x = tl.load(x_ptr + start * N + state_cells, (sequence < size) & inside, other=0.0)
    x_1 = tl.load(x_ptr + start_1 * N + state_cells, (sequence < size_1) & inside, other=0.0)
    for _ in range(0, steps):
        z = x.to(dtype)
        x = x_1
        x_1 = tl.load(x_ptr + start_2 * N + state_cells, (sequence < size_2) & inside, other=0.0)
        start_3, size_3 = step_rows(offsets_ptr, t + 3 * direction, T - 1, B, PACKED)
        t += direction

        z = add_product(z, h, scale, p, q, DENSE, WARPS, LANES_N)
        y = activate(z, bias, NONLINEARITY, SLOPE)
        mask = (sequence < size) & inside
        h = tl.where(mask, y, h) if PACKED and REVERSE else y
        tl.store(y_ptr + start * N + state_cells, y, mask)
        start, size, start_1, size_1 = start_1, size_1, start_2, size_2
        start_2, size_2 = start_3, size_3


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def recurrence_bwd_kernel(
    grad_y_ptr,
    y_ptr,
    scale_ptr,
    p_ptr,
    q_ptr,
    offsets_ptr,
    grad_z_ptr,
    grad_h0_ptr,
    T,
    B,
    N,
    R,
    stride_pn,
    stride_pr,
    stride_xn,
    NONLINEARITY: tl.constexpr,
    SLOPE: tl.constexpr,
    DENSE: tl.constexpr,
    PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
):
    """One program owns BLOCK_B sequences; p and q (or the strides of W) come exchanged."""
    dtype: tl.constexpr = p_ptr.dtype.element_ty
    first = tl.program_id(0) * BLOCK_B
    sequence = first + tl.arange(0, BLOCK_B * BLOCK_N) // BLOCK_N
    feature = tl.arange(0, BLOCK_B * BLOCK_N) % BLOCK_N
    inside = feature < N
    column = feature * stride_xn
    scale, p, q = load_weight(
        *(scale_ptr, p_ptr, q_ptr, column, inside, N, R, stride_pn, stride_pr),
        *(DENSE, BLOCK_N, BLOCK_R, WARPS, LANES_N),
    )
    state_cells = sequence.to(tl.int64) * N + column
    dh = tl.zeros((BLOCK_B * BLOCK_N,), dtype=dtype)

    steps = count_steps(offsets_ptr, T, first, PACKED)
    direction = 1 if REVERSE else -1
    t = steps * 0 if REVERSE else steps - 1
    start, size = step_rows(offsets_ptr, t, T - 1, B, PACKED)
    start_1, size_1 = step_rows(offsets_ptr, t + direction, T - 1, B, PACKED)
    start_2, size_2 = step_rows(offsets_ptr, t + 2 * direction, T - 1, B, PACKED)
    exists = (sequence < B) & inside
    inside = feature < tl.where(steps > 0, N, 0)
    dy = tl.load(grad_y_ptr + start * N + state_cells, (sequence < size) & inside, other=0.0)
    y = tl.load(y_ptr + start * N + state_cells, (sequence < size) & inside, other=0.0)
    mask_1 = (sequence < size_1) & inside
    dy_1 = tl.load(grad_y_ptr + start_1 * N + state_cells, mask_1, other=0.0)
    y_1 = tl.load(y_ptr + start_1 * N + state_cells, mask_1, other=0.0)
    for _ in range(0, steps):
        dz = activate_bwd(dy.to(dtype) + dh, y.to(dtype), NONLINEARITY, SLOPE)
        dy, y = dy_1, y_1
        mask_2 = (sequence < size_2) & inside
        dy_1 = tl.load(grad_y_ptr + start_2 * N + state_cells, mask_2, other=0.0)
        y_1 = tl.load(y_ptr + start_2 * N + state_cells, mask_2, other=0.0)
        start_3, size_3 = step_rows(offsets_ptr, t + 3 * direction, T - 1, B, PACKED)
        t += direction

        mask = (sequence < size) & inside
        tl.store(grad_z_ptr + start * N + state_cells, dz, mask)
        previous = add_product(0.0, dz, scale, p, q, DENSE, WARPS, LANES_N)
        dh = tl.where(mask, previous, dh) if PACKED and REVERSE else previous
        start, size, start_1, size_1 = start_1, size_1, start_2, size_2
        start_2, size_2 = start_3, size_3

    tl.store(grad_h0_ptr + state_cells, dh, exists)


def folded_fwd(
    x: Tensor,
    h0: Tensor,
    scale: Tensor,
    p: Tensor,
    q: Tensor,
    nonlinearity: str,
    slope: float,
    bias: Tensor | None,
    offsets: Tensor | None,
    reverse: bool,
) -> Tensor:
    """All states for W h = scale ∘ h - P (Qᵀ h): x (T, B, n), or (rows, n) with offsets (T + 1,).

    h0 (B, n), scale (n,), p and q (n, r); with offsets, step t holds rows offsets[t] to
    offsets[t + 1], one for each of the sequences, which are sorted by falling length.
    """
    config = folded_config(x.shape[-1], p.shape[1], p.dtype, h0.shape[0])
    options = nonlinearity, slope, bias, offsets, reverse
    return _forward(config, x, h0, (scale, p, q), *options)


def dense_fwd(
    x: Tensor,
    h0: Tensor,
    weight: Tensor,
    nonlinearity: str,
    slope: float,
    bias: Tensor | None,
    offsets: Tensor | None,
    reverse: bool,
) -> Tensor:
    """All states for a dense weight (n, n); the other arguments as in ``folded_fwd``."""
    options = nonlinearity, slope, bias, offsets, reverse
    if needs_grid(x.shape[-1], weight.dtype):
        return grid_fwd(x, h0, weight, *options)
    config = dense_config(x.shape[-1], weight.dtype, h0.shape[0])
    return _forward(config, x, h0, (None, weight, None), *options)


def folded_bwd(
    grad_y: Tensor,
    y: Tensor,
    h0: Tensor,
    scale: Tensor,
    p: Tensor,
    q: Tensor,
    nonlinearity: str,
    slope: float,
    bias: Tensor | None,
    offsets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """(∂L/∂z, ∂L/∂h0); ∂L/∂z, of the shape of x, is also the gradient of x.

    The gradient of modrelu's bias is the sum of ∂L/∂z ∘ sign(y) over all rows.
    """
    config = folded_config(y.shape[-1], p.shape[1], p.dtype, h0.shape[0])
    options = nonlinearity, slope, offsets, reverse
    return _backward(config, grad_y, y, h0, (scale, q, p), *options)


def dense_bwd(
    grad_y: Tensor,
    y: Tensor,
    h0: Tensor,
    weight: Tensor,
    nonlinearity: str,
    slope: float,
    bias: Tensor | None,
    offsets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """(∂L/∂z, ∂L/∂h0) for a dense weight; as ``folded_bwd``."""
    if needs_grid(y.shape[-1], weight.dtype):
        return grid_bwd(grad_y, y, h0, weight, nonlinearity, slope, bias, offsets, reverse)
    config = dense_config(y.shape[-1], weight.dtype, h0.shape[0])
    options = nonlinearity, slope, offsets, reverse
    return _backward(config, grad_y, y, h0, (None, weight.mT, None), *options)


def _forward(
    config: RecurrenceConfig,
    x: Tensor,
    h0: Tensor,
    weight: tuple[Tensor | None, Tensor, Tensor | None],
    nonlinearity: str,
    slope: float,
    bias: Tensor | None,
    offsets: Tensor | None,
    reverse: bool,
) -> Tensor:
    scale, p, q = weight
    require_contiguous(x=x, h0=h0, scale=scale, p=p, q=q, bias=bias, offsets=offsets)
    y = torch.empty_like(x)
    steps, batch = num_steps(x, offsets), h0.shape[0]
    if x.numel():
        with on_device(x):
            recurrence_fwd_kernel[(triton.cdiv(batch, config.block_b),)](
                *(x, h0, scale, p, q, bias, offsets, y, steps, batch),
                *(p.shape[0], p.shape[1], p.stride(0), p.stride(1), 1),
                **recurrence_options(x.device, config, nonlinearity, slope, offsets, reverse),
                DENSE=q is None,
            )
    return y


def _backward(
    config: RecurrenceConfig,
    grad_y: Tensor,
    y: Tensor,
    h0: Tensor,
    weight: tuple[Tensor | None, Tensor, Tensor | None],
    nonlinearity: str,
    slope: float,
    offsets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    scale, p, q = weight
    require_contiguous(grad_y=grad_y, y=y, scale=scale, q=q, offsets=offsets)
    if not y.numel():
        return torch.empty_like(y), torch.zeros_like(h0)
    grad_z, grad_h0 = torch.empty_like(y), torch.empty_like(h0)
    steps, batch = num_steps(y, offsets), h0.shape[0]
    with on_device(y):
        recurrence_bwd_kernel[(triton.cdiv(batch, config.block_b),)](
            *(grad_y, y, scale, p, q, offsets, grad_z, grad_h0, steps, batch),
            *(p.shape[0], p.shape[1], p.stride(0), p.stride(1), 1),
            **recurrence_options(y.device, config, nonlinearity, slope, offsets, reverse),
            DENSE=q is None,
        )
    return grad_z, grad_h0
