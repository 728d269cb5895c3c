"""Puts faults into the kernels, one at a time, and says which tests notice them.

    python tests/mutations.py [--only TEXT] [--report FILE.md] [--compiled PYTHON]

Each fault is a piece of a kernel's source and what it is replaced with, in a copy of the package.
Two suites look for it: the tests in Triton's interpreter, and with ``--compiled`` those on the
compiled form, run by that interpreter of Python (see ``make test-compiled``). A fault that neither
notices is a survivor, and the exit status says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RECURRENCE = "tests/kernels/test_recurrence.py tests/kernels/test_sequence.py"
BARRIER = "tests/kernels/test_barrier_order.py tests/kernels/test_grid_recurrence.py"
# A part of each suite, for a fault that is not noticed takes all of it.
MODES = (
    f"{RECURRENCE} -k '(every_mode and dtype1 and (tanh or leaky_relu)) or zero or nan or int32"
    " or (two_sequences and dtype1) or (folded_sizes and dtype0) or tile_of_offsets or everywhere'"
)
STEPS = "tests/kernels/test_sequence.py"
REFLECTORS = "tests/kernels/test_t_factor.py tests/kernels/test_compact_wy.py -k 'not dtype0'"
GRID = "tests/kernels/test_grid_recurrence.py -k 'not entry and not own_choice and not one_launch'"
ORDER = f"{BARRIER} -k '(ordered and 0-sizes0) or (one_launch and sizes0)'"


class Fault(NamedTuple):
    """``old`` becomes ``new`` at its first place in ``file``; ``tests`` are to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


