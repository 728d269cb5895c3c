"""What a person sees while runs are going on, and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn
from rich.progress import Task as ProgressTask
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from spectral_triton.experiments.tasks.task import Metric

SHORTEST_BAR, LONGEST_BAR = 8, 40
WIDE_TABLE = 76
"""Characters a terminal must have across for two spaces between the columns of the table."""


class _Line:
    """One run on one line of any width; what matters least is left out first."""

    def __init__(self, task: ProgressTask) -> None:
        self.task = task

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The last column stays empty: terminals differ in where the cursor is after it.
        width = options.max_width - 1
        parts = self._parts()
        for name in ("rate", "elapsed", "steps", "split", "loss", "left", "percent", "best"):
            if sum(cell_len(part) + 2 for part in parts.values()) <= width + 2:
                break
            parts.pop(name, None)
        text = Text(no_wrap=True, overflow="ellipsis")
        free = width - sum(cell_len(part) + 2 for part in parts.values())
        for name, part in parts.items():
            separator = " " if name == "best" and "split" in parts else "  "
            text.append(separator if text else "").append(part, _STYLES.get(name))
            if name == "label" and free >= SHORTEST_BAR:
                text.append("  ").append_text(self._bar(console, min(free, LONGEST_BAR)))
        text.truncate(width, overflow="ellipsis")
        yield text

    def _bar(self, console: Console, width: int) -> Text:
        bar = ProgressBar(self.task.total, self.task.completed, width)
        segments = console.render(bar, console.options.update(width=width))
        return Text.assemble(*((s.text, s.style or "") for s in segments if s.text != "\n"))

    def _parts(self) -> dict[str, str]:
        task = self.task
        total = int(task.total or 0)
        parts = {
            "label": task.description,
            "percent": f"{task.percentage:3.0f}%",
            "steps": f"{int(task.completed)}/{total}",
            "rate": f"{task.speed or 0:.1f}/s",
            "elapsed": f"{clock(task.elapsed or 0)} passed",
        }
        if not task.finished:
            remaining = task.time_remaining
            parts["left"] = f"{'-:--' if remaining is None else clock(remaining)} left"
        return {**parts, **task.fields["numbers"]}


_STYLES = {
    "label": "bold",
    "percent": "progress.percentage",
    "steps": "progress.download",
    "rate": "progress.data.speed",
    "elapsed": "progress.elapsed",
    "left": "progress.remaining",
}


class _LineColumn(ProgressColumn):
    def render(self, task: ProgressTask) -> _Line:
        return _Line(task)


class ProgressReport:
    """A line for each run with a bar, the time left, the loss and the last evaluation.

    Where the output is no terminal, a line for each evaluation instead; with ``quiet`` nothing
    but the final table.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._progress = Progress(
            _LineColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            refresh_per_second=4,
            expand=True,
        )
        self._bar: Any = None
        self._label = ""
        self._total = 0
        self._evaluated: dict[str, str] = {}

    def __enter__(self) -> ProgressReport:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, label: str, total: int, done: int) -> None:
        """A run of ``total`` steps begins, or goes on at ``done``."""
        self._label, self._total, self._evaluated = label, total, {}
        self._bar = self._progress.add_task(label, total=total, completed=done, numbers={})

    def advance(self, step: int, loss: float) -> None:
        """``step`` steps are done; the last one had this loss."""
        numbers = {"loss": f"loss {loss:.3g}", **self._evaluated}
        self._progress.update(self._bar, completed=step, numbers=numbers)

    def evaluated(self, step: int, metric: Metric, value: float, *, split: str) -> None:
        """An evaluation gave ``value``, or the training data where the task has no others."""
        self._evaluated = {"split": split, "best": f"{metric.name} {value:.4g}"}
        if not self.quiet and not self.console.is_terminal:
            self.console.print(
                f"{self._label}  step {step}/{self._total}  {split} {metric.name} {value:.4g}",
                soft_wrap=True,
                highlight=False,
            )

    def note(self, message: str) -> None:
        """A line above the bar."""
        if not self.quiet:
            self.console.print(message, highlight=False, soft_wrap=True)


def summary_table(
    title: str, metric: Metric, summaries: Sequence[dict[str, Any]], *, width: int = 80
) -> Table:
    """One row for each run; the best test result is bold, the baseline stands below."""
    table = Table(
        title=title,
        title_justify="left",
        caption=f"{metric.baseline_label}: {metric.name} {metric.baseline:.4g}\n"
        "training time: minutes:seconds, evaluations not counted",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1 if width >= WIDE_TABLE else 0, 0, 0),
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
        table.add_column(column, justify=justify, vertical="bottom", no_wrap=column == "model")
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
            clock(summary["seconds"]),
        )
    return table


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours before them from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
