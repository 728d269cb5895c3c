"""Turns reports into a page with tables and plots, or compares two of them.

python perf/report.py page perf/reports/MACHINE/full.json
python perf/report.py compare [OLD.json NEW.json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from records import OURS, Record, Report, exponent, load, machine_folder
from targets import TARGETS

BOTH = "forward+backward"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; all columns but the first are figures."""
    lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.2f}"


def _sizes(record: Record) -> str:
    return ", ".join(f"{name} = {value}" for name, value in record.sizes.items())


def machine(report: Report) -> list[str]:
    """What the figures were measured on."""
    info = report.raw["machine_info"]
    load_average = report.raw.get("load_average", {})
    peers = ", ".join(f"{name} {version}" for name, version in info["peers"].items())
    loads = " and ".join(f"{values[0]:.2f}" for values in load_average.values())
    commit = report.raw["commit_info"]
    changed = " with uncommitted changes" if commit.get("dirty") else ""
    left_out = {(item["contender"], item["reason"]) for item in report.raw.get("left_out", [])}
    lines = [
        f"* {info['cpu'].get('brand_raw', info['machine'])}, {info['cores']} cores, "
        f"{info['memory_bytes'] / 2**30:.0f} GiB; {info['threads']} threads, {info['system']}",
        f"* Python {info['python_version']}, PyTorch {info['torch']} ({info['blas']}), "
        f"Triton {info['triton']}; {peers}",
        f"* {report.raw['datetime'][:16]} UTC, commit {commit['id'][:10]}{changed}; "
        f"load average at start and end {loads}",
    ]
    return lines + [f"* not timed: {name}: {reason}" for name, reason in sorted(left_out)]


def contest(records: list[Record]) -> list[str]:
    """All contenders of one case, the fastest first."""
    ours = next((r for r in records if r.contender == OURS), None)
    title = f"### {records[0].op}, {records[0].way}, {_sizes(records[0])}"
    rows = []
    for record in sorted(records, key=lambda r: r.seconds):
        low, high = record.ratio_range
        beside = f"{record.ratio:.2f} ({low:.2f} to {high:.2f})"
        if record is ours:
            beside = f"1; {beside} × {record.against}"
        rows.append(
            (
                f"**{record.contender}**" if record is ours else record.contender,
                _duration(record.seconds),
                f"{_duration(record.quartiles[0])} to {_duration(record.quartiles[1])}",
                str(record.rounds),
                beside,
                _bytes(record.notes.get("peak_bytes")),
            )
        )
    header = ("", "median", "quartiles", "rounds", "times ours (10 to 90 %)", "peak MiB")
    return [title, "", *table(header, rows), ""]


def alone(records: list[Record]) -> list[str]:
    """Cases that only ours took part in, one row each."""
    rows = []
    for r in records:
        low, high = r.ratio_range
        ratio = f"{r.ratio:.2f} ({low:.2f} to {high:.2f})"
        rows.append((f"{r.op}, {r.way}", _sizes(r), _duration(r.seconds), ratio, r.against))
    header = ("", "sizes", "median", "times the reference (10 to 90 %)", "reference")
    return [*table(header, rows), ""]


def growth(report: Report) -> list[str]:
    """Fitted exponents of ours and of what it is compared to."""
    sweeps = (
        ("householder_product", "n", {}, OURS),
        ("householder_product", "n", {}, "torch householder_product"),
        ("householder_product", "n", {}, "torch orthogonal, Cayley"),
        ("linear", "k", {"n": 512, "batch": 32}, OURS),
        ("linear", "batch", {"n": 512, "k": 512}, OURS),
        ("linear", "batch", {"n": 512, "k": 16}, OURS),
        ("rnn", "n", {"k": 16, "T": 200, "batch": 64}, OURS),
        ("rnn", "n", {"k": 16, "T": 200, "batch": 64}, "nn.RNN"),
        ("rnn", "batch", {"n": 512, "k": 16, "T": 200}, OURS),
    )
    rows = []
    for op, size, fixed, contender in sweeps:
        found = [r for r in report.select(op, contender, BOTH) if fixed.items() <= r.sizes.items()]
        value = exponent(found, size)
        if value is not None:
            values = sorted({r.sizes[size] for r in found})
            at = ", ".join(f"{name} = {number}" for name, number in fixed.items())
            grown = f"{size} = {values[0]} to {values[-1]}"
            rows.append((f"{op}, {contender}", grown, at, f"{size}^{value:.2f}"))
    return [*table(("", "over", "at", "time grows as"), rows), ""] if rows else []