FAULTS = [
    # Masks, and the edges of tensors
    Fault(
        "store of features beyond n",
        "recurrence.py",
        "inside = feature < tl.where(steps > 0, N, 0)",
        "inside = feature < tl.where(steps > 0, BLOCK_N, 0)",
        MODES,
    ),
    Fault(
        "store for sequences that have ended",
        "recurrence.py",
        "mask = (sequence < size) & inside\n        h =",
        "mask = inside\n        h =",
        MODES,
    ),
    Fault(
        "h0 read for sequences beyond the batch",
        "recurrence.py",
        "h0_ptr + state_cells, (sequence < B) & inside",
        "h0_ptr + state_cells, inside",
        MODES,
    ),
    Fault(
        "gradient of h0 stored beyond the batch",
        "recurrence.py",
        "exists = (sequence < B) & inside",
        "exists = inside",
        MODES,
    ),
    Fault(
        "ranks beyond r read",
        "_low_rank.py",
        "mask = rank < R",
        "mask = rank < BLOCK_R",
        MODES,
    ),
    Fault(
        "features of a factor beyond n read",
        "_low_rank.py",
        "mask = mask & (feature < N)",
        "mask = mask & (feature < BLOCK_N)",
        MODES,
    ),
    Fault(
        "columns of a dense W beyond n read",
        "_dense.py",
        "mask = (row < N) & (column < N)",
        "mask = (row < N) & (column < BLOCK_N)",
        MODES,
    ),
    Fault(
        "rows of a W on a grid beyond n read",
        "_dense_rows.py",
        "mask = (row < N) & (column < N)",
        "mask = column < N",
        GRID,
    ),
    Fault(
        "offsets beyond the last step read",
        "_sequence.py",
        "offsets_ptr + t + 1, t < T,",
        "offsets_ptr + t + 1, t < T + 1,",
        MODES,
    ),
    Fault(
        "steps out of range not clamped",
        "_sequence.py",
        "step = tl.minimum(tl.maximum(step, 0), last)",
        "step = step * 1",
        MODES,
    ),
    Fault(
        "last block of reflectors not cut",
        "compact_wy.py",
        "size = tl.minimum(K - first, block_size)\n    block_ptr",
        "size = block_size\n    block_ptr",
        REFLECTORS,
    ),
    Fault(
        "vectors beyond the last of a matrix written",
        "compact_wy.py",
        "mask = (row < ROWS) & (feature < N)",
        "mask = (feature < N) & (row >= 0)",
        REFLECTORS,
    ),
    Fault(
        "last tile of long vectors not cut",
        "compact_wy.py",
        "mask = (row < ROWS) & (start + feature < N)",
        "mask = (row < ROWS) & (feature < N)",
        REFLECTORS,
    ),
    Fault(
        "coefficients of the next vector overwritten",
        "compact_wy.py",
        "mask & (index < block_size) & (first + index < K)",
        "mask & (index < block_size)",
        REFLECTORS,
    ),
    Fault(
        "row after the last reflector fetched",
        "t_factor.py",
        "next_ptr = v_ptr + tl.minimum(j + 1, size - 1) * N",
        "next_ptr = v_ptr + (j + 1) * N",
        REFLECTORS,
    ),
    # Offsets, strides and tiles
    Fault(
        "input of the wrong step fetched",
        "recurrence.py",
        "x_1 = tl.load(x_ptr + start_2 * N",
        "x_1 = tl.load(x_ptr + start_1 * N",
        MODES,
    ),
    Fault(
        "state stored one step late",
        "recurrence.py",
        "tl.store(y_ptr + start * N",
        "tl.store(y_ptr + start_1 * N",
        MODES,
    ),
    Fault(
        "strides of a factor exchanged",
        "_low_rank.py",
        "feature * stride_fn + rank * stride_fr",
        "feature * stride_fr + rank * stride_fn",
        MODES,
    ),
    Fault(
        "first row of a step in int32",
        "_sequence.py",
        "start = step.to(tl.int64) * B",
        "start = step * B",
        STEPS,
    ),
    Fault(
        "first row of a packed step in int32",
        "_sequence.py",
        "start = tl.load(offsets_ptr + step).to(tl.int64)",
        "start = tl.load(offsets_ptr + step).to(tl.int32)",
        STEPS,
    ),
    Fault(
        "length of a sequence off by one",
        "_sequence.py",
        "((high - low) > sequence)",
        "((high - low) >= sequence)",
        MODES,
    ),
    Fault(
        "only the first 128 steps counted",
        "_sequence.py",
        "for start in range(0, T, 128):",
        "for start in range(0, tl.minimum(T, 128), 128):",
        MODES,
    ),
    Fault(
        "rows of steps that do not exist",
        "_sequence.py",
        "tl.where((step >= 0) & (step < T), size, 0)",
        "tl.where((step >= -1) & (step <= T), size, 0)",
        GRID,
    ),
    Fault(
        "every matrix gets the first one's reflectors",
        "compact_wy.py",
        "v_ptr += matrix * K * N",
        "v_ptr += matrix * 0",
        REFLECTORS,
    ),
    Fault(
        "grid: one step at a time always the first",
        "grid_recurrence.py",
        "t = T - 1 - begin if REVERSE else begin",
        "t = T - 1 if REVERSE else begin * 0",
        GRID,
    ),
    # Mathematics
    Fault(
        "P and Q exchanged backwards",
        "recurrence.py",
        "y, h0, (scale, q, p), *options",
        "y, h0, (scale, p, q), *options",
        MODES,
    ),
    Fault(
        "W instead of its transpose backwards",
        "recurrence.py",
        "(None, weight.mT, None)",
        "(None, weight, None)",
        MODES,
    ),
    Fault(
        "initial state forgotten",
        "recurrence.py",
        "(sequence < B) & inside, other=0.0).to(dtype)",
        "(sequence < B) & inside, other=0.0).to(dtype) * 0.0",
        MODES,
    ),
    Fault(
        "reverse goes forwards",
        "recurrence.py",
        "direction = -1 if REVERSE else 1",
        "direction = 1",
        MODES,
    ),
    Fault(
        "packed and reversed: the shorter start too early",
        "recurrence.py",
        "h = tl.where(mask, y, h) if PACKED and REVERSE else y",
        "h = y",
        MODES,
    ),
    Fault(
        "gradient of later steps forgotten",
        "recurrence.py",
        "activate_bwd(dy.to(dtype) + dh,",
        "activate_bwd(dy.to(dtype),",
        MODES,
    ),
    Fault(
        "accumulator of the gradient not zero",
        "recurrence.py",
        "dh = tl.zeros((BLOCK_B * BLOCK_N,), dtype=dtype)",
        "dh = tl.full((BLOCK_B * BLOCK_N,), 1.0, dtype=dtype)",
        MODES,
    ),
    Fault(
        "accumulator of the products not zero",
        "compact_wy.py",
        "products = tl.zeros((BLOCK_ROWS, WARPS, 32 // BLOCK_K, BLOCK_K), dtype=dtype)",
        "products = tl.full((BLOCK_ROWS, WARPS, 32 // BLOCK_K, BLOCK_K), 1.0, dtype=dtype)",
        REFLECTORS,
    ),
    Fault(
        "sign of tanh",
        "_activation.py",
        "far = tl.where(z < 0, -far, far)",
        "far = tl.where(z < 0, far, far)",
        MODES,
    ),
    Fault("series of tanh", "_activation.py", "2.0 / 15.0", "2.0 / 13.0", MODES),
    Fault(
        "derivative of tanh",
        "_activation.py",
        "dy * (1.0 - y * y)",
        "dy * (1.0 - y)",
        MODES,
    ),
    Fault(
        "NaN swallowed by relu",
        "_activation.py",
        "tl.where(z <= 0, 0.0, z)",
        "tl.where(z > 0, z, 0.0)",
        MODES,
    ),
    Fault(
        "slope of leaky relu forgotten backwards",
        "_activation.py",
        "tl.where(y > 0, dy, dy * SLOPE)",
        "tl.where(y > 0, dy, dy)",
        MODES,
    ),
    Fault(
        "modrelu of zero with a positive bias",
        "_activation.py",
        "(length <= 0) | (z == 0)",
        "(length <= 0)",
        MODES,
    ),
    Fault(
        "order of the blocks of reflectors",
        "compact_wy.py",
        "first = (0 if TRANSPOSE else num_blocks - 1) * block_size",
        "first = (num_blocks - 1 if TRANSPOSE else 0) * block_size",
        REFLECTORS,
    ),
    Fault(
        "T in the place of its transpose",
        "compact_wy.py",
        "(source, target) if TRANSPOSE else (target, source)",
        "(target, source) if TRANSPOSE else (source, target)",
        REFLECTORS,
    ),
    Fault(
        "sign of T above its diagonal",
        "t_factor.py",
        "-2.0 * solved",
        "2.0 * solved",
        REFLECTORS,
    ),
    Fault(
        "a reflector of zeros reflects",
        "t_factor.py",
        "tl.where(gram > 0, 2.0, 1.0)",
        "tl.where(gram >= 0, 2.0, 1.0)",
        REFLECTORS,
    ),
    Fault(
        "padding of T not the identity",
        "t_factor.py",
        "(source >= size) & (target == source), 1.0, t)",
        "(source >= size) & (target == source), t, t)",
        REFLECTORS,
    ),
    # What several programs do to each other
    Fault(
        "two programs on a row",
        "grid_recurrence.py",
        "mask = (b + sequence < size) & (row < N) & stores",
        "mask = (b + sequence < size) & (row < N + 1) & stores",
        GRID,
    ),
    Fault(
        "two programs on a sequence",
        "grid_recurrence.py",
        "first, stride = tl.program_id(1) * BLOCK_B, tl.num_programs(1) * BLOCK_B",
        "first, stride = tl.program_id(1) * BLOCK_B, BLOCK_B",
        ORDER,
    ),
    Fault(
        "state of a sequence that has just begun",
        "_dense_rows.py",
        "tl.where(sequence < size, state_ptr, start_ptr)",
        "tl.where(sequence <= size, state_ptr, start_ptr)",
        GRID,
    ),
    Fault(
        "gradient of h0 into that of the states",
        "grid_recurrence.py",
        "tl.where(inside, grad_z_ptr + cells, grad_h0_ptr + h0_cells)",
        "tl.where(inside, grad_z_ptr + cells, grad_z_ptr + h0_cells)",
        GRID,
    ),
    Fault(
        "a missing wait",
        "grid_recurrence.py",
        "        if BARRIER:\n            wait_for(",
        "        if BARRIER and T < 0:\n            wait_for(",
        ORDER,
    ),
    Fault(
        "a wait for the step before the last",
        "grid_recurrence.py",
        "(step - begin) * tl.num_programs(0)",
        "(step - begin - 1) * tl.num_programs(0)",
        ORDER,
    ),
    Fault(
        "the counter of other sequences",
        "grid_recurrence.py",
        "counters_ptr + tl.program_id(1) * COUNTER_STRIDE",
        "counters_ptr + tl.program_id(0) * COUNTER_STRIDE",
        ORDER,
    ),
    Fault(
        "an arrival that releases nothing",
        "_grid_barrier.py",
        'sem="release"',
        'sem="relaxed"',
        ORDER,
    ),
    Fault(
        "a read before a write: an arrival ahead of the stores",
        "grid_recurrence.py",
        "        before_ptr = y_ptr + start_before * N",
        "        if BARRIER:\n            arrive(counter_ptr)\n"
        "        before_ptr = y_ptr + start_before * N",
        ORDER,
    ),
]


