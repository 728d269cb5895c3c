"""Pictures of a run and of several runs side by side, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from spectral_triton.experiments.training.checkpoint import write_atomically

if TYPE_CHECKING:
    from spectral_triton.experiments.tasks.task import Metric

BEFORE = "#999999"
COLORS = {
    "spectral": "#0072B2",
    "orthogonal": "#56B4E9",
    "rnn": "#666666",
    "irnn": "#CC79A7",
    "lstm": "#D55E00",
    "gru": "#E69F00",
    "spectral-lstm": "#009E73",
    "spectral-gru": "#882255",
}
"""One color for each model in every picture; told apart by color-blind readers too."""

MARKERS = {
    "spectral": "o",
    "orthogonal": "D",
    "rnn": "s",
    "irnn": "P",
    "lstm": "^",
    "gru": "v",
    "spectral-lstm": "<",
    "spectral-gru": ">",
}

GATE_NAMES = {1: ("",), 3: ("r", "z", "n"), 4: ("i", "f", "g", "o")}
"""The gates of a GRU and of an LSTM, in the order of their stacked weights."""

GATE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

Curve = Sequence[tuple[float, float]]


def _figure(title: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(7.5, 4.5), dpi=130, layout="constrained")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    try:
        write_atomically(path, lambda file: figure.savefig(file, format="png"))
    finally:
        plt.close(figure)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) if len(handles) < 4 else 2,
        frameon=False,
        fontsize=9,
    )


def _metric_axis(axes: Axes, metric: Metric) -> None:
    axes.axhline(
        metric.baseline,
        color="black",
        linestyle=(0, (5, 3)),
        linewidth=1,
        label=metric.baseline_label,
    )
    axes.set_ylabel(metric.label)
    if metric.log_scale:
        axes.set_yscale("log")
        plain_ticks(axes)
    if metric.name == "accuracy":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("optimizer step")
    axes.set_xlim(left=0)


def learning_curve(
    path: Path,
    title: str,
    metric: Metric,
    *,
    model: str,
    train: Curve,
    validation: Curve,
    test: tuple[float, float],
) -> None:
    """The metric over the steps for one run, with the task's baseline and the test result."""
    figure, axes = _figure(title)
    color = COLORS[model]
    if train:
        axes.plot(
            *zip(*train, strict=True), color=color, alpha=0.4, linewidth=1.2, label="training"
        )
    if validation:
        axes.plot(
            *zip(*validation, strict=True),
            color=color,
            marker="o",
            markersize=3.5,
            label="validation",
        )
    axes.plot(
        *test, color=color, marker="*", markersize=13, markeredgecolor="black", linestyle="none",
        label=f"test {metric.name} {test[1]:.4g}", clip_on=False, zorder=5,
    )  # fmt: skip
    _metric_axis(axes, metric)
    _legend_below(figure, axes)
    _save(figure, path)


def singular_values(
    path: Path,
    title: str,
    *,
    model: str,
    steps: Sequence[int],
    values: Sequence[Sequence[float]],
    band: tuple[float, float] | None,
    gates: int = 1,
) -> None:
    """Every singular value of W, gate after gate, over the steps, within its band if it has one."""
    figure, axes = _figure(title)
    table = np.asarray(values)
    if band is not None and band[0] < band[1]:
        low, high = band
        axes.axhspan(low, high, color="#009E73", alpha=0.10, label=f"band [{low:g}, {high:g}]")
        for edge in band:
            axes.axhline(edge, color="#009E73", linewidth=1)
        axes.set_ylim(low - 0.12 * (high - low), high + 0.12 * (high - low))
    parts = np.array_split(table, gates, axis=1)
    colors = [COLORS[model]] if gates == 1 else GATE_COLORS[:gates]
    for color, part, name in zip(colors, parts, GATE_NAMES.get(gates, ("",)), strict=True):
        of_gate = f", gate {name}" if name else ""
        count = part.shape[1]
        axes.plot(steps, part, color=color, alpha=0.45, linewidth=0.7)
        axes.plot([], [], color=color, linewidth=1.2, label=f"each of {count} values{of_gate}")
    axes.plot(steps, np.median(table, 1), color="black", linewidth=1.4, label="median")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("singular values of W")
    axes.set_xlim(left=0)
    _legend_below(figure, axes)
    _save(figure, path)


