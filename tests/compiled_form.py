"""Runs the kernels' tests on what the compiler makes of them: ``make test-compiled``, on a CPU.

    python tests/compiled_form.py [--report FILE.md] [pytest arguments]

The interpreter of Triton runs the source of a kernel in Python. Here every launch is compiled for
sm_90, and ttsem executes Triton's intermediate form on the CPU. A test fails at the line of the
kernel that reads or writes outside a tensor, where two programs of a launch touch a cell that one
of them writes, and where two lanes of a store disagree; memory that nobody wrote holds NaN.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import math
import os
import sys
import time
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "0"
ROOT = Path(__file__).parents[1]
NEEDED = {"python": "3.12 or 3.13", "torch": "2.14.0", "triton": "3.8.0", "ttsem": "0.1.0"}
TESTS = [
    *("tests/kernels", "--ignore=tests/kernels/test_configuration.py"),
    *("tests/test_backends_agree.py", "tests/householder/test_op.py"),
]
INTERPRETED_ONLY = "its programs are processes of the interpreter; see test_barrier_order.py"


class Record:
    """What ran: outcomes by test file, launches and programs by kernel."""

    def __init__(self) -> None:
        self.outcomes: dict[str, collections.Counter[str]] = {}
        self.seconds: collections.Counter[str] = collections.Counter()
        self.skipped: dict[str, set[str]] = {}
        self.launches: collections.Counter[tuple[str, str]] = collections.Counter()
        self.programs: collections.Counter[tuple[str, str]] = collections.Counter()
        self.variants: dict[tuple[str, str], set[str]] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        config.compiled_form = True

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if item.originalname == "test_all_steps_in_one_launch":
                item.add_marker(pytest.mark.skip(reason=INTERPRETED_ONLY))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.split("::")[0]
        self.seconds[file] += report.duration
        if report.when == "call" or report.outcome != "passed":
            self.outcomes.setdefault(file, collections.Counter())[report.outcome] += 1
        if report.skipped:
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self.skipped.setdefault(reason, set()).add(report.nodeid.split("[")[0])

    def count(self, kernel: object, arguments: tuple, grid: tuple, options: dict) -> None:
        pointers = [a for a in arguments if hasattr(a, "data_ptr")]
        # States may be stored in half precision; the weight's dtype is the arithmetic's.
        dtype = str(max(pointers, key=lambda a: a.is_floating_point() * a.itemsize).dtype)[6:]
        key = kernel.fn.__name__, dtype
        self.launches[key] += 1
        self.programs[key] += math.prod(grid)
        present = tuple(a is None for a in arguments)
        self.variants.setdefault(key, set()).add(repr((present, sorted(options.items()))))

    def markdown(self, versions: str, unchecked: int) -> str:
        lines = [
            "# The kernels on their compiled form",
            "",
            f"Written by `make test-compiled` with {versions}, for sm_90, on a CPU. Every launch is"
            " compiled and its intermediate form (TTIR) executed; accesses out of bounds, races"
            " between the programs of a launch, undefined operations and memory that nobody wrote"
            " fail a test. What LLVM and ptxas do afterwards is not executed.",
            "",
            "| tests | passed | failed | skipped | seconds |",
            "|---|---:|---:|---:|---:|",
        ]
        for file, counts in sorted(self.outcomes.items()):
            numbers = " | ".join(str(counts[o]) for o in ("passed", "failed", "skipped"))
            lines.append(f"| {file} | {numbers} | {self.seconds[file]:.0f} |")
        lines += ["", "| kernel | dtype | variants | launches | programs |"]
        lines += ["|---|---|---:|---:|---:|"]
        for key in sorted(self.launches):
            numbers = len(self.variants[key]), self.launches[key], self.programs[key]
            lines.append(f"| {key[0]} | {key[1]} | {' | '.join(f'{n:,}' for n in numbers)} |")
        lines += ["", f"Launches too large for the search for races: {unchecked}.", ""]
        lines += ["Skipped:", ""]
        for reason, names in sorted(self.skipped.items()):
            names = ", ".join(f"`{name.split('::')[-1]}`" for name in sorted(names))
            lines.append(f"* {reason}: {names}")
        return "\n".join(lines) + "\n"


def missing() -> list[str]:
    """What of the pinned environment is absent or of another version."""
    problems = []
    if not (3, 12) <= sys.version_info[:2] <= (3, 13):
        found = ".".join(map(str, sys.version_info[:3]))
        problems.append(f"Python {found}, but ttsem {NEEDED['ttsem']} needs {NEEDED['python']}")
    for name in ("torch", "triton", "ttsem"):
        try:
            found = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != NEEDED[name]:
            problems.append(f"{name} {found}, but {NEEDED[name]} is needed")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, help="write the table of what ran to this file")
    options, arguments = parser.parse_known_args()
    if problems := missing():
        sys.exit("make test-compiled: " + "; ".join(problems))

    from triton.runtime.jit import JITFunction
    from ttsem import _fakedriver, harness, mlir, sanitize

    # Straight to the form that is executed, without ptxas and what comes before it.
    mlir.enable_generic_printing()
    harness.ir_for_launch = lambda record, stage, target: mlir.to_generic(
        harness._stage_text(record, stage, target), None
    )
    record = Record()
    started = time.monotonic()
    # Tensors stay where they are, on the CPU, and kernels are launched on them.
    with sanitize.session(source="<pytest>", cuda_is_cpu=False) as state:
        _fakedriver.unstub_torch_cuda()
        from spectral_triton.kernels import _launch

        _launch.INTERPRETED = True  # as far as PyTorch is concerned: kernels take CPU tensors
        execute = JITFunction.run

        def run(self, *args, grid, warmup, **kwargs):
            record.count(self, args, grid, kwargs)
            return execute(self, *args, grid=grid, warmup=warmup, **kwargs)

        JITFunction.run = run
        os.chdir(ROOT)
        if not any(a.startswith("tests/") for a in arguments):
            arguments += TESTS
        status = int(pytest.main(["-p", "no:cacheprovider", *arguments], plugins=[record]))
    seconds = time.monotonic() - started
    versions = ", ".join(f"{name} {NEEDED[name]}" for name in ("ttsem", "torch", "triton"))
    print(f"{sum(record.launches.values())} launches in {seconds:.0f} s")
    if options.report:
        options.report.write_text(record.markdown(versions, state.races_unchecked))
    if state.races_unchecked:
        print(f"{state.races_unchecked} launches were too large for the search for races")
        return status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
