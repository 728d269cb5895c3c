"""Puts faults into the source, one at a time, and says which tests notice them.

    python tests/mutations [kernels] [library] [--only TEXT] [--report FILE.md] [--compiled PYTHON]

The lists are ``kernels.toml`` and ``library.toml`` beside this file. A fault is a piece of a file
and what takes its place, in a copy of the package; ``tests`` are to notice, a name of the list's
own table or arguments of pytest. What fails without any fault would prove nothing, so those tests
run first in a copy as it is. Faults in kernels that the interpreter does not notice go, with
``--compiled``, to the tests on the compiled form, run by that Python (see ``make test-compiled``).
A fault that nothing notices is a survivor, and the exit status says so.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
LISTS = ("kernels", "library")
LIMIT = 300
"""Seconds that tests may take; a fault that makes them take longer is noticed."""

REASONS = {
    "past the end": "out of bounds",
    "before the start": "out of bounds",
    "KernelFault": "fault",
    "nothing orders": "order",
}
"""What a failed test on the compiled form says, in two words."""


class Fault(NamedTuple):
    """``old`` becomes ``new`` at its first place in ``file``; ``tests`` are to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


class Verdict(NamedTuple):
    """Whether tests failed, and the first that did."""

    noticed: bool
    by: str


def read_faults(name: str) -> list[Fault]:
    """Those of one of the lists."""
    content = tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))
    known = content["tests"]
    faults = [Fault(**fault) for fault in content["fault"]]
    return [fault._replace(tests=known.get(fault.tests, fault.tests)) for fault in faults]


def copy_package(folder: Path, fault: Fault | None) -> None:
    """A copy of the package and its tests, with the fault in it."""
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("spectral_triton", "kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    (folder / "spectral_triton" / "kernels").symlink_to("../kernels")
    if fault is not None:
        file = folder / fault.file
        text = file.read_text(encoding="utf-8")
        assert fault.old in text, f"{fault.name}: {fault.file} holds no such text"
        file.write_text(text.replace(fault.old, fault.new, 1), encoding="utf-8")


def run_tests(command: list[str], tests: str, folder: Path, limit: int | None = LIMIT) -> Verdict:
    """Runs tests in a copy until one fails."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONSAFEPATH": "1"}
    arguments = [*command, "-q", "-x", "-p", "no:cacheprovider", *shlex.split(tests)]
    try:
        run = subprocess.run(
            arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return Verdict(True, "no end")
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if run.returncode not in (0, 1, 2) and 0 < run.returncode < 128:  # beyond, a signal ended it
        raise RuntimeError(f"{shlex.join(arguments)}: {run.returncode}\n{run.stdout[-3000:]}")
    named = failed[0].split("::")[-1].split(" ")[0].split("[")[0] if failed else "crash"
    reason = next((w for w in REASONS if any(w in line for line in failed)), "")
    by = f"{named} ({REASONS[reason]})" if reason else named
    return Verdict(run.returncode != 0, by)


def require_passing(command: list[str], selections: list[str]) -> None:
    """RuntimeError unless the tests pass without a fault; those of whole files in one run."""
    chosen = [tests for tests in dict.fromkeys(selections) if " -k " in tests]
    files = [file for tests in selections if " -k " not in tests for file in tests.split()]
    with tempfile.TemporaryDirectory() as name:
        copy_package(Path(name), None)
        for tests in [" ".join(dict.fromkeys(files)), *chosen]:
            verdict = run_tests(command, tests, Path(name), limit=None) if tests else None
            if verdict is not None and verdict.noticed:
                raise RuntimeError(f"without a fault fails {verdict.by}")


def judge(fault: Fault, suites: dict[str, list[str]]) -> dict[str, Verdict]:
    """What each suite says, asked in turn until one notices."""
    verdicts: dict[str, Verdict] = {}
    with tempfile.TemporaryDirectory() as name:
        copy_package(Path(name), fault)
        for suite, command in suites.items():
            if not any(verdict.noticed for verdict in verdicts.values()):
                verdicts[suite] = run_tests(command, fault.tests, Path(name))
    return verdicts


def table(faults: list[Fault], suites: dict[str, list[str]], jobs: int) -> tuple[list[str], int]:
    """Lines of a table of all verdicts, printed as they come, and how many faults survive."""
    lines = [f"| fault | file | {' | '.join(suites)} |", f"|---|---|{'---|' * len(suites)}"]
    survivors = 0
    require_passing(next(iter(suites.values())), [fault.tests for fault in faults])
    with ThreadPoolExecutor(jobs) as pool:
        judged = pool.map(lambda fault: judge(fault, suites), faults)
        for fault, verdicts in zip(faults, judged, strict=True):
            survivors += not any(verdict.noticed for verdict in verdicts.values())
            asked = (verdicts.get(suite, Verdict(True, "not asked")) for suite in suites)
            cells = (verdict.by if verdict.noticed else "**no test**" for verdict in asked)
            lines.append(f"| {fault.name} | {fault.file} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines, survivors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lists", nargs="*", metavar="LIST", help="kernels or library; both if none")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--report", type=Path, help="write the tables to this file")
    parser.add_argument("--compiled", type=Path, help="a Python that can run compiled_form.py")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time")
    options = parser.parse_args()
    if unknown := set(options.lists) - set(LISTS):
        parser.error(f"no list {', '.join(unknown)}: choose from {', '.join(LISTS)}")
    interpreted = [sys.executable, "-c", "import pytest; raise SystemExit(pytest.main())"]
    parts = [
        "# Faults put into the source, and the tests that notice\n\nWritten by `make "
        "test-mutations`: one fault at a time, in a copy of the package, with the first test that "
        "fails."
    ]
    surviving = 0
    for name in options.lists or LISTS:
        suites = {"first test that fails": interpreted}
        text = "## The library\n"
        if name == "kernels":
            suites = {"interpreter": interpreted}
            if options.compiled:
                suites["compiled"] = [str(options.compiled.absolute()), "tests/compiled_form.py"]
            text = (
                "## The kernels\n\nThe interpreter checks neither bounds nor races: a crash is a "
                "heap that the fault has corrupted. What it does not notice (**no test**) goes to "
                "the tests on the compiled form.\n"
            )
        faults = [fault for fault in read_faults(name) if options.only in fault.name]
        lines, survivors = table(faults, suites, options.jobs)
        surviving += survivors
        count = f"{len(faults)} faults, {survivors} survivors."
        print(f"{name}: {count}", flush=True)
        parts.append("\n".join([text, count, "", *lines]))
    if options.report:
        options.report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return int(surviving > 0)


if __name__ == "__main__":
    sys.exit(main())
