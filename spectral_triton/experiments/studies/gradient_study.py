"""Gradients over time and singular values, at the start, in the middle and at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectral_triton.analysis.bounds import gradient_bound
from spectral_triton.analysis.spectra import spectra
from spectral_triton.experiments.studies.investigation import (
    Investigation,
    Measurement,
    Result,
    Surroundings,
)
from spectral_triton.experiments.studies.markdown import number, table
from spectral_triton.experiments.tasks.task import Batch
from spectral_triton.experiments.training.config import make_config
from spectral_triton.experiments.training.gradient_flow import gradient_norms
from spectral_triton.experiments.training.model import SequenceModel, lipschitz_bound
from spectral_triton.experiments.training.short_run import measure, short_run

LENGTH, STEPS, PROBED, POINTS = 200, 1000, 20, 10
MICROSECONDS = {"spectral": 64, "orthogonal": 64, "rnn": 40, "irnn": 40, "lstm": 130, "gru": 110}
"""For each step of a sequence, on one CPU core."""


def observe(
    model: str,
    seed: int,
    surroundings: Surroundings,
    *,
    length: int = LENGTH,
    steps: int = STEPS,
    **changes: Any,
) -> dict[str, Any]:
    """One short training on the adding problem, with what was seen on the way."""
    config = make_config(
        "adding",
        model,
        options={"length": length},
        overrides={"steps": steps, **changes},
        seed=seed,
        device=surroundings.device,
    )
    task = config.build_task(surroundings.data)
    factor = lipschitz_bound(model, config.settings)
    probe = task.train_batch(0).to(torch.device(surroundings.device))
    probe = Batch(probe.inputs[:, :PROBED], probe.targets[:PROBED])
    moments = {0: "start", steps // 2: "middle", steps: "end"}
    points = sorted({steps * i // POINTS for i in range(POINTS + 1)} | moments.keys())
    flow: dict[str, Any] = {}
    values: dict[str, list[list[float]]] = {}

    def watch(step: int, trained: SequenceModel) -> None:
        for name, sigma in spectra(trained.encoder).items():
            values.setdefault(name, []).append(_short(sigma.tolist()))
        if step in moments:
            norms, direct = gradient_norms(trained, task.loss, probe)
            record = {"step": step, "norms": _short(norms)}
            if factor is not None:
                record["bound"] = _short(gradient_bound(direct, factor))
            flow[moments[step]] = record

    start = time.perf_counter()
    trained = short_run(config, task, surroundings.report, watch=watch, at=points)
    return {
        "test": measure(trained, task, "test", surroundings.device),
        "flow": flow,
        "factor": factor,
        "spectra": {"steps": points, "values": values},
        "config": config.as_dict(),
        "seconds": time.perf_counter() - start,
    }


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


class GradientStudy(Investigation):
    """Every recurrent model on the adding problem."""

    name = "gradient-flow"
    title = f"Gradients and singular values while the adding problem is learned, T = {LENGTH}"

    def measurements(self) -> list[Measurement]:
        return [
            Measurement(
                model,
                str(LENGTH),
                0,
                partial(observe, model, 0),
                STEPS,
                STEPS * LENGTH * MICROSECONDS[model] / 60e6,
            )
            for model in MICROSECONDS
        ]

    def text(self, results: Sequence[Result], target: Path) -> list[str]:
        from spectral_triton.experiments.studies import figures

        by_model = {r["model"]: r for r in results}
        flows = {model: r["flow"] for model, r in by_model.items()}
        bounded = {model: flow for model, flow in flows.items() if "bound" in flow["start"]}
        figures.gradient_moments(target / "gradient_flow.png", flows)
        if bounded:
            figures.gradient_moments(target / "bounds.png", bounded)
        figures.spectra(target / "spectra.png", {m: r["spectra"] for m, r in by_model.items()})
        rows = []
        for model, flow in flows.items():
            r = by_model[model]
            shares = (flow[when]["norms"][0] / flow[when]["norms"][-1] for when in flow)
            bound = "none" if r["factor"] is None else f"{r['factor'] ** (LENGTH - 1):.3g}"
            worst = "-"
            if r["factor"] is not None:
                worst = f"{max(_tightest(flow[when]) for when in flow):.3g}"
            error = number("mse", r["test"]["mse"])
            rows.append([model, *(f"{share:.2g}" for share in shares), bound, worst, error])
        bands = []
        for model, r in by_model.items():
            for name, history in r["spectra"]["values"].items():
                bands.append([model, name, *(_range(history[i]) for i in (0, -1))])
        return [
            f"{STEPS} steps with the settings of the task, seed 0, {PROBED} training sequences "
            "probed. L is the mean squared error, h_t all that is carried from step t to t + 1 "
            "(of an LSTM h and c). The loss is read after the last step. Norms below 1e-12 are not "
            "drawn.",
            "![Gradients over time](gradient_flow.png)",
            *(["The models that have a bound, at a scale of their own:"] if bounded else []),
            *(["![Gradients and their bounds](bounds.png)"] if bounded else []),
            "‖∂L/∂h_1‖ / ‖∂L/∂h_T‖ at three moments; the bound on it, (σ\\* + r)^(T−1), which "
            "holds at every moment; the largest measured ‖∂L/∂h_t‖ over its bound, t < T; and the "
            f"test error after these {STEPS} steps (always answering 1: 0.167):",
            table(["model", "start", "middle", "end", "bound", "largest / bound", "mse"], rows),
            "The spectral models' bounds are theorems and hold for any weights; everything else "
            "is one run. **Exploding is excluded, vanishing is not**: the bound is one-sided, a "
            "leaky or saturated unit passes less. Singular values near 1 keep it from coming from "
            "W.",
            "![Singular values](spectra.png)",
            "Lowest, median and highest singular value of each recurrent matrix before and after:",
            table(["model", "matrix", "start", "end"], bands),
            "## What this does not show",
            "One seed, one task, one short training. Where an unconstrained network keeps its "
            "gradient here, nothing keeps it there on another task or at a higher rate.",
        ]


def _tightest(record: dict[str, Any]) -> float:
    # At T itself both are the same number.
    pairs = list(zip(record["norms"], record["bound"], strict=True))[:-1]
    return max(norm / bound for norm, bound in pairs)


def _range(values: Sequence[float] | Tensor) -> str:
    ordered = sorted(values)
    return " / ".join(f"{v:.3f}" for v in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))