def mutated(fault: Fault | None, folder: Path) -> None:
    """A copy of the package and its tests with the fault in it."""
    skip = shutil.ignore_patterns("__pycache__", "experiments", "*.pyc")
    for name in ("spectral_triton", "kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "spectral_triton" / "kernels").symlink_to("../kernels")
    if fault is not None:
        file = folder / "kernels" / fault.file
        text = file.read_text()
        assert fault.old in text, f"{fault.name}: {fault.file} holds no such text"
        file.write_text(text.replace(fault.old, fault.new, 1))


def notices(command: list[str], tests: str, folder: Path) -> tuple[bool, str]:
    """Whether the suite fails, and by which test."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONSAFEPATH": "1"}
    arguments = subprocess.list2cmdline(command) + f" -q -x -p no:cacheprovider {tests}"
    try:
        run = subprocess.run(
            arguments, shell=True, cwd=folder, env=environment, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True, "no end"
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if run.returncode not in (0, 1) and 0 < run.returncode < 128:  # beyond, a signal ended it
        raise RuntimeError(f"{arguments}: exit status {run.returncode}\n{run.stdout[-3000:]}")
    named = failed[0].split("::")[1].split(" ")[0].split("[")[0] if failed else "crash"
    reason = next((w for w in WORDS if any(w in line for line in failed)), "")
    return run.returncode != 0, f"{named}{f' ({WORDS[reason]})' if reason else ''}"


WORDS = {
    "past the end": "out of bounds",
    "before the start": "out of bounds",
    "KernelFault": "fault",
    "nothing orders": "order",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--report", type=Path, help="write the list to this file")
    parser.add_argument("--compiled", type=Path, help="a Python that can run compiled_form.py")
    parser.add_argument("--all", action="store_true", help="ask the second suite in any case")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time")
    options = parser.parse_args()
    suites = {
        "interpreter": [sys.executable, "-c", "import pytest; raise SystemExit(pytest.main())"]
    }
    if options.compiled:
        suites["compiled"] = [str(options.compiled.absolute()), "tests/compiled_form.py"]

    def judge(fault: Fault) -> tuple[Fault, dict[str, tuple[bool, str]]]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            mutated(fault, folder)
            verdicts = {}
            for suite, command in suites.items():
                if options.all or not any(noticed for noticed, _ in verdicts.values()):
                    verdicts[suite] = notices(command, fault.tests, folder)
            return fault, verdicts

    lines, survivors = [], []
    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, verdicts in pool.map(judge, [f for f in FAULTS if options.only in f.name]):
            if not any(noticed for noticed, _ in verdicts.values()):
                survivors.append(fault.name)
            cells = (verdicts.get(suite, (True, "not asked")) for suite in suites)
            cells = " | ".join(by if noticed else "**no test**" for noticed, by in cells)
            lines.append(f"| {fault.name} | {fault.file} | {cells} |")
            print(lines[-1], flush=True)
    print(f"{len(lines)} faults, {len(survivors)} survivors: {', '.join(survivors) or 'none'}")
    if options.report:
        head = [
            "# Faults put into the kernels, and the tests that notice",
            "",
            "Written by `make test-mutations`: one fault at a time, in a copy of the package, with"
            " the first test that fails in Triton's interpreter, and where none does, on the"
            " compiled form. The interpreter checks neither bounds nor races: a crash is a heap"
            " that the fault has corrupted.",
            "",
            f"{len(lines)} faults, {len(survivors)} survivors.",
            "",
            f"| fault | file | {' | '.join(suites)} |",
            f"|---|---|{'---|' * len(suites)}",
        ]
        options.report.write_text("\n".join(head + lines) + "\n")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
