"""Pictures of a report: time against each size, and all peers at one size, on log axes."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from records import OURS, Report

BOTH = "forward+backward"
OWN, OTHER, FLOOR = "#c2410c", "#64748b", "#0f766e"


def _curves(
    axes: plt.Axes, report: Report, op: str, size: str, contenders: tuple[str, ...], **fixed: int
) -> None:
    styles = iter(("-", "--", "-.", ":") * 3)
    for contender in contenders:
        found = [r for r in report.select(op, contender, BOTH) if fixed.items() <= r.sizes.items()]
        found.sort(key=lambda r: r.sizes[size])
        if len(found) < 2:
            continue
        is_ours = contender == OURS
        axes.plot(
            [r.sizes[size] for r in found],
            [1e3 * r.seconds for r in found],
            "-" if is_ours else next(styles),
            marker="o",
            markersize=4,
            color=OWN if is_ours else None,
            linewidth=2.2 if is_ours else 1.4,
            label=contender,
            zorder=3 if is_ours else 2,
        )


def _finish(figure: plt.Figure, axes: plt.Axes, size: str, title: str, path: Path) -> str:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(size)
    axes.set_ylabel("forward + backward, ms")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    # Beside the axes: with a dozen contenders there is no corner without a line.
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> str:
    figure.tight_layout()
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path.name


def product_over_n(report: Report, folder: Path) -> str | None:
    """householder_product and its rivals against n, above the time of the GEMMs it needs."""
    ours = sorted(report.select("householder_product", OURS), key=lambda r: r.sizes["n"])
    if len(ours) < 2:
        return None
    names = tuple(
        dict.fromkeys(
            r.contender
            for r in report.records
            if r.op == "householder_product" and "any rows" not in r.contender
        )
    )
    figure, axes = plt.subplots(figsize=(6.4, 4.6))
    _curves(axes, report, "householder_product", "n", names)
    floor = [1e3 * r.reference_seconds * r.notes["floor"] for r in ours]
    axes.plot([r.sizes["n"] for r in ours], floor, ":", color=FLOOR, label="floor: its GEMMs")
    title = "An n x n orthogonal matrix and its gradient"
    return _finish(figure, axes, "n = k", title, folder / "product.png")


def linear_peers(report: Report, folder: Path) -> str | None:
    """All layers at one size as bars: ratios of the races, so that all share one scale."""
    sizes = {"n": 512, "k": 512, "batch": 32}
    found = [r for r in report.records if (r.op, r.way) == ("linear", BOTH) and r.sizes == sizes]
    bars = [(r.contender, r.ratio, r.ratio_range) for r in found if r.contender != OURS]
    if len(bars) < 3:
        return None
    bars.append((f"{OURS}, all reflectors", 1.0, (1.0, 1.0)))
    try:
        # Against nn.Linear, whose own race against all reflectors gives the common scale.
        few = report.find("linear", OURS, BOTH, n=512, k=16, batch=32)
        scale = report.find("linear", "nn.Linear", BOTH, **sizes).ratio
        low, high = few.ratio_range
        bars.append((f"{OURS}, 16 reflectors", few.ratio * scale, (low * scale, high * scale)))
    except KeyError:
        pass
    bars.sort(key=lambda bar: -bar[1])
    figure, axes = plt.subplots(figsize=(7.2, 0.32 * len(bars) + 1.1))
    ratios = [ratio for _, ratio, _ in bars]
    colors = [OWN if name.startswith(OURS) else OTHER for name, _, _ in bars]
    axes.barh([name for name, _, _ in bars], ratios, color=colors)
    for row, (_, ratio, (low, high)) in enumerate(bars):
        axes.plot([min(low, ratio), max(high, ratio)], [row, row], color="black", linewidth=1)
        axes.text(max(high, ratio) * 1.1, row, f"{ratio:.3g}", va="center", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(right=max(max(r, high) for _, r, (_, high) in bars) * 3)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("time of forward + backward, ours with all reflectors = 1")
    axes.set_title("Linear layers, 512 features, batch 32", fontsize=10)
    return _save(figure, folder / "linear.png")


def linear_over_k(report: Report, folder: Path) -> str | None:
    """SVDLinear against the number of reflectors, between nn.Linear and Cayley."""
    rows = [
        r
        for r in report.select("linear", OURS, BOTH)
        if (r.sizes["n"], r.sizes["batch"]) == (512, 32)
    ]
    if len(rows) < 3:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    _curves(axes, report, "linear", "k", (OURS,), n=512, batch=32)
    for name, style in (("nn.Linear", ":"), ("GeoTorch almost_orthogonal, Cayley", "--")):
        level = [r for r in report.select("linear", name, BOTH) if r.sizes["n"] == 512]
        if level:
            axes.axhline(1e3 * level[0].seconds, linestyle=style, color=OTHER, label=name)
    title = "SVDLinear(512, 512), batch 32"
    return _finish(figure, axes, "reflectors per side", title, folder / "reflectors.png")


def rnn_over_n(report: Report, folder: Path) -> str | None:
    """SpectralRNN and nn.RNN against the size of the state."""
    fixed = {"k": 16, "T": 200, "batch": 64}
    if len([r for r in report.select("rnn", OURS) if fixed.items() <= r.sizes.items()]) < 2:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    _curves(axes, report, "rnn", "n", (OURS, "nn.RNN"), **fixed)
    title = "SpectralRNN, 16 reflectors per side, T = 200, batch 64"
    return _finish(figure, axes, "hidden size n", title, folder / "rnn.png")


def draw_all(report: Report, folder: Path) -> list[str]:
    """Every picture the report has data for; their file names."""
    drawn = (
        draw(report, folder) for draw in (linear_peers, product_over_n, linear_over_k, rnn_over_n)
    )
    return [name for name in drawn if name]