def page(reports: list[Report], folder: Path, plots: list[str]) -> str:
    """The whole page as Markdown."""
    lines = ["# Benchmarks on the CPU", "", "Made by `perf/report.py`; method in `perf/README.md`."]
    for report in reports:
        threads = report.raw["machine_info"]["threads"]
        lines += ["", f"## {report.path.stem}, threads: {threads}", "", *machine(report), ""]
        aims = [line for target in TARGETS if (line := target.line(report))]
        if aims:
            header = ("aims", "aim", "measured", "")
            lines += [*table(header, aims), ""]
        lines += growth(report)
        if report is reports[0]:
            lines += [line for plot in plots for line in (f"![{Path(plot).stem}]({plot})", "")]
        cases: dict[tuple[object, ...], list[Record]] = {}
        for record in report.records:
            cases.setdefault(record.case, []).append(record)
        shared = [records for records in cases.values() if len(records) > 1]
        single = [records[0] for records in cases.values() if len(records) == 1]
        for records in shared:
            lines += contest(records)
        if single:
            lines += ["### Against one reference only", "", *alone(single)]
        memory = list(report.select("recurrence", OURS))
        if memory:
            rows = [
                (
                    _sizes(r),
                    _bytes(r.notes["output_bytes"]),
                    _bytes(r.notes["held_bytes"]),
                    _bytes(r.notes["held_by_rnn"]),
                )
                for r in memory
            ]
            header = ("kept until backward, MiB", "output", "beyond it, ours", "nn.RNN")
            lines += ["### Memory of the recurrence", "", *table(header, rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def compare(old: Report, new: Report, tolerance: float) -> int:
    """Prints our ratios in both; 1 if any rose beyond the noise of both runs and the tolerance.

    Every figure is the ratio to a reference timed in the same run. It counts as worse when the
    fast end of its rounds is above the slow end of the old ones by more than the tolerance.
    """
    before = {r.case: r for r in old.records if r.contender == OURS}
    rows, worse = [], 0
    for record in new.records:
        base = before.get(record.case)
        if record.contender != OURS or base is None or base.against != record.against:
            continue
        is_worse = record.ratio_range[0] > base.ratio_range[1] * (1 + tolerance)
        worse += is_worse
        verdict = "WORSE" if is_worse else ""
        figures = f"{base.ratio:.2f}", f"{record.ratio:.2f}", verdict
        rows.append((f"{record.op}, {record.way}, {_sizes(record)}", record.against, *figures))
    print("\n".join(table(("ours over", "reference", "before", "after", ""), rows)))
    if not rows:
        print("the reports have no case in common", file=sys.stderr)
    return int(worse > 0 or not rows)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_page = commands.add_parser("page", help="writes README.md and plots beside the reports")
    of_page.add_argument("reports", nargs="+", type=Path)
    of_compare = commands.add_parser("compare", help="fails where ours became slower")
    folder = machine_folder()
    of_compare.add_argument("old", type=Path, nargs="?", default=folder / "quick.json")
    of_compare.add_argument("new", type=Path, nargs="?", default=folder / "new.json")
    of_compare.add_argument("--tolerance", type=float, default=0.25)
    arguments = parser.parse_args()
    if arguments.command == "compare":
        for path in (arguments.old, arguments.new):
            if not path.exists():
                parser.error(f"there is no {path}; see perf/README.md for how to make it")
        return compare(load(arguments.old), load(arguments.new), arguments.tolerance)
    from plots import draw_all

    reports, folder = [load(path) for path in arguments.reports], arguments.reports[0].parent
    plots = draw_all(reports[0], folder)
    (folder / "README.md").write_text(page(reports, folder, plots))
    print(folder / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
