import io
import re

import pytest
from rich.console import Console

from spectral_triton.experiments.tasks.task import Metric
from spectral_triton.experiments.training.progress import ProgressReport, summary_table

METRIC = Metric("mse", "mean squared error", 1 / 6, "always answering 1")


def show(*, terminal, quiet=False, width=120):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    with ProgressReport(console, quiet=quiet) as report:
        report.note("adding → runs")
        report.begin("spectral-lstm-seed0", 100_000, 60_004)
        report.advance(60_005, 0.25)
        report.evaluated(60_005, METRIC, 0.125, split="validation")
        report.advance(60_006, 0.54321)
    return console.file.getvalue()


def last_line(shown):
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", shown).splitlines()]
    return [line for line in lines if line][-1]


def test_terminal_shows_a_bar():
    shown = last_line(show(terminal=True, width=130))
    for part in ("spectral-lstm-seed0", " 60%", "60006/100000", "loss 0.543", "mse 0.125"):
        assert part in shown
    assert "━━━━━━━━" in shown
    assert re.search(r"\d:\d\d passed", shown)
    assert re.search(r"\S+ left", shown)


@pytest.mark.parametrize(
    ("width", "kept"),
    [
        (80, ("spectral-lstm-seed0", " 60%", " left", "loss 0.543", " mse 0.125")),
        (60, ("spectral-lstm-seed0", " 60%", " left", " mse 0.125")),
        (40, ("spectral-lstm-seed0", " 60%", "mse 0.125")),
        (10, ("spectral",)),
    ],
)
def test_narrow_terminals_lose_what_matters_least_and_nothing_is_cut(width, kept):
    shown = last_line(show(terminal=True, width=width))
    assert len(shown) < width
    for part in kept:
        assert part in shown
    assert ("…" in shown) == (width == 10)


def test_elsewhere_a_line_for_each_evaluation():
    lines = show(terminal=False, width=30).splitlines()
    assert lines == [
        "adding → runs",
        "spectral-lstm-seed0  step 60005/100000  validation mse 0.125",
    ]


def test_quiet_shows_nothing():
    assert show(terminal=False, quiet=True) == ""
    assert "lstm" not in show(terminal=True, quiet=True)


@pytest.mark.parametrize(("higher", "bold"), [(False, "0.01"), (True, "0.2")])
def test_table_names_the_best(higher, bold):
    metric = Metric("mse", "error", 1 / 6, "always answering 1", higher_is_better=higher)
    summaries = [
        {
            "model": model,
            "seed": 0,
            "parameters": 1234,
            "test": {"mse": value},
            "tested_step": 9,
            "seconds": 75.0,
            "timed_steps": steps,
        }
        for model, value, steps in (("spectral", 0.01, 100), ("lstm", 0.2, 0))
    ]
    table = summary_table("adding", metric, summaries)
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["model"] == ["spectral", "lstm"]
    assert columns["params"] == ["1,234", "1,234"]
    assert [cell for cell in columns["test mse"] if "bold" in cell] == [f"[bold]{bold}[/]"]
    assert columns["ms/step"] == ["750.0", "-"]
    assert columns["training time"] == ["1:15", "1:15"]
    assert table.caption.startswith("always answering 1: mse 0.1667")


def test_table_fits_60_columns():
    summary = {
        "model": "spectral-lstm",
        "seed": 0,
        "parameters": 94_012,
        "test": {"mse": 0.0123456},
        "tested_step": 10_000,
        "seconds": 4000.0,
        "timed_steps": 10_000,
    }
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(summary_table("adding", METRIC, [summary], width=60))
    shown = console.file.getvalue()
    for part in ("spectral-lstm", "94,012", "0.01235", "10,000", "400.0", "1:06:40"):
        assert part in shown
    assert "…" not in shown
