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
from spectral_triton.kernels._launch import on_device, require_contiguous
from spectral_triton.kernels.configuration import RecurrenceConfig, dense_config, folded_config
from torch import Tensor


@triton.jit
def _tanh(z):
    """tanh from exp; below 1/4 by its series, where 1 - exp(-2|z|) loses digits."""
    e = tl.exp(-2.0 * tl.abs(z))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(z < 0, -far, far)
    s = z * z
    if z.dtype == tl.float64:
        near = s * (18888466084.0 / 194896477400625.0) - 443861162.0 / 1856156927625.0
        near = near * s + 6404582.0 / 10854718875.0
        near = near * s - 929569.0 / 638512875.0
        near = near * s + 21844.0 / 6081075.0
        near = near * s - 1382.0 / 155925.0
    else:
        near = s * 0.0 - 1382.0 / 155925.0
    near = near * s + 62.0 / 2835.0
    near = near * s - 17.0 / 315.0
    near = near * s + 2.0 / 15.0
    near = near * s - 1.0 / 3.0
    near = near * s * z + z
    return tl.where(s < 0.0625, near, far)


@triton.jit
def _activate(z, bias, NONLINEARITY: tl.constexpr, SLOPE: tl.constexpr):
    if NONLINEARITY == "tanh":
        return _tanh(z)
    elif NONLINEARITY == "relu":
        return tl.where(z > 0, z, 0.0)
    elif NONLINEARITY == "leaky_relu":
        return tl.where(z > 0, z, z * SLOPE)
    elif NONLINEARITY == "modrelu":
        length = tl.abs(z) + bias[None, :]
        return tl.where((length > 0) & (z != 0), tl.where(z > 0, length, -length), 0.0)
    else:
        return z


@triton.jit
def _activate_bwd(dy, y, NONLINEARITY: tl.constexpr, SLOPE: tl.constexpr):
    """φ'(z) dy from y = φ(z) alone; each φ here allows it."""
    if NONLINEARITY == "tanh":
        return dy * (1.0 - y * y)
    elif NONLINEARITY == "relu":
        return tl.where(y > 0, dy, 0.0)
    elif NONLINEARITY == "leaky_relu":
        return tl.where(y > 0, dy, dy * SLOPE)
    elif NONLINEARITY == "modrelu":
        return tl.where(y != 0, dy, 0.0)
    else:
        return dy


@triton.jit
def _multiply(h, scale, p, q, DENSE: tl.constexpr):
    """W h for every row of h: scale ∘ h - P (Qᵀ h), or P h where P holds the dense W."""
    if DENSE:
        return tl.sum(h[:, None, :] * p[None, :, :], axis=2)
    else:
        inner = tl.sum(h[:, :, None] * q[None, :, :], axis=1)
        return scale[None, :] * h - tl.sum(inner[:, None, :] * p[None, :, :], axis=2)


@triton.jit
def _step_rows(offsets_ptr, step, last, B, PACKED: tl.constexpr):
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
def _count_steps(offsets_ptr, T, sequence, PACKED: tl.constexpr):
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


@triton.jit
def _load_weights(
    scale_ptr, p_ptr, q_ptr, N, R, stride_pn, stride_pr, feature, rank, DENSE: tl.constexpr
):
    cells = feature[:, None] * stride_pn + rank[None, :] * stride_pr
    mask = (feature < N)[:, None] & (rank < R)[None, :]
    p = tl.load(p_ptr + cells, mask, other=0.0)
    if DENSE:
        return feature, p, rank
    else:
        q = tl.load(q_ptr + cells, mask, other=0.0)
        return tl.load(scale_ptr + feature, feature < N, other=0.0), p, q