def gradient_flow(path: Path, title: str, panels: Mapping[str, Mapping[str, Any]]) -> None:
    """‖∂L/∂h_t‖ / ‖∂L/∂h_T‖ over t; one panel of records for each key of ``panels``.

    A record has norms, and optionally bound, color, and a name of its own. Where nothing arrives
    at the last step there is nothing to compare with, and the norms are drawn as they are.
    """
    figure, grid = plt.subplots(
        1,
        len(panels),
        figsize=(7.5 if len(panels) == 1 else 10, 4.5),
        dpi=130,
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    smallest, longest = [], 1
    for axes, (heading, records) in zip(grid[0], panels.items(), strict=True):
        for place, (name, record) in enumerate(records.items()):
            norms = relative(record["norms"], record["norms"])
            longest = max(longest, len(norms))
            steps = np.arange(1, len(norms) + 1)
            # Wide below narrow: where curves coincide all of them are seen.
            width = 1.4 + 1.1 * (len(records) - 1 - place)
            (line,) = axes.plot(
                steps,
                np.where(norms > 0, norms, np.nan),
                color=record.get("color"),
                linewidth=width,
                solid_capstyle="butt",
                label=name,
            )
            smallest.append(norms[norms > 0].min() if (norms > 0).any() else 1.0)
            if "bound" in record:
                axes.plot(
                    steps,
                    relative(record["bound"], record["norms"]),
                    color=line.get_color(),
                    linestyle=":",
                    linewidth=1.6,
                    label=f"{name}: bound by (σ* + r)$^{{T-t}}$",
                )
        axes.set_title(heading, loc="left", fontsize=10)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yscale("log")
        axes.set_xlabel("step t of the sequence")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    first = grid[0, 0]
    # Norms that vanish altogether would otherwise squeeze every other curve into a line.
    first.set_ylim(bottom=max(min(smallest) / 3, 1e-20))
    first.set_ylabel("‖∂L/∂h$_t$‖ / ‖∂L/∂h$_T$‖")
    for axes in grid[0]:
        axes.set_xlim(1, max(longest, 2))
        plain_ticks(axes)
    entries = [axes.get_legend_handles_labels() for axes in grid[0]]
    found = {
        label: handle
        for handles, names in entries
        for handle, label in zip(handles, names, strict=True)
    }
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=min(4, max(2, len(found))),
        frameon=False,
        fontsize=9,
    )
    _save(figure, path)


def relative(values: Sequence[float], norms: Sequence[float]) -> np.ndarray:
    """``values`` in multiples of the last of ``norms``, where that is not 0."""
    last = norms[-1]
    return np.asarray(values, dtype=float) / (last if last > 0 and np.isfinite(last) else 1.0)


def plain_ticks(axes: Axes) -> None:
    """Ticks of a logarithmic ordinate as 0.2 or 10⁻⁸: powers of ten, and steps between few."""
    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    if decades < 2.5:
        steps = (2.0, 5.0) if decades > 1 else (1.5, 2.0, 3.0, 5.0, 7.0)
        axes.yaxis.set_minor_locator(LogLocator(subs=steps))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: _plain(value)))
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    if value <= 0 or 1e-4 < value < 1e5:
        return f"{value:.4g}"
    return f"$10^{{{round(np.log10(value))}}}$"


def comparison(
    path: Path, title: str, metric: Metric, curves: Mapping[str, Sequence[Curve]], split: str
) -> None:
    """Curves of several models; where a model has several seeds, their mean within their range."""
    figure, axes = _figure(title)
    for model, runs in curves.items():
        length = min(len(run) for run in runs)
        steps = [step for step, _ in runs[0][:length]]
        table = np.asarray([[value for _, value in run[:length]] for run in runs])
        label = model if len(runs) == 1 else f"{model}, mean of {len(runs)} seeds"
        axes.plot(steps, table.mean(0), color=COLORS[model], linewidth=1.8, label=label)
        if len(runs) > 1:
            axes.fill_between(
                steps, table.min(0), table.max(0), color=COLORS[model], alpha=0.15, linewidth=0
            )
    _metric_axis(axes, metric)
    axes.set_ylabel(f"{split} {metric.label}")
    _legend_below(figure, axes)
    _save(figure, path)


def cases(
    path: Path, title: str, metric: Metric, values: Mapping[str, Mapping[str, float]]
) -> None:
    """One row for each case with a dot for each model: {case: {model: value}}."""
    figure, axes = plt.subplots(
        figsize=(7.5, 1.4 + 0.22 * len(values)), dpi=130, layout="constrained"
    )
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    models = dict.fromkeys(model for row in values.values() for model in row)
    names = sorted(values, key=lambda case: np.mean(list(values[case].values())))
    places = np.arange(len(names))
    for place, name in zip(places, names, strict=True):
        row = values[name].values()
        axes.plot([min(row), max(row)], [place, place], color="black", alpha=0.15, linewidth=3)
    # The first model lies on top, where equal values hide each other.
    for height, model in enumerate(models):
        axes.plot(
            [values[name].get(model, np.nan) for name in names],
            places,
            linestyle="none",
            marker=MARKERS[model],
            color=COLORS[model],
            markersize=5.5 + height,
            zorder=10 - height,
            label=model,
        )
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_xlabel(f"test {metric.label}")
    if metric.name == "accuracy":
        axes.set_xlim(0, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    _legend_below(figure, axes)
    _save(figure, path)
