"""The static tables of the kernels: which sizes each one serves, and with which blocks and warps.

No timing at run time, so a result never depends on what ran before. Each entry is compiled for
every architecture by the tests, which hold its spills to what it declares here. All architectures
share one table: no entry compiles worse on one of them than another choice would, once a wavefront
of 64 lanes counts as two warps (``launch_options``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from spectral_triton.kernels._launch import arithmetic_dtype


class ApplyConfig(NamedTuple):
    """Blocks of vectors, reflectors and features; ``resident``: vectors stay in registers."""

    resident: bool
    block_rows: int
    block_k: int
    block_n: int
    num_warps: int
    lanes_n: int = 8


class RecurrenceConfig(NamedTuple):
    """Padded sizes, warps, and how a warp's 32 lanes split: ``lanes_n`` of them along features.

    ``block_b`` sequences share a program. ``pairs`` allows two where one program fills an SM;
    ``spills`` is what a thread may spill, in bytes, on any architecture under any supported Triton.
    """

    block_n: int
    block_r: int
    num_warps: int
    lanes_n: int = 8
    pairs: bool = False
    spills: int = 0
    block_b: int = 1

    def constants(self) -> dict[str, int]:
        return {
            "BLOCK_B": self.block_b,
            "BLOCK_N": self.block_n,
            "BLOCK_R": self.block_r,
            "WARPS": self.num_warps,
            "LANES_N": self.lanes_n,
        }


class GridConfig(NamedTuple):
    """A dense W by rows over programs: ``rows`` of ``block_n`` columns in each.

    A warp owns ``block_n / num_warps`` columns, over which 32 / ``lanes_n`` of its lanes split.
    """

    block_n: int
    rows: int
    num_warps: int = 8
    lanes_n: int = 4
    block_b: int = 2
    spills: int = 0

    def constants(self) -> dict[str, int]:
        return {
            "BLOCK_B": self.block_b,
            "BLOCK_N": self.block_n,
            "ROWS": self.rows,
            "WARPS": self.num_warps,
            "LANES_N": self.lanes_n,
        }

    def grid(self, n: int, batch: int, processors: int) -> tuple[int, int]:
        """Programs along rows and sequences: as many of the latter as run at once.

        Each reads all states of its sequences, so that rows are not split further than they must.
        """
        row_tiles = triton.cdiv(n, self.rows)
        batch_tiles = max(1, processors // row_tiles)
        return row_tiles, max(1, min(batch_tiles, triton.cdiv(batch, self.block_b)))


# Whether W spread over several SMs is taken outside use_backend("triton"). It has not been timed.
GRID_UNFORCED = False

_F32, _F64 = torch.float32, torch.float64

# A block of reflectors and the next one live in registers together with the vectors: 64 KiB each
# of the 256 KiB an SM has, which leaves room for the products.
_BLOCK_BYTES = 64 * 1024
_TARGET_PROGRAMS = 128  # about one program per SM of a large GPU
MAX_BLOCK_SIZE = 32  # the lanes of a warp, which hold the coefficients of a block


def preferred_block_size(n: int, k: int, dtype: torch.dtype, num_rows: int = 1) -> int:
    """Reflectors per block: as many as stay in registers with n features, at most 32.

    Half of that for many vectors (``num_rows`` in all), which then share the other half.
    """
    block_bytes = _BLOCK_BYTES // (2 if num_rows > 2 * _TARGET_PROGRAMS else 1)
    fitting = block_bytes // (feature_block(n) * arithmetic_dtype(dtype).itemsize)
    fitting = min(MAX_BLOCK_SIZE, fitting if fitting >= 4 else 16)
    return min(fitting, max(4, triton.next_power_of_2(k)))


def apply_config(n: int, block_size: int, num_rows: int, dtype: torch.dtype) -> ApplyConfig:
    """For ``num_rows`` vectors in all, over every matrix of the batch."""
    shape = t_factor_config(n, block_size, dtype)
    itemsize = arithmetic_dtype(dtype).itemsize
    registers = shape.block_k * shape.block_n * itemsize // (128 * shape.num_warps)
    rows_that_fit = 4 if registers <= 32 and shape.block_n <= 1024 else 8 // itemsize
    rows_that_fill = triton.next_power_of_2(triton.cdiv(max(1, num_rows), _TARGET_PROGRAMS))
    return shape._replace(
        resident=feature_block(n) == shape.block_n,
        block_rows=min(rows_that_fit, rows_that_fill),
    )


def t_factor_config(n: int, block_size: int, dtype: torch.dtype) -> ApplyConfig:
    """For the kernel that builds T, one block of reflectors per program."""
    if block_size > MAX_BLOCK_SIZE:
        raise ValueError(f"blocks hold at most {MAX_BLOCK_SIZE} reflectors, got {block_size}")
    itemsize = arithmetic_dtype(dtype).itemsize
    block_k = max(4, triton.next_power_of_2(block_size))
    block_n = min(feature_block(n), _BLOCK_BYTES // (block_k * itemsize))
    num_warps = 16 if block_n >= 2048 else min(8, block_n // 32)
    return ApplyConfig(True, 1, block_k, block_n, num_warps)


def feature_block(n: int) -> int:
    return max(64, triton.next_power_of_2(n))


def folded_unserved(n: int, r: int, dtype: torch.dtype) -> str | None:
    """Why the folded recurrence has no kernel for these sizes, or None."""
    if (dtype, *_folded_key(n, r)) in FOLDED:
        return None
    return f"P and Q of shape ({n}, {r}) in {dtype} exceed the registers ({_folded_sizes(dtype)})"


def dense_unserved(n: int, dtype: torch.dtype, forced: bool = False) -> str | None:
    """Why the dense recurrence has no kernel for these sizes, or None.

    ``forced``: by ``use_backend("triton")``, which takes kernels that nobody has timed.
    """
    if (dtype, feature_block(n)) in DENSE:
        return None
    largest = max(block for entry, block in DENSE if entry == dtype)
    reason = f"W of shape ({n}, {n}) in {dtype} exceeds the registers of one SM (n <= {largest})"
    if n > _grid_limit(dtype):
        return f"{reason} and of all (n <= {_grid_limit(dtype)})"
    if forced or GRID_UNFORCED:
        return None
    return f'{reason}; over several SMs it runs only inside use_backend("triton")'


def needs_grid(n: int, dtype: torch.dtype) -> bool:
    """Whether a dense W goes over several SMs: where one cannot hold it, but all can."""
    return (dtype, feature_block(n)) not in DENSE and n <= _grid_limit(dtype)


def _grid_limit(dtype: torch.dtype) -> int:
    return max(block for entry, block in GRID if entry == dtype)


def folded_config(n: int, r: int, dtype: torch.dtype, batch: int) -> RecurrenceConfig:
    if reason := folded_unserved(n, r, dtype):
        raise ValueError(reason)
    return _paired(FOLDED[(dtype, *_folded_key(n, r))], batch)


def dense_config(n: int, dtype: torch.dtype, batch: int) -> RecurrenceConfig:
    if reason := dense_unserved(n, dtype):
        raise ValueError(reason)
    return _paired(DENSE[dtype, feature_block(n)], batch)


def grid_config(n: int, dtype: torch.dtype) -> GridConfig:
    """The smallest entry that holds n columns."""
    fitting = [config for (entry, block), config in GRID.items() if entry == dtype and block >= n]
    if not fitting:
        raise ValueError(dense_unserved(n, dtype, forced=True))
    return fitting[0]


def _paired(config: RecurrenceConfig, batch: int) -> RecurrenceConfig:
    """Beyond one sequence for each SM, two in one program beat two waves of programs."""
    return config._replace(block_b=2) if config.pairs and batch > _TARGET_PROGRAMS else config


def recurrence_form(n: int, r: int, dtype: torch.dtype, forced: bool = False) -> str | None:
    """The faster kernel for W h_{t-1}: "folded" or "dense"; None where neither serves.

    Folded costs 4 n r per step and sequence and has two dependent sums, dense 2 n² and one; at
    n <= 64 the second sum outweighs what it saves.
    """
    if n > 64 and folded_unserved(n, r, dtype) is None:
        return "folded"
    if dense_unserved(n, dtype, forced) is None:
        return "dense"
    return "folded" if folded_unserved(n, r, dtype) is None else None


def describe() -> tuple[str, str, str]:
    """One line for each kernel: the sizes it serves."""
    dense = {dtype: max(n for d, n in DENSE if d == dtype) for dtype in (_F32, _F64)}
    where = "" if GRID_UNFORCED else ', inside use_backend("triton") only'
    grid = f"float32 n <= {_grid_limit(_F32)}; float64 n <= {_grid_limit(_F64)}{where}"
    return (
        "float32 and float64, any n and k",
        f"float32 {_folded_sizes(_F32)}; float64 {_folded_sizes(_F64)}",
        f"float32 n <= {dense[_F32]}; float64 n <= {dense[_F64]}; over several SMs {grid}",
    )


def _folded_sizes(dtype: torch.dtype) -> str:
    largest = {n: r for d, n, r in sorted(FOLDED, key=lambda entry: entry[1:]) if d == dtype}
    return ", ".join(f"n <= {n}: r <= {r}" for n, r in largest.items())


def _folded_key(n: int, r: int) -> tuple[int, int]:
    return feature_block(n), max(16, triton.next_power_of_2(max(r, 1)))


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
            RecurrenceConfig(1024, 16, num_warps=16),
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
            RecurrenceConfig(256, 256, num_warps=8, spills=448),
        ),
        _F64: (
            RecurrenceConfig(64, 64, num_warps=2),
            RecurrenceConfig(128, 128, num_warps=4, spills=320),
        ),
    }.items()
    for config in configs
}

# (dtype, padded n) -> how a dense W is spread over a grid: 128 KiB of it, half the registers of an
# SM, in each program; a thread has 16 rows of it in float32 and 8 in float64
GRID = {
    (dtype, config.block_n): config
    for dtype, configs in {
        _F32: (
            GridConfig(512, 64, lanes_n=4),
            GridConfig(1024, 32, lanes_n=2, spills=8),  # sm_100 from Triton 3.8 on; else 0
            GridConfig(2048, 16, lanes_n=1, spills=8),  # as above
        ),
        _F64: (
            GridConfig(256, 64, lanes_n=8, spills=256),
            GridConfig(512, 32, lanes_n=4, spills=256),
            GridConfig(1024, 16, lanes_n=2, spills=256),
        ),
    }.items()
    for config in configs
}