@triton.jit
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
    NONLINEARITY: tl.constexpr,
    SLOPE: tl.constexpr,
    DENSE: tl.constexpr,
    PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program owns BLOCK_B sequences from their first step to their last."""
    dtype: tl.constexpr = p_ptr.dtype.element_ty
    first = tl.program_id(0) * BLOCK_B
    sequence = first + tl.arange(0, BLOCK_B)
    feature = tl.arange(0, BLOCK_N)
    rank = tl.arange(0, BLOCK_R)
    inside = (feature < N)[None, :]
    scale, p, q = _load_weights(
        scale_ptr, p_ptr, q_ptr, N, R, stride_pn, stride_pr, feature, rank, DENSE
    )
    bias = feature
    if NONLINEARITY == "modrelu":
        bias = tl.load(bias_ptr + feature, feature < N, other=0.0).to(dtype)
    state_cells = sequence.to(tl.int64)[:, None] * N + feature[None, :]
    h = tl.load(h0_ptr + state_cells, (sequence < B)[:, None] & inside, other=0.0).to(dtype)

    steps = _count_steps(offsets_ptr, T, first, PACKED)
    direction = -1 if REVERSE else 1
    t = steps - 1 if REVERSE else steps * 0
    start, size = _step_rows(offsets_ptr, t, T - 1, B, PACKED)
    next_start, next_size = _step_rows(offsets_ptr, t + direction, T - 1, B, PACKED)
    cells = (start + sequence)[:, None] * N + feature[None, :]
    mask = (sequence < size)[:, None] & inside
    x = tl.load(x_ptr + cells, mask & (steps > 0), other=0.0)
    for _ in range(0, steps):
        next_cells = (next_start + sequence)[:, None] * N + feature[None, :]
        next_mask = (sequence < next_size)[:, None] & inside
        next_x = tl.load(x_ptr + next_cells, next_mask, other=0.0)
        t += direction
        next_start, next_size = _step_rows(offsets_ptr, t + direction, T - 1, B, PACKED)

        z = _multiply(h, scale, p, q, DENSE) + x.to(dtype)
        y = _activate(z, bias, NONLINEARITY, SLOPE)
        h = tl.where(mask, y, h) if PACKED and REVERSE else y
        tl.store(y_ptr + cells, y, mask)
        x, cells, mask = next_x, next_cells, next_mask


@triton.jit
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
    NONLINEARITY: tl.constexpr,
    SLOPE: tl.constexpr,
    DENSE: tl.constexpr,
    PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program owns BLOCK_B sequences; p and q (or the strides of W) come exchanged."""
    dtype: tl.constexpr = p_ptr.dtype.element_ty
    first = tl.program_id(0) * BLOCK_B
    sequence = first + tl.arange(0, BLOCK_B)
    feature = tl.arange(0, BLOCK_N)
    rank = tl.arange(0, BLOCK_R)
    inside = (feature < N)[None, :]
    scale, p, q = _load_weights(
        scale_ptr, p_ptr, q_ptr, N, R, stride_pn, stride_pr, feature, rank, DENSE
    )
    dh = tl.zeros((BLOCK_B, BLOCK_N), dtype=dtype)

    steps = _count_steps(offsets_ptr, T, first, PACKED)
    direction = 1 if REVERSE else -1
    t = steps * 0 if REVERSE else steps - 1
    start, size = _step_rows(offsets_ptr, t, T - 1, B, PACKED)
    next_start, next_size = _step_rows(offsets_ptr, t + direction, T - 1, B, PACKED)
    cells = (start + sequence)[:, None] * N + feature[None, :]
    mask = (sequence < size)[:, None] & inside
    dy = tl.load(grad_y_ptr + cells, mask & (steps > 0), other=0.0)
    y = tl.load(y_ptr + cells, mask & (steps > 0), other=0.0)
    for _ in range(0, steps):
        next_cells = (next_start + sequence)[:, None] * N + feature[None, :]
        next_mask = (sequence < next_size)[:, None] & inside
        next_dy = tl.load(grad_y_ptr + next_cells, next_mask, other=0.0)
        next_y = tl.load(y_ptr + next_cells, next_mask, other=0.0)
        t += direction
        next_start, next_size = _step_rows(offsets_ptr, t + direction, T - 1, B, PACKED)

        dz = _activate_bwd(dy.to(dtype) + dh, y.to(dtype), NONLINEARITY, SLOPE)
        tl.store(grad_z_ptr + cells, dz, mask)
        previous = _multiply(dz, scale, p, q, DENSE)
        dh = tl.where(mask, previous, dh) if PACKED and REVERSE else previous
        dy, y, cells, mask = next_dy, next_y, next_cells, next_mask

    state_cells = sequence.to(tl.int64)[:, None] * N + feature[None, :]
    tl.store(grad_h0_ptr + state_cells, dh, (sequence < B)[:, None] & inside)


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
    return _forward(x, h0, scale, p, q, nonlinearity, slope, bias, offsets, reverse, config)


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
    config = dense_config(x.shape[-1], weight.dtype, h0.shape[0])
    return _forward(x, h0, None, weight, None, nonlinearity, slope, bias, offsets, reverse, config)


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
    return _backward(grad_y, y, h0, scale, q, p, nonlinearity, slope, offsets, reverse, config)


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
    config = dense_config(y.shape[-1], weight.dtype, h0.shape[0])
    return _backward(
        grad_y, y, h0, None, weight.mT, None, nonlinearity, slope, offsets, reverse, config
    )


