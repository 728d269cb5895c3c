"""One setting changed at a time: which ones decide whether a SpectralRNN learns?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from spectral_triton.experiments.errors import TrainingStopped
from spectral_triton.experiments.studies.investigation import (
    Investigation,
    Measurement,
    Result,
    Surroundings,
)
from spectral_triton.experiments.studies.markdown import table
from spectral_triton.experiments.training.config import make_config
from spectral_triton.experiments.training.short_run import measure, short_run

LENGTH, STEPS, SEEDS = 50, 800, (0, 1)
MICROSECONDS = 80
RATE = 5e-3
BASE: Mapping[str, Any] = {
    "margin": 0.02,
    "num_reflectors": 16,
    "nonlinearity": "leaky_relu",
    "init": "cayley",
    "reflectors_lr": 8,
    "singular_values_lr": 5,
}
"""The settings of the task; ``reflectors_lr`` and ``singular_values_lr`` count in ``lr``."""

LEVELS: Mapping[str, tuple[Any, ...]] = {
    "margin": (0.001, 0.01, 0.02, 0.1, 0.5),
    "num_reflectors": (1, 2, 4, 8, 16, 32, 64),
    "nonlinearity": ("tanh", "relu", "leaky_relu", "identity", "modrelu"),
    "init": ("identity", "haar", "henaff", "cayley"),
    "reflectors_lr": (0.125, 1, 8, 64, 512),
    "singular_values_lr": (0.2, 1, 5, 25, 125),
}
LABELS = {
    "margin": "margin r",
    "num_reflectors": "reflectors of U and of V, n = 64",
    "nonlinearity": "nonlinearity",
    "init": "start of W",
    "reflectors_lr": "learning rate of reflectors over that of the rest",
    "singular_values_lr": "learning rate of σ̂ over that of the rest",
}
ALL_ALIKE = "base"


def learn(
    changes: Mapping[str, Any],
    seed: int,
    surroundings: Surroundings,
    *,
    length: int = LENGTH,
    steps: int = STEPS,
    **sizes: Any,
) -> dict[str, Any]:
    """The test error after a short training with some settings changed; None where it broke."""
    chosen = {**BASE, **changes}
    overrides = {
        **sizes,
        "steps": steps,
        "lr": RATE,
        "reflectors_lr": RATE * chosen["reflectors_lr"],
        "singular_values_lr": RATE * chosen["singular_values_lr"],
        "num_reflectors": (chosen["num_reflectors"],) * 2,
        **{name: chosen[name] for name in ("margin", "nonlinearity", "init")},
    }
    config = make_config(
        "adding",
        "spectral",
        options={"length": length},
        overrides=overrides,
        seed=seed,
        device=surroundings.device,
    )
    task = config.build_task(surroundings.data)
    start = time.perf_counter()
    mse, sigma, failure = None, None, None
    try:
        model = short_run(config, task, surroundings.report)
        mse = measure(model, task, "test", surroundings.device)["mse"]
        values = model.singular_values()
        assert values is not None
        sigma = [float(values.min()), float(values.max())]
    except TrainingStopped as error:
        failure = str(error)
    return {
        "mse": mse,
        "sigma": sigma,
        "failure": failure,
        "config": config.as_dict(),
        "seconds": time.perf_counter() - start,
    }


class Sensitivity(Investigation):
    """Six settings around those of the adding problem."""

    name = "sensitivity"
    title = f"Which settings of a SpectralRNN matter: adding problem, T = {LENGTH}"

    def measurements(self) -> list[Measurement]:
        minutes = STEPS * LENGTH * MICROSECONDS / 60e6
        places: list[tuple[str, str, dict[str, Any]]] = [(ALL_ALIKE, ALL_ALIKE, {})] + [
            (factor, str(level), {factor: level})
            for factor, levels in LEVELS.items()
            for level in levels
            if level != BASE[factor]
        ]
        return [
            Measurement(factor, level, seed, partial(learn, changes, seed), STEPS, minutes)
            for seed in SEEDS
            for factor, level, changes in places
        ]

    def text(self, results: Sequence[Result], target: Path) -> list[str]:
        from spectral_triton.experiments.studies import figures

        seeds = sorted({r["seed"] for r in results})
        lowest = min((r["mse"] for r in results if r["mse"] is not None), default=0.01)
        parts = [
            f"{STEPS} steps of AdamW on batches of 50 with learning rate {RATE:g} and cosine "
            f"decay, n = 64; seeds {', '.join(map(str, seeds))}. "
            "Otherwise "
            + ", ".join(f"{name} {value}" for name, value in BASE.items())
            + ". Always answering 1 has error 0.167. Dots are seeds, the line is their geometric "
            "mean, the ring marks the settings all figures share; a run whose loss was no longer "
            "finite is drawn as a cross at the top.",
            "",
        ]
        rows = []
        for factor, levels in LEVELS.items():
            cells = {level: _errors(results, factor, level) for level in levels}
            cells = {level: errors for level, errors in cells.items() if errors}
            picture = f"{factor}.png"
            figures.sensitivity(
                target / picture, LABELS[factor], cells, BASE[factor], 1 / 6, lowest
            )
            means = {level: _mean(errors) for level, errors in cells.items()}
            best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
            rows.append(
                [
                    factor,
                    f"{best} ({means[best]:.2g})",
                    f"{worst} ({means[worst]:.2g})",
                    f"{means[worst] / means[best]:.1f}",
                    f"{_mean([_spread(errors) for errors in cells.values()]):.1f}",
                ]
            )
            parts.append(f"## {LABELS[factor][0].upper()}{LABELS[factor][1:]}")
            parts.append(f"![Test error over {factor}]({picture})")
            parts.append(
                table(
                    [factor, *(str(level) for level in cells)],
                    [
                        ["test mse", *(_cell(errors) for errors in cells.values())],
                        [
                            "σ at the end",
                            *(_sigma(results, factor, level) for level in cells),
                        ],
                    ],
                )
            )
        header = ["setting", "best (mean mse)", "worst (mean mse)", "worst / best", "seeds apart"]
        parts[1] = (
            table(header, rows)
            + "\n\n*Seeds apart* is the ratio between the seeds of one level, its geometric mean "
            "over the levels: a setting whose worst / best is not much larger was not shown to "
            "matter."
        )
        return [
            *parts,
            "## What this does not show",
            "One task, one length, one factor at a time around one point, few seeds, and a short "
            "training: settings that learn later count as failing. The bound (1 + r)^T grows with "
            "the length; a margin that does no harm here may do so over longer sequences.",
        ]


def _matching(results: Sequence[Result], factor: str, level: Any) -> list[Result]:
    place = (ALL_ALIKE, ALL_ALIKE) if level == BASE[factor] else (factor, str(level))
    return [r for r in results if (r["model"], r["case"]) == place]


def _errors(results: Sequence[Result], factor: str, level: Any) -> list[float]:
    """Infinite where a run broke off."""
    found = _matching(results, factor, level)
    return [math.inf if r["mse"] is None else r["mse"] for r in found]


def _mean(errors: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, errors)) / len(errors))


def _spread(errors: Sequence[float]) -> float:
    finite = [e for e in errors if math.isfinite(e)]
    return max(finite) / min(finite) if finite else 1.0


def _cell(errors: Sequence[float]) -> str:
    return " / ".join("broke off" if math.isinf(e) else f"{e:.2g}" for e in errors)


def _sigma(results: Sequence[Result], factor: str, level: Any) -> str:
    ranges = [r["sigma"] for r in _matching(results, factor, level) if r["sigma"]]
    if not ranges:
        return "-"
    return f"{min(low for low, _ in ranges):.3f} to {max(high for _, high in ranges):.3f}"
