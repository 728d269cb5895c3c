"""The pictures of the investigations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectral_triton.experiments.training import plots
from spectral_triton.experiments.training.plots import COLORS, plt

KIND_COLORS = {
    "plain": "#666666",
    "residual": "#E69F00",
    "svd": "#56B4E9",
    "svd-residual": "#0072B2",
}
KIND_MARKERS = {"plain": "s", "residual": "^", "svd": "D", "svd-residual": "o"}
MOMENTS = {"start": "#999999", "middle": "#56B4E9", "end": "#0072B2"}
LOWEST = 1e-12
"""Norms below it are not drawn: they would squeeze everything else into a line."""


def accuracy_over_depth(
    path: Path, curves: Mapping[str, Mapping[int, Sequence[float]]], *, chance: float
) -> None:
    """Mean accuracy of each kind over the number of layers, a dot for each seed."""
    figure, axes = plots._figure("MNIST after a short training: how deep can it be?")
    for kind, row in curves.items():
        depths = sorted(row)
        style: dict[str, Any] = {"color": KIND_COLORS[kind], "marker": KIND_MARKERS[kind]}
        means = [sum(row[depth]) / len(row[depth]) for depth in depths]
        axes.plot(depths, means, linewidth=1.8, markersize=6, label=kind, **style)
        for depth in depths:
            if len(row[depth]) > 1:
                axes.plot(
                    [depth] * len(row[depth]),
                    row[depth],
                    linestyle="none",
                    markersize=3,
                    alpha=0.6,
                    **style,
                )
    axes.axhline(chance, color="black", linestyle=(0, (5, 3)), linewidth=1, label="chance")
    axes.set_xscale("log")
    ticks = sorted({depth for row in curves.values() for depth in row})
    axes.set_xticks(ticks, [str(depth) for depth in ticks])
    axes.minorticks_off()
    axes.set_xlabel("hidden layers")
    axes.set_ylabel("test accuracy")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(plots.PercentFormatter(1))
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=9,
    )
    plots._save(figure, path)


def gradient_moments(path: Path, flows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """‖∂L/∂h_t‖ of each model at start, middle and end of training, the bound dotted."""
    figure, panels = _panels(len(flows))
    for axes, (model, flow) in zip(panels, flows.items(), strict=False):
        for (when, color), width in zip(MOMENTS.items(), (1.6, 3.0, 1.4), strict=True):
            record = flow[when]
            steps = np.arange(1, len(record["norms"]) + 1)
            norms = plots.relative(record["norms"], record["norms"])
            shown = np.where(norms > LOWEST, norms, np.nan)
            axes.plot(steps, shown, color=color, linewidth=width, label=f"{when} of training")
            if "bound" in record:
                axes.plot(
                    steps,
                    plots.relative(record["bound"], record["norms"]),
                    color=color,
                    linestyle=":",
                    linewidth=1.5,
                    label=f"{when}: bound by (σ* + r)$^{{T-t}}$",
                )
        axes.set_title(model, loc="left", fontsize=10)
        axes.set_yscale("log")
        axes.set_xlim(1, len(steps))
        axes.set_xlabel("step t of the sequence")
    _share_range(panels[: len(flows)], LOWEST)
    panels[0].set_ylabel("‖∂L/∂h$_t$‖ / ‖∂L/∂h$_T$‖")
    for axes in panels[: len(flows)]:
        plots.plain_ticks(axes)
    _legend(figure, panels)
    plots._save(figure, path)


def spectra(path: Path, histories: Mapping[str, Mapping[str, Any]]) -> None:
    """Range, middle 80 % and median of the singular values of each model over training."""
    figure, panels = _panels(len(histories))
    for axes, (model, history) in zip(panels, histories.items(), strict=False):
        rows = [np.asarray(values) for values in history["values"].values()]
        steps = history["steps"]
        names = plots.GATE_NAMES.get(len(rows), range(1, len(rows) + 1))
        colors = [COLORS[model]] if len(rows) == 1 else plots.GATE_COLORS
        lowest, highest = np.inf, -np.inf
        for color, name, table in zip(colors, names, rows, strict=False):
            low, q1, middle, q9, high = np.quantile(table, (0, 0.1, 0.5, 0.9, 1), axis=1)
            axes.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
            axes.fill_between(steps, q1, q9, color=color, alpha=0.3, linewidth=0)
            axes.plot(steps, middle, color=color, linewidth=1.8, label=name if name else None)
            lowest, highest = min(lowest, low.min()), max(highest, high.max())
        gates = f", {len(rows)} gates" if len(rows) > 1 else ""
        axes.set_title(f"{model}{gates}", loc="left", fontsize=10)
        if gates:
            axes.legend(frameon=False, fontsize=8, ncols=2)
        axes.set_xlim(steps[0], steps[-1])
        axes.set_xlabel("optimizer step")
        axes.ticklabel_format(axis="y", useOffset=False)
        if highest - lowest < 1e-4:
            axes.set_ylim(0.98, 1.02)
    panels[0].set_ylabel("singular values of W")
    handles = [
        plt.Line2D([], [], color="#444444", linewidth=1.8, label="median"),
        plt.Rectangle((0, 0), 1, 1, color="#444444", alpha=0.45, label="10 % to 90 %"),
        plt.Rectangle((0, 0), 1, 1, color="#444444", alpha=0.15, label="all"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    plots._save(figure, path)


def sensitivity(
    path: Path,
    label: str,
    cells: Mapping[Any, Sequence[float]],
    base: Any,
    baseline: float,
    lowest: float,
) -> None:
    """The error at each level of one setting; infinite errors become crosses at the top.

    ``lowest`` is the least error of all figures, which share their range with it.
    """
    figure, axes = plots._figure(f"Adding problem: {label}")
    levels = list(cells)
    numeric = all(isinstance(level, int | float) for level in levels)
    places = levels if numeric else list(range(len(levels)))
    means = []
    for place, errors in zip(places, cells.values(), strict=True):
        finite = [error for error in errors if math.isfinite(error)]
        axes.plot([place] * len(finite), finite, "o", color="#56B4E9", markersize=5)
        if len(finite) < len(errors):
            axes.plot(place, 2 * baseline, "x", color="#D55E00", markersize=9, clip_on=False)
        means.append(math.exp(np.mean(np.log(finite))) if len(finite) == len(errors) else np.nan)
    axes.plot(
        places, means, color="#0072B2", linewidth=1.6, linestyle="-" if numeric else "none",
        marker="_", markersize=14, label="geometric mean of the seeds",
    )  # fmt: skip
    axes.plot([], [], "o", color="#56B4E9", markersize=5, label="one seed")
    if base in cells:
        place = places[levels.index(base)]
        axes.plot(
            place, means[levels.index(base)], "o", markersize=15, fillstyle="none",
            color="black", label="setting of all other figures",
        )  # fmt: skip
    dashes = (0, (5, 3))
    axes.axhline(baseline, color="black", linestyle=dashes, linewidth=1, label="always answering 1")
    axes.set_yscale("log")
    axes.set_ylim(lowest / 1.5, 2 * baseline)
    if numeric:
        axes.set_xscale("log")
        axes.minorticks_off()
    else:
        axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.set_xticks(places, [str(level) for level in levels])
    axes.set_xlabel(label)
    axes.set_ylabel("test mean squared error")
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    plots._save(figure, path)


def jacobians(
    path: Path, curves: Mapping[str, Mapping[str, Sequence[float]]], bound: Sequence[float]
) -> None:
    """‖∂h_T/∂h_t‖ for each nonlinearity beside the bound, T − t on the abscissa."""
    figure, axes = plots._figure("Products of Jacobians, T = " + str(len(bound)))
    palette = ("#0072B2", "#E69F00", "#D55E00", "#666666")
    distance = np.arange(len(bound))[::-1]
    for color, (name, kinds) in zip(palette, curves.items(), strict=False):
        for style, (sigma, norms) in zip(("-", "--"), kinds.items(), strict=False):
            shown = np.where(np.asarray(norms) > LOWEST, norms, np.nan)
            axes.plot(distance, shown, style, color=color, linewidth=1.5, label=f"{name}, {sigma}")
    axes.plot(distance, bound, ":", color="black", linewidth=2.4, label="bound (σ* + r)$^{T-t}$")
    axes.set_yscale("log")
    axes.set_xlim(0, len(bound) - 1)
    axes.set_xlabel("steps back, T − t")
    axes.set_ylabel("‖∂h$_T$/∂h$_t$‖")
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    plots._save(figure, path)


def _panels(count: int) -> tuple[Any, list[Any]]:
    columns = min(3, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(3.6 * columns, 0.6 + 2.7 * rows),
        dpi=120,
        layout="constrained",
        squeeze=False,
    )
    panels = list(grid.flat)
    for axes in panels:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels


def _share_range(panels: Sequence[Any], lowest: float) -> None:
    limits = [axes.get_ylim() for axes in panels]
    bottom = max(min(low for low, _ in limits), lowest)
    for axes in panels:
        axes.set_ylim(bottom, max(high for _, high in limits))


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
