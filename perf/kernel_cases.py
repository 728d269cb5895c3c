"""What the static report compiles: one case for each configuration of a kernel, and some modes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from spectral_triton.kernels import configuration

NAMES = {torch.float32: "fp32", torch.float64: "fp64"}
REFLECTOR_SPILLS = 128  # bytes a thread of the reflector kernels may spill


class Case(NamedTuple):
    """One kernel to compile: ``main`` ones are compiled for every target."""

    title: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    spills: int
    main: bool


def recurrence_cases() -> Iterator[Case]:
    for table in (configuration.FOLDED, configuration.DENSE):
        for (dtype, *_), config in table.items():
            dense = table is configuration.DENSE
            for paired in (False, True) if config.pairs else (False,):
                for direction in ("fwd", "bwd"):
                    own = config._replace(block_b=1 + paired)
                    main = direction == "fwd" and not paired
                    yield _recurrence(direction, dtype, own, dense, main=main)
    small = configuration.FOLDED[torch.float32, 128, 32]
    for nonlinearity in ("identity", "relu", "leaky_relu", "modrelu"):
        yield _recurrence("fwd", torch.float32, small, False, nonlinearity=nonlinearity)
        yield _recurrence("bwd", torch.float32, small, False, nonlinearity=nonlinearity)
    for direction in ("fwd", "bwd"):
        big = configuration.FOLDED[torch.float32, 512, 32]
        yield _recurrence(direction, torch.float32, big, False, packed=True)
        yield _recurrence(direction, torch.float32, big, False, storage="bf16")
        pair = big._replace(block_b=2)
        yield _recurrence(direction, torch.float32, pair, False, packed=True, reverse=True)


def _recurrence(
    direction: str,
    dtype: torch.dtype,
    config: configuration.RecurrenceConfig,
    dense: bool,
    *,
    nonlinearity: str = "tanh",
    packed: bool = False,
    reverse: bool = False,
    storage: str | None = None,
    main: bool = False,
) -> Case:
    name = NAMES[dtype]
    constants = {
        "NONLINEARITY": nonlinearity,
        "SLOPE": 0.01,
        "DENSE": dense,
        "PACKED": packed,
        "REVERSE": reverse,
        **config.constants(),
    }
    constants |= {} if packed else {"offsets_ptr": None}
    constants |= {"scale_ptr": None, "q_ptr": None} if dense else {}
    constants |= {} if nonlinearity == "modrelu" or direction == "bwd" else {"bias_ptr": None}
    states = ("x_ptr", "h0_ptr", "y_ptr", "grad_y_ptr", "grad_z_ptr", "grad_h0_ptr")
    types = dict.fromkeys(states, f"*{storage or name}")
    types |= dict.fromkeys(("scale_ptr", "p_ptr", "q_ptr", "bias_ptr"), f"*{name}")
    types |= {"offsets_ptr": "*i64"}
    form = "dense" if dense else f"folded r={config.block_r}"
    extras = [nonlinearity] * (nonlinearity != "tanh") + ["packed"] * packed
    extras += ["reverse"] * reverse + [f"x {storage}"] * (storage is not None)
    title = f"{form} {direction}, n={config.block_n}, {name}"
    title += f", {config.block_b} per program" * (config.block_b > 1) + "".join(
        f", {extra}" for extra in extras
    )
    kernel = f"recurrence.recurrence_{direction}_kernel"
    return Case(title, kernel, types, constants, config.num_warps, config.spills, main)


def grid_cases() -> Iterator[Case]:
    for (dtype, _), config in configuration.GRID.items():
        for direction in ("fwd", "bwd"):
            yield _grid(direction, dtype, config, main=direction == "fwd")
    config = configuration.GRID[torch.float32, 1024]
    for direction in ("fwd", "bwd"):
        yield _grid(direction, torch.float32, config, packed=True)
        yield _grid(direction, torch.float32, config, barrier=False)


def _grid(
    direction: str,
    dtype: torch.dtype,
    config: configuration.GridConfig,
    *,
    packed: bool = False,
    barrier: bool = True,
    main: bool = False,
) -> Case:
    name = NAMES[dtype]
    constants = {
        "NONLINEARITY": "tanh",
        "SLOPE": 0.0,
        "PACKED": packed,
        "REVERSE": packed,
        "BARRIER": barrier,
        **config.constants(),
    }
    constants |= {} if packed else {"offsets_ptr": None}
    constants |= {} if direction == "bwd" else {"bias_ptr": None}
    states = ("x_ptr", "h0_ptr", "y_ptr", "grad_y_ptr", "grad_z_ptr", "grad_h0_ptr", "weight_ptr")
    types = dict.fromkeys(states, f"*{name}") | {"offsets_ptr": "*i64", "counters_ptr": "*i32"}
    title = f"grid {direction}, n={config.block_n}, {name}" + ", packed, reverse" * packed
    title += ", one step" * (not barrier)
    kernel = f"grid_recurrence.grid_{direction}_kernel"
    return Case(title, kernel, types, constants, config.num_warps, config.spills, main)


def reflector_cases() -> Iterator[Case]:
    sizes = (
        (64, 32),
        (128, 32),
        (256, 32),
        (512, 32),
        (512, 16),
        (1024, 16),
        (2048, 8),
        (8192, 16),
    )
    for dtype in (torch.float32, torch.float64):
        for n, block_size in sizes:
            if dtype == torch.float64 and n in (512, 1024, 2048):
                block_size //= 2
            main = n in (64, 1024, 8192) and dtype == torch.float32
            yield _apply(n, block_size, 64, dtype, main)
            yield _apply(n, block_size, 1024, dtype, main=False)
            yield _t_factor(n, block_size, dtype, main)


def _apply(n: int, block_size: int, num_rows: int, dtype: torch.dtype, main: bool) -> Case:
    config, name = configuration.apply_config(n, block_size, num_rows, dtype), NAMES[dtype]
    constants = {
        "TRANSPOSE": True,
        "STORE_COEFFICIENTS": True,
        "BLOCK_ROWS": config.block_rows,
        "BLOCK_K": config.block_k,
        "BLOCK_N": config.block_n,
        "WARPS": config.num_warps,
        "LANES_N": config.lanes_n,
    }
    constants |= {"EVEN_N": True} if config.resident else {}
    pointers = ("x_ptr", "v_ptr", "t_ptr", "y_ptr", "coefficient_ptr")
    kernel = f"compact_wy.apply_{'resident' if config.resident else 'tiled'}_kernel"
    title = f"apply, n={n}, block of {block_size}, {name}, {config.block_rows} per program"
    types = dict.fromkeys(pointers, f"*{name}")
    return Case(title, kernel, types, constants, config.num_warps, REFLECTOR_SPILLS, main)


def _t_factor(n: int, block_size: int, dtype: torch.dtype, main: bool) -> Case:
    config, name = configuration.t_factor_config(n, block_size, dtype), NAMES[dtype]
    constants = {
        "BLOCK_K": config.block_k,
        "BLOCK_N": config.block_n,
        "WARPS": config.num_warps,
        "LANES_N": config.lanes_n,
        "TILED": config.block_n < n,
    }
    types = dict.fromkeys(("v_ptr", "t_ptr"), f"*{name}")
    title = f"T factor, n={n}, block of {block_size}, {name}"
    kernel = "t_factor.t_factor_fwd_kernel"
    return Case(title, kernel, types, constants, config.num_warps, REFLECTOR_SPILLS, main)
