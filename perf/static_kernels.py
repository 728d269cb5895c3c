"""What every configuration of the kernels costs, read from compiled code without a GPU.

    python perf/static_kernels.py                          prints the table for sm_90
    python perf/static_kernels.py --markdown perf/reports/static_kernels.md
    python perf/static_kernels.py --arch sm_80 --arch gfx942 --json out.json
    python perf/static_kernels.py --beside out-of-another-triton.json --markdown ...

With --beside the table also has the figures of reports that other versions of Triton wrote.

Registers, spills and shared memory are exact. Cycles are an estimate for one iteration of the
longest loop (a step of a recurrence, a block of reflectors): the dependent chain of one warp, from
the stall counts and scoreboards in the machine code with fixed latencies for memory; the issue
slots are what all warps of a program need on the four schedulers of an SM. The larger of the two
bounds a program alone on its SM; on published kernels the measured time was 1.2 to 1.65 times it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import triton
from kernel_cases import Case, grid_cases, recurrence_cases, reflector_cases
from spectral_triton.kernels._launch import launch_options
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}

# cycles until the result of an instruction can be used (Hopper, rounded)
LATENCY = {"LDG": 600, "LDS": 30, "LDSM": 33, "SHFL": 24, "MUFU": 22, "LDC": 30, "LDL": 35}
BARRIER = 30


class Cost(NamedTuple):
    title: str
    target: str
    registers: int
    spills: int
    shared: int
    allowed_spills: int
    wgmma: bool
    barrier: bool
    chain: int
    issue: int


def compile_case(case: Case, target: str, cycles: bool = True) -> Cost:
    """What a case costs; without ``cycles``, which take as long as all the rest, zero of them."""
    module, name = case.kernel.split(".")
    kernel = getattr(importlib.import_module(f"spectral_triton.kernels.{module}"), name)
    constants = case.constants
    if target.startswith("gfx") and constants.get("BARRIER"):
        constants = constants | {"BARRIER": False}  # written for NVIDIA
    types = {
        argument: "constexpr" if argument in constants else case.types.get(argument, "i32")
        for argument in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, a in enumerate(types) if types[a].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    options = launch_options(case.num_warps, target)
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    shared = compiled.metadata.shared
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])
        spills = 4 * int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text)[1])
        return Cost(case.title, target, registers, spills, shared, case.spills, False, False, 0, 0)
    usage = _disassemble(compiled.asm["cubin"], "--dump-resource-usage")
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    ptx = compiled.asm["ptx"]
    # Ordered as Note [Memory order of the barrier] in _grid_barrier.py says.
    barrier = all(part in ptx for part in (".gpu.release.", "ld.acquire.gpu.", "ld.global.cg."))
    chain = issue = 0
    if cycles:
        sass = _disassemble(compiled.asm["cubin"], "--dump-sass")
        chain, issue = loop_cost(sass, case.num_warps)
    own = (case.title, target, registers, stack, shared, case.spills)
    return Cost(*own, "wgmma" in ptx, barrier, chain, issue)


def _disassemble(cubin: bytes, what: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Instruction(NamedTuple):
    address: int
    opcode: str
    jump: int | None
    control: int


def _parse(sass: str) -> list[Instruction]:
    """An instruction is a line of text and two words, of which the second holds its control."""
    pattern = (
        r"/\*([0-9a-f]+)\*/\s+([^;]+);\s+/\* 0x[0-9a-f]{16} \*/\s*\n\s*/\* 0x([0-9a-f]{16}) \*/"
    )
    found = []
    for match in re.finditer(pattern, sass):
        words = [word for word in match[2].split() if not word.startswith("@")]
        opcode = words[0].split(".")[0]
        jump = re.search(r"0x([0-9a-f]+)", match[2]) if opcode == "BRA" else None
        target = int(jump[1], 16) if jump else None
        found.append(Instruction(int(match[1], 16), opcode, target, int(match[3], 16)))
    return found


def loop_cost(sass: str, num_warps: int, rounds: int = 5) -> tuple[int, int]:
    """(cycles of the dependent chain, issue slots) of one iteration of the longest loop."""
    code = _parse(sass)
    at = {instruction.address: i for i, instruction in enumerate(code)}
    loops = [
        code[at[last.jump] : i + 1]
        for i, last in enumerate(code)
        if last.jump is not None and last.jump < last.address and last.jump in at
    ]
    body = max(loops, key=len, default=[])
    now, pending, ends = 0, [0] * 6, [0]
    for _ in range(rounds if body else 0):
        for instruction in body:
            bits = instruction.control >> 41
            stall, writes, reads, waits = bits & 15, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63
            now = max([now, *(pending[j] for j in range(6) if waits >> j & 1)])
            if writes < 6:
                latency = LATENCY.get(instruction.opcode, 20)
                pending[writes] = max(pending[writes], now + latency)
            if reads < 6:
                pending[reads] = max(pending[reads], now + 12)
            now += max(stall, 1) + (BARRIER if instruction.opcode == "BAR" else 0)
        ends.append(now)
    # The first round starts with empty scoreboards, so it does not count.
    chain = (ends[-1] - ends[1]) / (rounds - 1) if body else 0
    return round(chain), len(body) * num_warps // 4


Report = dict[tuple[str, str], Cost]


def markdown(reports: dict[str, Report]) -> str:
    """One column of each kind for every version of Triton."""
    versions = list(reports)
    lines = [
        "# The kernels, compiled without a GPU",
        "",
        f"Written by `perf/static_kernels.py` with Triton {', '.join(versions)}: a number of each,"
        " in this order, or one where they agree. Registers, spills (bytes per thread) and shared"
        " memory (bytes per program) are exact; chain and issue are estimated cycles of one step of"
        " a recurrence, or of one block of reflectors (of one reflector for T); the script says"
        " how.",
        "",
        "| kernel | target | registers | spills | shared | chain | issue |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for title, target in dict.fromkeys(key for report in reports.values() for key in report):
        found = [report.get((title, target)) for report in reports.values()]
        cells = [_cell(found, name) for name in ("registers", "spills", "shared", "chain", "issue")]
        lines.append(f"| {title} | {target} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(costs: list[Cost | None], name: str) -> str:
    # No chain is no loop, not a loop of no cycles.
    estimated = name in ("chain", "issue")
    values = [
        "-" if cost is None or (estimated and not cost.chain) else str(getattr(cost, name))
        for cost in costs
    ]
    return values[0].replace("-", "") if len(set(values)) == 1 else ", ".join(values)


def report_of(file: Path) -> tuple[str, Report]:
    content = json.loads(file.read_text())
    costs = [Cost(**cost) for cost in content["costs"]]
    return content["triton"], {(cost.title, cost.target): cost for cost in costs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=TARGETS, help="default: sm_90")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--beside", type=Path, action="append", default=[], help="other --json")
    parser.add_argument("--main", action="store_true", help="only one case for each configuration")
    parser.add_argument(
        "--cycles", action="append", metavar="TITLE", help="estimate cycles of these alone"
    )
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if triton.knobs.runtime.interpret:
        sys.exit("kernels cannot be compiled under TRITON_INTERPRET=1")
    cases = {}
    for case in (*recurrence_cases(), *grid_cases(), *reflector_cases()):
        if case.main or not options.main:
            cases.setdefault(case.title, case)
    work = [
        (case, target, options.cycles is None or case.title in options.cycles)
        for target in options.arch or ["sm_90"]
        for case in cases.values()
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        costs = list(pool.map(compile_case, *zip(*work, strict=True), chunksize=4))
    reports = {triton.__version__: {(cost.title, cost.target): cost for cost in costs}}
    text = markdown(reports | dict(map(report_of, options.beside)))
    if options.json:
        report = {"triton": triton.__version__, "costs": [cost._asdict() for cost in costs]}
        options.json.write_text(json.dumps(report, indent=1))
    if options.markdown:
        options.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
