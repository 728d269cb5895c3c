"""The static tables of the kernels: which sizes each one serves, and with which blocks and warps.

No timing at run time, so a result never depends on what ran before. A new entry is compiled for
every architecture by the tests, which hold its spills to what it declares here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from spectral_triton.kernels._launch import arithmetic_dtype


class ApplyConfig(NamedTuple):
    """How a tile of vectors is processed; ``resident`` keeps it in registers throughout."""

    resident: bool
    block_rows: int
    block_k: int
    block_n: int
    num_warps: int


class RecurrenceConfig(NamedTuple):
    """Sequences per program, padded sizes, warps, and the bytes each thread may spill on sm_90."""

    block_b: int
    block_n: int
    block_r: int
    num_warps: int
    spills: int = 0


# A block of reflectors V_j and the tile of vectors live in registers together: 64 KiB and 16 KiB of
# the 256 KiB an SM has, which leaves room for the products.
_RESIDENT_BYTES = 64 * 1024
_TILE_BYTES = 16 * 1024
_TARGET_PROGRAMS = 128  # about one program per SM of a large GPU


def preferred_block_size(n: int, k: int, dtype: torch.dtype) -> int:
    """Reflectors per block: as many as stay in registers with n features, at most 32."""
    fitting = _RESIDENT_BYTES // (feature_block(n) * arithmetic_dtype(dtype).itemsize)
    return max(1, min(32, fitting if fitting >= 4 else 16, triton.next_power_of_2(max(k, 1))))


def apply_config(n: int, block_size: int, num_rows: int, dtype: torch.dtype) -> ApplyConfig:
    """For ``num_rows`` vectors in all, over every matrix of the batch."""
    itemsize = arithmetic_dtype(dtype).itemsize
    block_k, block_n = triton.next_power_of_2(block_size), feature_block(n)
    resident = block_k * block_n * itemsize <= _RESIDENT_BYTES
    if not resident:
        block_n = max(32, min(block_n, _RESIDENT_BYTES // (block_k * itemsize * 2)))
    rows_that_fit = max(1, min(8, _TILE_BYTES // (block_n * itemsize)))
    rows_that_fill = triton.next_power_of_2(max(1, num_rows // _TARGET_PROGRAMS))
    elements = block_k * block_n * itemsize // 4
    return ApplyConfig(
        resident=resident,
        block_rows=min(rows_that_fit, rows_that_fill),
        block_k=block_k,
        block_n=block_n,
        num_warps=max(1, min(8, elements // 1024)),
    )


def t_factor_config(n: int, block_size: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """(BLOCK_K, BLOCK_N, warps) of the kernel that builds T."""
    block_k = triton.next_power_of_2(block_size)
    block_n = min(feature_block(n), max(32, _RESIDENT_BYTES // (block_k * dtype.itemsize)))
    return block_k, block_n, max(1, min(4, block_k * block_n // 2048))


def feature_block(n: int) -> int:
    return max(16, triton.next_power_of_2(n))


def folded_unserved(n: int, r: int, dtype: torch.dtype) -> str | None:
    """Why the folded recurrence has no kernel for these sizes, or None."""
    if (dtype, *_folded_key(n, r)) in FOLDED:
        return None
    largest = 16 * 1024 * 4 // dtype.itemsize
    return f"P and Q of shape ({n}, {r}) in {dtype} exceed the registers (n r <= {largest})"


def dense_unserved(n: int, dtype: torch.dtype) -> str | None:
    """Why the dense recurrence has no kernel for these sizes, or None."""
    if (dtype, _recurrence_block(n)) in DENSE:
        return None
    largest = max(block for entry, block in DENSE if entry == dtype)
    return f"W of shape ({n}, {n}) in {dtype} exceeds the registers (n <= {largest})"


def folded_config(n: int, r: int, dtype: torch.dtype, batch: int) -> RecurrenceConfig:
    if reason := folded_unserved(n, r, dtype):
        raise ValueError(reason)
    return FOLDED[(dtype, *_folded_key(n, r))]


def dense_config(n: int, dtype: torch.dtype, batch: int) -> RecurrenceConfig:
    if reason := dense_unserved(n, dtype):
        raise ValueError(reason)
    return DENSE[dtype, _recurrence_block(n)]


def describe() -> tuple[str, str, str]:
    """One line for each kernel: the sizes it serves."""
    folded = ", ".join(
        f"n <= {n}: r <= {max(r for d, m, r in FOLDED if (d, m) == (torch.float32, n))}"
        for n in sorted({n for d, n, _ in FOLDED if d == torch.float32})
    )
    dense = max(n for d, n in DENSE if d == torch.float32)
    return (
        "float32, float64 (x also bfloat16, float16), any n and k",
        f"float32 {folded}; float64 half of it",
        f"float32 n <= {dense}; float64 n <= {max(n for d, n in DENSE if d == torch.float64)}",
    )


def _folded_key(n: int, r: int) -> tuple[int, int]:
    return _recurrence_block(n), max(16, triton.next_power_of_2(max(r, 1)))


def _recurrence_block(n: int) -> int:
    return max(64, triton.next_power_of_2(n))


_F32, _F64 = torch.float32, torch.float64

# (dtype, padded n, padded r) -> sequences per program, padded sizes, warps, spills
FOLDED = {
    (dtype, n, r): RecurrenceConfig(1, n, r, num_warps, spills)
    for dtype, n, r, num_warps, spills in (
        (_F32, 64, 16, 4, 0),
        (_F32, 64, 32, 4, 0),
        (_F32, 128, 16, 4, 0),
        (_F32, 128, 32, 4, 0),
        (_F32, 256, 16, 8, 0),
        (_F32, 256, 32, 8, 0),
        (_F32, 256, 64, 8, 0),
        (_F32, 512, 16, 16, 0),
        (_F32, 512, 32, 16, 0),
        (_F32, 1024, 16, 16, 0),
        (_F64, 64, 16, 4, 0),
        (_F64, 64, 32, 4, 0),
        (_F64, 128, 16, 4, 0),
        (_F64, 128, 32, 8, 0),
        (_F64, 256, 16, 8, 0),
        (_F64, 256, 32, 16, 0),
        (_F64, 512, 16, 16, 0),
    )
}
DENSE = {
    (dtype, n): RecurrenceConfig(1, n, n, num_warps, spills)
    for dtype, n, num_warps, spills in (
        (_F32, 64, 4, 0),
        (_F32, 128, 8, 0),
        (_F32, 256, 8, 256),
        (_F64, 64, 4, 0),
        (_F64, 128, 16, 0),
    )
}
