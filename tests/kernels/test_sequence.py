"""Addresses of rows, where they outgrow int32, without the memory that they would take."""

import pytest
import torch
import triton
import triton.language as tl
from spectral_triton.kernels._sequence import step_rows


@triton.jit
def first_cell_kernel(cell_ptr, offsets_ptr, step, B, N, PACKED: tl.constexpr):
    start, size = step_rows(offsets_ptr, step, step, B, PACKED)
    tl.store(cell_ptr, start * N)
    tl.store(cell_ptr + 1, size)


@pytest.mark.parametrize("index_dtype", [None, torch.int32, torch.int64])
def test_rows_beyond_int32(index_dtype, device):
    cell = torch.zeros(2, dtype=torch.int64, device=device)
    first, rows, n = 2**30, 5, 1024
    if index_dtype is None:
        first_cell_kernel[(1,)](cell, None, 2**20, 2**20 + 1, n, PACKED=False)
        assert cell.tolist() == [2**20 * (2**20 + 1) * n, 2**20 + 1]
    else:
        offsets = torch.tensor([0, first, first + rows], dtype=index_dtype, device=device)
        first_cell_kernel[(1,)](cell, offsets, 1, rows, n, PACKED=True)
        assert cell.tolist() == [first * n, rows]
