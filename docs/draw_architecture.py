"""Draws architecture.png: the wings of the package by floors, and which imports which.

python docs/draw_architecture.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp
import matplotlib
import networkx

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = "spectral_triton"
# Where a user comes in, the mathematics, and what carries it: colours that differ for everybody.
COLORS = {
    "layers": "#ddaa33",
    "recurrent": "#ddaa33",
    "parametrizations": "#ddaa33",
    "models": "#ddaa33",
    "householder": "#77aadd",
    "spectra": "#77aadd",
    "svd": "#77aadd",
    "recurrence": "#77aadd",
    "init": "#77aadd",
}
OTHER = "#dddddd"
# Out of the way of arrows that pass its floor.
ASIDE = {"recurrence": 3.6}
# Top-level modules that are no wing.
LEFT_OUT = ("__main__", "former_paths", "reference")


def floors() -> list[list[str]]:
    """Names on each floor from the top, as the contract of the imports has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (house,) = (c for c in contracts if c.get("containers") == [PACKAGE])
    rows = [[name.strip() for name in row.split("|")] for row in house["layers"]]
    kept = [[name for name in row if name not in LEFT_OUT] for row in rows]
    # The kernels stand in a folder of their own; nothing of the package is imported by them.
    return [row for row in kept if row] + [["kernels"]]


def arrows(names: list[str]) -> list[tuple[str, str]]:
    """Who imports whom, without what follows from other arrows: if a needs b and b needs c."""
    graph = grimp.build_graph(PACKAGE, include_external_packages=False)
    found = networkx.DiGraph()
    # The kernels stand in a folder of their own, and are imported where they are launched.
    found.add_edges_from((name, "kernels") for name in ("runtime", "householder", "recurrence"))
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            ends = tuple(module.split(".")[1] for module in (importer, imported) if "." in module)
            if len(ends) == 2 and ends[0] != ends[1] and set(ends) <= set(names):
                found.add_edge(*ends)
    return sorted(networkx.transitive_reduction(found).edges)


def main() -> None:
    rows = floors()
    width, height = 2.5, 0.62
    place = {}
    for level, row in enumerate(reversed(rows)):
        for index, name in enumerate(row):
            x = ASIDE.get(name, (index - (len(row) - 1) / 2) * 3.6)
            place[name] = (x, level * 1.25)
    figure, axes = plt.subplots(figsize=(9, 1.15 * len(rows)))
    for start, end in arrows(list(place)):
        (x0, y0), (x1, y1) = place[start], place[end]
        axes.add_patch(
            FancyArrowPatch(
                (x0, y0 - height / 2),
                (x1, y1 + height / 2),
                arrowstyle="-|>",
                mutation_scale=12,
                linewidth=1.2,
                color="#555555",
                zorder=1,
            )
        )
    for name, (x, y) in place.items():
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height,
                boxstyle="round,pad=0.02,rounding_size=0.12",
                facecolor=COLORS.get(name, OTHER),
                edgecolor="#333333",
                zorder=2,
            )
        )
        axes.text(x, y, name, ha="center", va="center", fontsize=11, zorder=3)
    axes.set_xlim(-5.6, 5.6)
    axes.set_ylim(-0.6, (len(rows) - 1) * 1.25 + 0.6)
    axes.set_axis_off()
    target = Path(__file__).parent / "architecture.png"
    figure.savefig(target, dpi=110, bbox_inches="tight", metadata={"Software": None})
    print(target)


if __name__ == "__main__":
    main()
