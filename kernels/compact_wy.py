r"""Products of Householder reflectors in compact WY form.

A block of b unit reflectors V (b, n) is Q_j = I - Vᵀ T V with T = S⁻¹ and S = striu(V Vᵀ) + ½ I,
and Q = Q_1 ⋯ Q_J. Vectors are rows, so y = Q x is ``x - (x Vᵀ) Tᵀ V`` for a block.

Note [Backward of the compact WY form]
    Undoing the blocks one after another on the outputs y and on their gradients g yields, for every
    reflector, the coefficients that were subtracted: D_y and D_g, both (N, k). Since a reflector is
    its own inverse, D_y is minus the coefficient the forward pass used, and with
    R = D_gᵀ D_y the gradient of all reflectors together is

        ∂L/∂V = D_yᵀ g - D_gᵀ y + tril(R - Rᵀ, -1) V        (triu(·, 1) for x ↦ Qᵀ x).

    Block inputs never appear: replacing them by y moves whole off-diagonal blocks of R into the
    triangle, and the terms that T contributes complete it. So nothing is stored in the forward
    pass, and the sums over the batch are GEMMs, which are deterministic where atomics are not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from spectral_triton.kernels._launch import (
    architecture,
    launch_options,
    on_device,
    require_contiguous,
)
from spectral_triton.kernels._low_rank import load_factor, sum_over_features, sum_over_ranks
from spectral_triton.kernels.configuration import apply_config
from spectral_triton.kernels.t_factor import t_factor_fwd as t_factor_fwd
from torch import Tensor

_RUNTIME_SIZES = ("ROWS", "K", "N", "num_blocks", "block_size", "stride_n")


@triton.jit
def _load_t_factor(
    t_ptr,
    block_size,
    stride_n,
    TRANSPOSE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WARPS: tl.constexpr,
):
    """T (in, warp, copies, out), each warp all of it; transposed for x ↦ x Q."""
    cell = tl.arange(0, BLOCK_K * WARPS * 32)
    source, target = cell // (WARPS * 32), cell % BLOCK_K
    row, column = (source, target) if TRANSPOSE else (target, source)
    mask = (row < block_size) & (column < block_size)
    t = tl.load(t_ptr + row * block_size + column * stride_n, mask, other=0.0)
    return tl.reshape(t, (1, BLOCK_K, WARPS, 32 // BLOCK_K, BLOCK_K))


@triton.jit
def _coefficients(products, t):
    """T (V x), from V x as ``sum_over_features`` leaves it, in the same layout."""
    return tl.sum(tl.permute(products, (0, 3, 1, 2))[:, :, :, :, None] * t, axis=1)


@triton.jit
def _store_coefficients(
    d_ptr, d, first_row, first, ROWS, K, block_size, stride_n, WARPS: tl.constexpr
):
    BLOCK_ROWS: tl.constexpr = d.shape[0]
    BLOCK_K: tl.constexpr = d.shape[3]
    cell = tl.arange(0, BLOCK_ROWS * WARPS * 32)
    row, index = first_row + cell // (WARPS * 32), cell % BLOCK_K
    mask = (cell % (WARPS * 32) < BLOCK_K) & (row < ROWS)
    mask = mask & (index < block_size) & (first + index < K)
    d = tl.reshape(d, (BLOCK_ROWS * WARPS * 32,))
    tl.store(d_ptr + row.to(tl.int64) * K + first + index * stride_n, d, mask)


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def apply_resident_kernel(
    x_ptr,
    v_ptr,
    t_ptr,
    y_ptr,
    coefficient_ptr,
    ROWS,
    K,
    N,
    num_blocks,
    block_size,
    stride_n,
    TRANSPOSE: tl.constexpr,
    STORE_COEFFICIENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
    EVEN_N: tl.constexpr,
):
    """One program owns BLOCK_ROWS vectors of one matrix and keeps them in registers throughout."""
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    tiles = tl.cdiv(ROWS, BLOCK_ROWS)
    pid = tl.program_id(0).to(tl.int64)
    matrix = pid // tiles
    first_row = ((pid % tiles) * BLOCK_ROWS).to(tl.int32)
    row = first_row + tl.arange(0, BLOCK_ROWS * BLOCK_N) // BLOCK_N
    feature = tl.arange(0, BLOCK_ROWS * BLOCK_N) % BLOCK_N
    cells = (matrix * ROWS + row) * N + feature * stride_n
    mask = (row < ROWS) & (feature < N)
    x = tl.load(x_ptr + cells, mask, other=0.0).to(dtype)
    v_ptr += matrix * K * N
    t_ptr += matrix * num_blocks * block_size * block_size
    coefficient_ptr += matrix * ROWS * K

    first = (0 if TRANSPOSE else num_blocks - 1) * block_size
    size = tl.minimum(K - first, block_size)
    block_ptr = v_ptr + first.to(tl.int64) * N
    v = load_factor(block_ptr, N, size, 1, N, BLOCK_N, BLOCK_K, WARPS, LANES_N, EVEN_N)
    for _ in range(0, num_blocks):
        t_block = t_ptr + first.to(tl.int64) * block_size
        t = _load_t_factor(t_block, block_size, stride_n, TRANSPOSE, BLOCK_K, WARPS)
        # The next block of reflectors is fetched while this one is applied.
        next_first = first + (block_size if TRANSPOSE else -block_size)
        next_size = tl.where(next_first >= 0, tl.minimum(K - next_first, block_size), 0)
        block_ptr = v_ptr + next_first.to(tl.int64) * N
        next_v = load_factor(
            block_ptr, N, next_size, 1, N, BLOCK_N, BLOCK_K, WARPS, LANES_N, EVEN_N
        )
        d = _coefficients(sum_over_features(x, v, WARPS, LANES_N), t)
        x -= sum_over_ranks(d, v, WARPS, LANES_N)
        if STORE_COEFFICIENTS:
            _store_coefficients(
                coefficient_ptr, d, first_row, first, ROWS, K, block_size, stride_n, WARPS
            )
        v, first = next_v, next_first

    tl.store(y_ptr + cells, x, mask)


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def apply_tiled_kernel(
    y_ptr,
    v_ptr,
    t_ptr,
    coefficient_ptr,
    ROWS,
    K,
    N,
    num_blocks,
    block_size,
    stride_n,
    TRANSPOSE: tl.constexpr,
    STORE_COEFFICIENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
):
    """One program owns BLOCK_ROWS vectors of any length and updates them in place, tile by tile."""
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    tiles = tl.cdiv(ROWS, BLOCK_ROWS)
    pid = tl.program_id(0).to(tl.int64)
    matrix = pid // tiles
    first_row = ((pid % tiles) * BLOCK_ROWS).to(tl.int32)
    row = first_row + tl.arange(0, BLOCK_ROWS * BLOCK_N) // BLOCK_N
    feature = tl.arange(0, BLOCK_ROWS * BLOCK_N) % BLOCK_N
    cells = (matrix * ROWS + row) * N + feature * stride_n
    v_ptr += matrix * K * N
    t_ptr += matrix * num_blocks * block_size * block_size
    coefficient_ptr += matrix * ROWS * K

    for step in range(0, num_blocks):
        first = (step if TRANSPOSE else num_blocks - 1 - step) * block_size
        size = tl.minimum(K - first, block_size)
        block_ptr = v_ptr + first.to(tl.int64) * N
        t_block = t_ptr + first.to(tl.int64) * block_size
        t = _load_t_factor(t_block, block_size, stride_n, TRANSPOSE, BLOCK_K, WARPS)
        products = tl.zeros((BLOCK_ROWS, WARPS, 32 // BLOCK_K, BLOCK_K), dtype=dtype)
        for start in range(0, N, BLOCK_N):
            mask = (row < ROWS) & (start + feature < N)
            y = tl.load(y_ptr + cells + start * stride_n, mask, other=0.0)
            tile_ptr = block_ptr + start * stride_n
            v = load_factor(tile_ptr, N - start, size, 1, N, BLOCK_N, BLOCK_K, WARPS, LANES_N)
            products += sum_over_features(y, v, WARPS, LANES_N)
        d = _coefficients(products, t)
        for start in range(0, N, BLOCK_N):
            mask = (row < ROWS) & (start + feature < N)
            y = tl.load(y_ptr + cells + start * stride_n, mask, other=0.0)
            tile_ptr = block_ptr + start * stride_n
            v = load_factor(tile_ptr, N - start, size, 1, N, BLOCK_N, BLOCK_K, WARPS, LANES_N)
            tl.store(
                y_ptr + cells + start * stride_n, y - sum_over_ranks(d, v, WARPS, LANES_N), mask
            )
        if STORE_COEFFICIENTS:
            _store_coefficients(
                coefficient_ptr, d, first_row, first, ROWS, K, block_size, stride_n, WARPS
            )
        # The next block may read through other threads what this one wrote to global memory.
        tl.debug_barrier()


def apply_fwd(x: Tensor, unit_reflectors: Tensor, t_factors: Tensor, transpose: bool) -> Tensor:
    """y = x Qᵀ, or x Q with ``transpose``: x (M, N, n), unit_reflectors (M, k, n) -> (M, N, n).

    x may be float16 or bfloat16; the factors are float32 or float64 and so is the arithmetic.
    """
    y, _ = _apply(x, unit_reflectors, t_factors, transpose, store_coefficients=False)
    return y


def apply_bwd(
    y: Tensor, grad_y: Tensor, unit_reflectors: Tensor, t_factors: Tensor, transpose: bool
) -> tuple[Tensor, Tensor]:
    """(∂L/∂x, ∂L/∂unit_reflectors) from the outputs: Note [Backward of the compact WY form].

    The second is orthogonal to each reflector: divide it by the length the reflector had.
    """
    rows = torch.cat((y, grad_y), dim=1)
    undone, coefficients = _apply(
        rows, unit_reflectors, t_factors, not transpose, store_coefficients=True
    )
    num_rows = y.shape[1]
    grad_x = undone[:, num_rows:].contiguous()
    d_y, d_g = coefficients[:, :num_rows].mT, coefficients[:, num_rows:].mT
    dtype = unit_reflectors.dtype
    cross = torch.bmm(d_g, d_y.mT)
    cross = cross - cross.mT
    triangle = cross.triu(1) if transpose else cross.tril(-1)
    grad = torch.bmm(triangle, unit_reflectors)
    grad = torch.baddbmm(grad, d_y, grad_y.to(dtype))
    return grad_x, torch.baddbmm(grad, d_g, y.to(dtype), alpha=-1)


def _apply(
    x: Tensor,
    unit_reflectors: Tensor,
    t_factors: Tensor,
    transpose: bool,
    store_coefficients: bool,
) -> tuple[Tensor, Tensor]:
    require_contiguous(x=x, unit_reflectors=unit_reflectors, t_factors=t_factors)
    m, num_rows, n = x.shape
    k, num_blocks, block_size = unit_reflectors.shape[1], t_factors.shape[1], t_factors.shape[2]
    dtype = unit_reflectors.dtype
    coefficients = unit_reflectors.new_empty(m, num_rows, k if store_coefficients else 0)
    if num_blocks == 0 or x.numel() == 0:
        return x.clone(), coefficients
    config = apply_config(n, block_size, m * num_rows, dtype)
    grid = (m * triton.cdiv(num_rows, config.block_rows),)
    sizes = (num_rows, k, n, num_blocks, block_size, 1)
    options = {
        "TRANSPOSE": transpose,
        "STORE_COEFFICIENTS": store_coefficients,
        "BLOCK_ROWS": config.block_rows,
        "BLOCK_K": config.block_k,
        "BLOCK_N": config.block_n,
        "WARPS": config.num_warps,
        "LANES_N": config.lanes_n,
        **launch_options(config.num_warps, architecture(x.device)),
    }
    if config.resident:
        options["EVEN_N"] = n == config.block_n
    with on_device(x):
        if config.resident:
            y = torch.empty_like(x)
            apply_resident_kernel[grid](
                *(x, unit_reflectors, t_factors, y, coefficients, *sizes), **options
            )
        else:
            y = x.to(dtype, copy=True)
            apply_tiled_kernel[grid](
                *(y, unit_reflectors, t_factors, coefficients, *sizes), **options
            )
    return y.to(x.dtype), coefficients
