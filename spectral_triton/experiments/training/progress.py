"""What a person sees while runs are going on, and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as ProgressTask
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from spectral_triton.experiments.tasks.task import Metric


class _Rate(ProgressColumn):
    def render(self, task: ProgressTask) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s", style="progress.data.speed")


class ProgressReport:
    """A bar for each run with its rate, the time left, the loss and the best validation so far.

    Where the output is no terminal, a line for each evaluation instead; with ``quiet`` nothing
    but the final table.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=quiet or not console.is_terminal,
            refresh_per_second=4,
        )
        self._bar: Any = None
        self._label = ""
        self._total = 0
        self._best = ""

    def __enter__(self) -> ProgressReport:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, label: str, total: int, done: int) -> None:
        """A run of ``total`` steps begins, or goes on at ``done``."""
        self._label, self._total, self._best = label, total, ""
        self._bar = self._progress.add_task(label, total=total, completed=done, numbers="")

    def advance(self, step: int, loss: float) -> None:
        """``step`` steps are done; the last one had this loss."""
        self._progress.update(self._bar, completed=step, numbers=f"loss {loss:.4g}{self._best}")

    def evaluated(self, step: int, metric: Metric, value: float, *, split: str) -> None:
        """An evaluation gave ``value``."""
        self._best = f" | {split} {metric.name} {value:.4g}"
        if not self.quiet and not self.console.is_terminal:
            self.console.print(f"{self._label}  step {step}/{self._total}{self._best}")

    def note(self, message: str) -> None:
        """A line above the bar."""
        if not self.quiet:
            self.console.print(message, highlight=False, soft_wrap=True)


def summary_table(title: str, metric: Metric, summaries: Sequence[dict[str, Any]]) -> Table:
    """One row for each run; the best test result is bold, the baseline stands below."""
    table = Table(
        title=title,
        title_justify="left",
        caption=f"{metric.baseline_label}: {metric.name} {metric.baseline:.4g}",
        caption_justify="left",
    )
    columns: tuple[tuple[str, Literal["left", "right"]], ...] = (
        ("model", "left"),
        ("seed", "right"),
        ("params", "right"),
        (f"test {metric.name}", "right"),
        ("at step", "right"),
        ("ms/step", "right"),
        ("training time", "right"),
    )
    for column, justify in columns:
        table.add_column(column, justify=justify)
    best = (max if metric.higher_is_better else min)(s["test"][metric.name] for s in summaries)
    for summary in summaries:
        value = summary["test"][metric.name]
        table.add_row(
            summary["model"],
            str(summary["seed"]),
            f"{summary['parameters']:,}",
            f"[bold]{value:.4g}[/]" if value == best else f"{value:.4g}",
            f"{summary['tested_step']:,}",
            f"{1e3 * summary['seconds'] / summary['timed_steps']:.1f}"
            if summary["timed_steps"]
            else "-",
            _duration(summary["seconds"]),
        )
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
