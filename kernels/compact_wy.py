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
from spectral_triton.kernels._launch import on_device, require_contiguous
from spectral_triton.kernels.configuration import apply_config, t_factor_config
from torch import Tensor


@triton.jit
def t_factor_fwd_kernel(
    v_ptr,
    t_ptr,
    K,
    N,
    num_blocks,
    block_size,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program owns one block of reflectors: its Gram matrix, then T column by column."""
    pid = tl.program_id(0).to(tl.int64)
    matrix, block = pid // num_blocks, pid % num_blocks
    first = block * block_size
    index = tl.arange(0, BLOCK_K)
    in_block = (index < block_size) & (first + index < K)
    rows = v_ptr + (matrix * K + first + index) * N
    first_row = v_ptr + (matrix * K + first) * N
    valid = tl.minimum(K - first, block_size)

    gram = tl.zeros((BLOCK_K, BLOCK_K), dtype=v_ptr.dtype.element_ty)
    for start in range(0, N, BLOCK_N):
        feature = start + tl.arange(0, BLOCK_N)
        inside = feature < N
        v = tl.load(
            rows[:, None] + feature[None, :], in_block[:, None] & inside[None, :], other=0.0
        )
        for j in range(0, valid):
            row = tl.load(first_row + j * N + feature, inside, other=0.0)
            products = tl.sum(v * row[None, :], axis=1)
            gram += tl.where(index[None, :] == j, products[:, None], 0.0)

    # T S = I by columns; S[l, j] for l < j is gram[j, l], since gram is symmetric.
    squared = tl.sum(tl.where(index[:, None] == index[None, :], gram, 0.0), axis=0)
    inverse_diagonal = tl.where(squared > 0, 2.0, 1.0).to(v_ptr.dtype.element_ty)
    t = tl.where(index[:, None] == index[None, :], inverse_diagonal[None, :], 0.0)
    for j in range(1, valid):
        s = tl.sum(tl.where((index[:, None] == j) & (index[None, :] < j), gram, 0.0), axis=0)
        column = tl.sum(t * s[None, :], axis=1)
        scale = tl.sum(tl.where(index == j, inverse_diagonal, 0.0), axis=0)
        t = tl.where((index[None, :] == j) & (index[:, None] < j), -column[:, None] * scale, t)

    cells = pid * block_size * block_size + index[:, None] * block_size + index[None, :]
    stored = (index < block_size)[:, None] & (index < block_size)[None, :]
    tl.store(t_ptr + cells, t, stored)


@triton.jit
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
    TRANSPOSE: tl.constexpr,
    STORE_COEFFICIENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program owns BLOCK_ROWS vectors of one matrix and keeps them in registers throughout."""
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    tiles = tl.cdiv(ROWS, BLOCK_ROWS)
    pid = tl.program_id(0).to(tl.int64)
    matrix = pid // tiles
    row = (pid % tiles) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    feature = tl.arange(0, BLOCK_N)
    index = tl.arange(0, BLOCK_K)
    cells = (matrix * ROWS + row)[:, None] * N + feature[None, :]
    mask = (row < ROWS)[:, None] & (feature < N)[None, :]
    x = tl.load(x_ptr + cells, mask, other=0.0).to(dtype)

    for step in range(0, num_blocks):
        block = step if TRANSPOSE else num_blocks - 1 - step
        first = block * block_size
        in_block = (index < block_size) & (first + index < K)
        v_cells = (matrix * K + first + index)[:, None] * N + feature[None, :]
        v = tl.load(v_ptr + v_cells, in_block[:, None] & (feature < N)[None, :], other=0.0)
        # Tᵀ is what turns x Vᵀ into coefficients of rows for Q, T for Qᵀ; t is indexed (out, in).
        if TRANSPOSE:
            t_cells = index[None, :] * block_size + index[:, None]
        else:
            t_cells = index[:, None] * block_size + index[None, :]
        t_start = (matrix * num_blocks + block) * block_size * block_size
        t = tl.load(t_ptr + t_start + t_cells, in_block[:, None] & in_block[None, :], other=0.0)

        products = tl.sum(x[:, None, :] * v[None, :, :], axis=2)  # (BLOCK_ROWS, BLOCK_K)
        coefficients = tl.sum(products[:, None, :] * t[None, :, :], axis=2)
        x -= tl.sum(coefficients[:, :, None] * v[None, :, :], axis=1)
        if STORE_COEFFICIENTS:
            d_cells = (matrix * ROWS + row)[:, None] * K + (first + index)[None, :]
            d_mask = (row < ROWS)[:, None] & in_block[None, :]
            tl.store(coefficient_ptr + d_cells, coefficients, d_mask)

    tl.store(y_ptr + cells, x, mask)


@triton.jit
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
    TRANSPOSE: tl.constexpr,
    STORE_COEFFICIENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program owns BLOCK_ROWS vectors of any length and updates them in place, tile by tile."""
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    tiles = tl.cdiv(ROWS, BLOCK_ROWS)
    pid = tl.program_id(0).to(tl.int64)
    matrix = pid // tiles
    row = (pid % tiles) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    index = tl.arange(0, BLOCK_K)
    y_rows = y_ptr + (matrix * ROWS + row) * N

    for step in range(0, num_blocks):
        block = step if TRANSPOSE else num_blocks - 1 - step
        first = block * block_size
        in_block = (index < block_size) & (first + index < K)
        v_rows = v_ptr + (matrix * K + first + index) * N
        if TRANSPOSE:
            t_cells = index[None, :] * block_size + index[:, None]
        else:
            t_cells = index[:, None] * block_size + index[None, :]
        t_start = (matrix * num_blocks + block) * block_size * block_size
        t = tl.load(t_ptr + t_start + t_cells, in_block[:, None] & in_block[None, :], other=0.0)

        products = tl.zeros((BLOCK_ROWS, BLOCK_K), dtype=dtype)
        for start in range(0, N, BLOCK_N):
            feature = start + tl.arange(0, BLOCK_N)
            inside = (feature < N)[None, :]
            y = tl.load(
                y_rows[:, None] + feature[None, :], (row < ROWS)[:, None] & inside, other=0.0
            )
            v = tl.load(v_rows[:, None] + feature[None, :], in_block[:, None] & inside, other=0.0)
            products += tl.sum(y[:, None, :] * v[None, :, :], axis=2)
        coefficients = tl.sum(products[:, None, :] * t[None, :, :], axis=2)
        for start in range(0, N, BLOCK_N):
            feature = start + tl.arange(0, BLOCK_N)
            inside = (feature < N)[None, :]
            mask = (row < ROWS)[:, None] & inside
            y = tl.load(y_rows[:, None] + feature[None, :], mask, other=0.0)
            v = tl.load(v_rows[:, None] + feature[None, :], in_block[:, None] & inside, other=0.0)
            y -= tl.sum(coefficients[:, :, None] * v[None, :, :], axis=1)
            tl.store(y_rows[:, None] + feature[None, :], y, mask)
        if STORE_COEFFICIENTS:
            d_cells = (matrix * ROWS + row)[:, None] * K + (first + index)[None, :]
            d_mask = (row < ROWS)[:, None] & in_block[None, :]
            tl.store(coefficient_ptr + d_cells, coefficients, d_mask)
        # The next block reads through other threads what this one wrote to global memory.
        tl.debug_barrier()


def t_factor_fwd(unit_reflectors: Tensor, block_size: int) -> Tensor:
    """T of every block in one launch: (M, k, n) -> (M, ceil(k / b), b, b).

    Rows have length one, or are zero and stand for the identity. float32 or float64.
    """
    require_contiguous(unit_reflectors=unit_reflectors)
    m, k, n = unit_reflectors.shape
    num_blocks = triton.cdiv(k, block_size)
    t_factors = unit_reflectors.new_empty(m, num_blocks, block_size, block_size)
    if t_factors.numel():
        block_k, block_n, num_warps = t_factor_config(n, block_size, unit_reflectors.dtype)
        with on_device(unit_reflectors):
            t_factor_fwd_kernel[(m * num_blocks,)](
                *(unit_reflectors, t_factors, k, n, num_blocks, block_size),
                BLOCK_K=block_k,
                BLOCK_N=block_n,
                num_warps=num_warps,
            )
    return t_factors


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
    sizes = (num_rows, k, n, num_blocks, block_size)
    options = {
        "TRANSPOSE": transpose,
        "STORE_COEFFICIENTS": store_coefficients,
        "BLOCK_ROWS": config.block_rows,
        "BLOCK_K": config.block_k,
        "BLOCK_N": config.block_n,
        "num_warps": config.num_warps,
    }
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