def _forward(
    x: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    nonlinearity: str,
    slope: float,
    bias: Tensor | None,
    offsets: Tensor | None,
    reverse: bool,
    config: RecurrenceConfig,
) -> Tensor:
    require_contiguous(x=x, h0=h0, scale=scale, p=p, q=q, bias=bias, offsets=offsets)
    y = torch.empty_like(x)
    steps, batch = _sizes(x, h0, offsets)
    if x.numel():
        with on_device(x):
            recurrence_fwd_kernel[(triton.cdiv(batch, config.block_b),)](
                *(x, h0, scale, p, q, bias, offsets, y, steps, batch),
                *(p.shape[0], p.shape[1], p.stride(0), p.stride(1)),
                **_options(nonlinearity, slope, q is None, offsets is not None, reverse, config),
            )
    return y


def _backward(
    grad_y: Tensor,
    y: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    nonlinearity: str,
    slope: float,
    offsets: Tensor | None,
    reverse: bool,
    config: RecurrenceConfig,
) -> tuple[Tensor, Tensor]:
    require_contiguous(grad_y=grad_y, y=y, scale=scale, q=q, offsets=offsets)
    grad_z, grad_h0 = torch.empty_like(y), torch.empty_like(h0)
    steps, batch = _sizes(y, h0, offsets)
    if h0.numel():
        with on_device(y):
            recurrence_bwd_kernel[(triton.cdiv(batch, config.block_b),)](
                *(grad_y, y, scale, p, q, offsets, grad_z, grad_h0, steps, batch),
                *(p.shape[0], p.shape[1], p.stride(0), p.stride(1)),
                **_options(nonlinearity, slope, q is None, offsets is not None, reverse, config),
            )
    return grad_z, grad_h0


def _sizes(x: Tensor, h0: Tensor, offsets: Tensor | None) -> tuple[int, int]:
    return (x.shape[0] if offsets is None else offsets.shape[0] - 1), h0.shape[0]


def _options(
    nonlinearity: str,
    slope: float,
    dense: bool,
    packed: bool,
    reverse: bool,
    config: RecurrenceConfig,
) -> dict[str, object]:
    return {
        "NONLINEARITY": nonlinearity,
        # A constant: Triton passes a Python float as float32, which float64 would notice.
        "SLOPE": float(slope) if nonlinearity == "leaky_relu" else 0.0,
        "DENSE": dense,
        "PACKED": packed,
        "REVERSE": reverse,
        "BLOCK_B": config.block_b,
        "BLOCK_N": config.block_n,
        "BLOCK_R": config.block_r,
        "num_warps": config.num_warps,
        "num_stages": 1,
    }
