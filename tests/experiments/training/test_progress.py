import io

import pytest
from rich.console import Console

from spectral_triton.experiments.tasks.task import Metric
from spectral_triton.experiments.training.progress import ProgressReport, summary_table

METRIC = Metric("mse", "mean squared error", 1 / 6, "always answering 1")


def show(*, terminal, quiet=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    with ProgressReport(console, quiet=quiet) as report:
        report.note("adding → runs")
        report.begin("lstm-seed0", 10, 4)
        report.advance(5, 0.25)
        report.evaluated(5, METRIC, 0.125, split="validation")
        report.advance(6, 0.5)
    return console.file.getvalue()


def test_terminal_shows_a_bar():
    shown = show(terminal=True)
    for part in ("lstm-seed0", "6/10", "loss 0.5", "validation mse 0.125", "left"):
        assert part in shown


def test_elsewhere_a_line_for_each_evaluation():
    lines = show(terminal=False).splitlines()
    assert lines == ["adding → runs", "lstm-seed0  step 5/10 | validation mse 0.125"]


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
    assert table.caption == "always answering 1: mse 0.1667"
