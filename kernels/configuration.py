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
    """Padded sizes, warps, and how a warp's 32 lanes split: ``lanes_n`` of them along features.

    ``block_b`` sequences share a program. ``pairs`` allows two where one program fills an SM;
    ``spills`` is what a thread may spill on sm_90, in bytes.
    """

    block_n: int
    block_r: int
    num_warps: int
    lanes_n: int = 8
    pairs: bool = False
    spills: int = 0
    block_b: int = 1


_F32, _F64 = torch.float32, torch.float64

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
    return f"P and Q of shape ({n}, {r}) in {dtype} exceed the registers ({_folded_sizes(dtype)})"


def dense_unserved(n: int, dtype: torch.dtype) -> str | None:
    """Why the dense recurrence has no kernel for these sizes, or None."""
    if (dtype, _recurrence_block(n)) in DENSE:
        return None
    largest = max(block for entry, block in DENSE if entry == dtype)
    return f"W of shape ({n}, {n}) in {dtype} exceeds the registers (n <= {largest})"


def folded_config(n: int, r: int, dtype: torch.dtype, batch: int) -> RecurrenceConfig:
    if reason := folded_unserved(n, r, dtype):
        raise ValueError(reason)
    return _paired(FOLDED[(dtype, *_folded_key(n, r))], batch)


def dense_config(n: int, dtype: torch.dtype, batch: int) -> RecurrenceConfig:
    if reason := dense_unserved(n, dtype):
        raise ValueError(reason)
    return _paired(DENSE[dtype, _recurrence_block(n)], batch)


def _paired(config: RecurrenceConfig, batch: int) -> RecurrenceConfig:
    """Beyond one sequence for each SM, two in one program beat two waves of programs."""
    return config._replace(block_b=2) if config.pairs and batch > _TARGET_PROGRAMS else config


def recurrence_form(n: int, r: int, dtype: torch.dtype) -> str | None:
    """The faster kernel for W h_{t-1}: "folded" or "dense"; None where neither serves.

    Folded costs 4 n r per step and sequence and has two dependent sums, dense 2 n² and one; at
    n <= 64 the second sum outweighs what it saves.
    """
    if n > 64 and folded_unserved(n, r, dtype) is None:
        return "folded"
    if dense_unserved(n, dtype) is None:
        return "dense"
    return "folded" if folded_unserved(n, r, dtype) is None else None


def describe() -> tuple[str, str, str]:
    """One line for each kernel: the sizes it serves."""
    dense = {dtype: max(n for d, n in DENSE if d == dtype) for dtype in (_F32, _F64)}
    return (
        "float32 and float64, any n and k",
        f"float32 {_folded_sizes(_F32)}; float64 {_folded_sizes(_F64)}",
        f"float32 n <= {dense[_F32]}; float64 n <= {dense[_F64]}",
    )


def _folded_sizes(dtype: torch.dtype) -> str:
    largest = {n: r for d, n, r in sorted(FOLDED, key=lambda entry: entry[1:]) if d == dtype}
    return ", ".join(f"n <= {n}: r <= {r}" for n, r in largest.items())


def _folded_key(n: int, r: int) -> tuple[int, int]:
    return _recurrence_block(n), max(16, triton.next_power_of_2(max(r, 1)))


def _recurrence_block(n: int) -> int:
    return max(64, triton.next_power_of_2(n))


# (dtype, padded n, padded r) -> how the folded recurrence runs
FOLDED = {
    (dtype, config.block_n, config.block_r): config
    for dtype, configs in {
        _F32: (
            RecurrenceConfig(64, 16, num_warps=2),
            RecurrenceConfig(64, 32, num_warps=2),
            RecurrenceConfig(128, 16, num_warps=4),
            RecurrenceConfig(128, 32, num_warps=4),
            RecurrenceConfig(256, 16, num_warps=8),
            RecurrenceConfig(256, 32, num_warps=8),
            RecurrenceConfig(256, 64, num_warps=8, lanes_n=4),
            RecurrenceConfig(512, 16, num_warps=8),
            RecurrenceConfig(512, 32, num_warps=8, pairs=True),
            RecurrenceConfig(512, 64, num_warps=16, lanes_n=4, spills=256),
            RecurrenceConfig(1024, 16, num_warps=16, pairs=True),
            RecurrenceConfig(1024, 32, num_warps=16, spills=256),
        ),
        _F64: (
            RecurrenceConfig(64, 16, num_warps=2),
            RecurrenceConfig(64, 32, num_warps=2),
            RecurrenceConfig(128, 16, num_warps=4),
            RecurrenceConfig(128, 32, num_warps=4),
            RecurrenceConfig(256, 16, num_warps=8),
            RecurrenceConfig(256, 32, num_warps=8),
            RecurrenceConfig(512, 16, num_warps=16),
        ),
    }.items()
    for config in configs
}

# (dtype, padded n) -> how the dense recurrence runs; a warp owns 32 rows of W
DENSE = {
    (dtype, config.block_n): config
    for dtype, configs in {
        _F32: (
            RecurrenceConfig(64, 64, num_warps=2),
            RecurrenceConfig(128, 128, num_warps=4),
            RecurrenceConfig(256, 256, num_warps=8, spills=256),
        ),
        _F64: (
            RecurrenceConfig(64, 64, num_warps=2),
            RecurrenceConfig(128, 128, num_warps=4, spills=256),
        ),
    }.items()
    for config in configs
}
