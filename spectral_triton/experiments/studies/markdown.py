"""Numbers and tables as they stand on a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

PERCENTAGES = ("accuracy", "recall")


def number(metric: str, value: float) -> str:
    """A result as it is printed: shares as percentages, the rest with three digits or more."""
    if metric in PERCENTAGES:
        # 100 stands for all of them only.
        return f"{min(100 * value, 99.99) if value < 1 else 100:.2f} %"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(metric: str, values: Sequence[float]) -> str:
    """Mean of several seeds with the lowest and the highest."""
    mean, low, high = (number(metric, f(values)) for f in (fmean, min, max))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def duration(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
