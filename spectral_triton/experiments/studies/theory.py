"""What is proved, in numbers: expressivity, the gradient bound, the order of the margin bound."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectral_triton.analysis.bounds import (
    classification_margins,
    generalization_order,
    jacobian_norms,
    step_factor,
)
from spectral_triton.analysis.expressivity import factoring_errors
from spectral_triton.experiments.studies.investigation import (
    Investigation,
    Measurement,
    Result,
    Surroundings,
)
from spectral_triton.experiments.studies.markdown import table
from spectral_triton.experiments.tasks.classification import LabelledSequences
from spectral_triton.experiments.tasks.mnist import SequentialMNIST, read_mnist
from spectral_triton.experiments.training.config import make_config
from spectral_triton.experiments.training.model import SequenceModel
from spectral_triton.experiments.training.short_run import short_run
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.spectra.spectrum import SigmoidSpectrum

SHAPES = ((1, 1), (64, 64), (256, 256), (128, 32), (32, 128), (3, 300))
CONDITIONS = (1.0, 1e3, 1e6, math.inf)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)

NONLINEARITIES = ("identity", "leaky_relu", "relu", "tanh")
LENGTH, UNITS, MARGIN = 100, 32, 0.02

CLASSIFIERS = ("spectral", "orthogonal", "rnn")
SAMPLES = (500, 2000, 8000)
STEPS, ALPHA, SEED = 400, 1.0, 0
BOUND, REACH, GAP = "gradient bound", "from_dense", "generalization"


def reach(m: int, n: int, _: Surroundings) -> dict[str, Any]:
    """The errors of factoring m × n matrices of all conditions and dtypes."""
    errors = factoring_errors([(m, n)], CONDITIONS, DTYPES, seed=SEED)
    return {
        "errors": [
            {
                **dataclasses.asdict(e),
                "dtype": str(e.dtype).removeprefix("torch."),
                # JSON has no infinity.
                "condition": e.condition if math.isfinite(e.condition) else None,
            }
            for e in errors
        ]
    }


def stretch(
    nonlinearity: str, _: Surroundings, *, length: int = LENGTH, units: int = UNITS
) -> dict[str, Any]:
    """Measured ‖∂h_T/∂h_t‖ beside (σ* + r)^(T−t) for random weights, and at the bound, float64."""
    curves = {}
    for raw, name in ((None, "random σ"), (1e3, "every σ at the bound")):
        torch.manual_seed(SEED)
        spectrum = SigmoidSpectrum(center=1.0, margin=MARGIN)
        rnn = SpectralRNN(
            2, units, nonlinearity=nonlinearity, dtype=torch.float64, spectrum=spectrum, init="haar"
        )
        with torch.no_grad():
            parameter = rnn.get_parameter("svd_hh_l0.raw_singular_values")
            parameter.normal_(std=3) if raw is None else parameter.fill_(raw)
        inputs = torch.randn(length, 2, dtype=torch.float64)
        curves[name] = jacobian_norms(rnn, inputs).tolist()
        factor = step_factor(rnn)
    return {"curves": curves, "bound": [factor ** (length - 1 - t) for t in range(length)]}


def generalize(
    model: str, samples: int, surroundings: Surroundings, *, steps: int = STEPS, **sizes: Any
) -> dict[str, Any]:
    """The gap of a classifier of MNIST read row by row, and every term of the order."""
    config = make_config(
        "sequential-mnist",
        model,
        options={"rows": True},
        overrides={"steps": steps, **sizes},
        seed=SEED,
        device=surroundings.device,
    )
    digits = read_mnist(surroundings.data)
    order = torch.randperm(len(digits["train"]), generator=torch.Generator().manual_seed(SEED))
    train, _ = digits["train"].split(order, len(order) - samples)
    task = SequentialMNIST(
        {"train": digits["train"], "test": digits["test"]},
        config.settings.batch_size,
        rows=True,
        permuted=False,
        seed=SEED,
        dtype=config.torch_dtype,
    )
    task.splits["train"] = train
    start = time.perf_counter()
    trained = short_run(config, task, surroundings.report)
    margins = {
        split: _margins(trained, task, data, surroundings.device)
        for split, data in (("train", train), ("test", digits["test"]))
    }
    encoder = trained.encoder
    assert isinstance(encoder, SpectralRNN | nn.RNN)
    bound = generalization_order(
        encoder,
        trained.head,
        steps=digits["train"].sequences.shape[1],
        samples=samples,
        margin=ALPHA,
    )
    return {
        "training_error": float((margins["train"] <= 0).double().mean()),
        "test_error": float((margins["test"] <= 0).double().mean()),
        "margin_error": float((margins["train"] <= ALPHA).double().mean()),
        "order": bound.value,
        "terms": dataclasses.asdict(bound),
        "steps": steps,
        "config": config.as_dict(),
        "seconds": time.perf_counter() - start,
    }


@torch.no_grad()
def _margins(
    model: SequenceModel, task: SequentialMNIST, data: LabelledSequences, device: str
) -> torch.Tensor:
    model.eval()
    parts = []
    for indices in torch.arange(len(data)).split(500):
        chosen = data.take(indices)
        rows = task.prepare(chosen.sequences).transpose(0, 1).to(device)
        parts.append(classification_margins(model(rows)[0].cpu(), chosen.labels))
    return torch.cat(parts)


class Theory(Investigation):
    """Tables and one figure beside the statements they belong to."""

    name = "theory"
    title = "Theory beside numbers"

    def measurements(self) -> list[Measurement]:
        return [
            *(
                Measurement(REACH, f"{m} x {n}", SEED, partial(reach, m, n), minutes=0.01)
                for m, n in SHAPES
            ),
            *(
                Measurement(BOUND, name, SEED, partial(stretch, name), minutes=0.02)
                for name in NONLINEARITIES
            ),
            *(
                Measurement(
                    f"{GAP}: {model}",
                    str(samples),
                    SEED,
                    partial(generalize, model, samples),
                    STEPS,
                    STEPS * 28 * 250 / 60e6,
                )
                for model in CLASSIFIERS
                for samples in SAMPLES
            ),
        ]

    def text(self, results: Sequence[Result], target: Path) -> list[str]:
        return [
            _statements(),
            *_reach_text([r for r in results if r["model"] == REACH]),
            *_bound_text([r for r in results if r["model"] == BOUND], target),
            *_gap_text([r for r in results if r["model"].startswith(GAP)]),
        ]


def _statements() -> str:
    rows = [
        ["σ within [σ\\* − r, σ\\* + r]", "proved, by construction", "any value of the parameters"],
        ["‖∂h_T/∂h_t‖ ≤ (σ\\* + r)^(T−t)", "proved", "1-Lipschitz φ; any weights and inputs"],
        ["gradients do not explode", "proved", "the line above; with r ≈ 1/T at most e"],
        [
            "gradients do not vanish",
            "**not proved, and false in general**",
            "φ' may be 0; see the measured curves below",
        ],
        ["any matrix is reached", "proved", "p = min(m, n) reflectors a side, free σ, signs"],
        [
            "the gap between training and test is of the order below",
            "proved in the paper, up to constants and logarithms",
            "one layer, bounded inputs, with high probability",
        ],
        ["a smaller order goes with a smaller gap", "empirical", "one task, in the last table"],
    ]
    return table(["statement", "status", "under what"], rows)


def _reach_text(results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    errors = [e for r in results for e in r["errors"]]
    names = list(dict.fromkeys(e["dtype"] for e in errors))
    rows = []
    for r in results:
        for condition in dict.fromkeys(e["condition"] for e in r["errors"]):
            cells = {e["dtype"]: e for e in r["errors"] if e["condition"] == condition}
            rows.append(
                [
                    r["case"].replace("x", "×"),
                    "half rank" if condition is None else f"{condition:g}",
                    *(f"{cells[name]['reconstruction']:.1e}" for name in names),
                    *(f"{cells[name]['singular_values']:.1e}" for name in names),
                ]
            )
    header = ["m × n", "condition", *(f"W, {n}" for n in names), *(f"σ, {n}" for n in names)]
    return [
        "## Expressivity: every matrix is reached",
        "`HouseholderSVD.from_dense` with min(m, n) reflectors a side, for random matrices with "
        "singular values falling from 1 to 1/condition: ‖Ŵ − W‖/‖W‖ (Frobenius), and the largest "
        "error of a σ over the largest σ. Half precision is factored in float32, and the matrix "
        "compared with is the rounded one.",
        table(header, rows),
        "The errors are of the order of rounding at every condition. A layer with fewer reflectors "
        "or with bounds on σ reaches fewer matrices: that is what they are for.",
    ]


def _bound_text(results: Sequence[Result], target: Path) -> list[str]:
    if not results:
        return []
    from spectral_triton.experiments.studies import figures

    curves = {r["case"]: r["curves"] for r in results}
    figures.jacobians(target / "jacobians.png", curves, results[0]["bound"])
    rows = []
    for r in results:
        for name, norms in r["curves"].items():
            # At T both are 1.
            pairs = list(zip(norms, r["bound"], strict=True))[:-1]
            ratios = [norm / bound for norm, bound in pairs]
            rows.append([r["case"], name, f"{max(ratios):.6g}", f"{norms[0]:.3g}"])
    return [
        "## Exploding is excluded, vanishing is not",
        f"Measured ‖∂h_T/∂h_t‖ of random networks in float64, n = {UNITS}, T = {LENGTH}, "
        f"r = {MARGIN:g}, random inputs, beside (1 + r)^(T−t).",
        "![Products of Jacobians](jacobians.png)",
        table(["φ", "σ", "largest ratio to the bound, t < T", "‖∂h_T/∂h_1‖"], rows),
        f"(1 + r)^(T−1) = {results[0]['bound'][0]:.3g}. The identity with every σ at the bound "
        "attains it at every t: no smaller bound holds for all weights.",
    ]


def _gap_text(results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    rows = []
    for r in results:
        terms = r["terms"]
        errors = (r["training_error"], r["margin_error"], r["test_error"])
        rows.append(
            [
                r["model"].removeprefix(f"{GAP}: "),
                f"{terms['samples']:,}",
                *(f"{100 * e:.2f} %" for e in errors),
                f"{100 * (r['test_error'] - r['training_error']):.2f} %",
                f"{terms['input_norm']:.2f}",
                f"{terms['output_norm']:.2f}",
                f"{terms['transition_norm']:.3f}",
                f"{terms['power']:.3g}",
                f"{r['order']:.2g}",
            ]
        )
    d, m, k = results[0]["terms"]["sizes"]
    steps = results[0]["terms"]["steps"]
    return [
        "## The order of the generalisation bound",
        "max(d, m, k) · L² · ‖U‖ ‖V‖ · max(1, ‖W‖^L) / (α √N), with U the input weights, V the "
        "head, W the transition, spectral norms, and constant 1. Digits read row by row "
        f"(L = {steps}, d = {d}, m = {m}, k = {k}), α = {ALPHA:g}, {results[0]['steps']} steps on "
        f"N training digits, seed {SEED}. The margin error is the share of training digits that "
        "win by α or less; the theorem speaks of test error minus margin error.",
        table(
            [
                "model",
                "N",
                "training error",
                "margin error",
                "test error",
                "gap",
                "‖U‖",
                "‖V‖",
                "‖W‖",
                "max(1, ‖W‖^L)",
                "order",
            ],
            rows,
        ),
        "A value above 1 says nothing about error rates as such: none of these does. What the "
        "order does show is where an unbounded network pays: for the spectral models the power of "
        "‖W‖ is known to stay below (σ\\* + r)^L before training, for `rnn` it is whatever "
        "training makes of it. One seed; the gap is the difference of two measured error rates.",
    ]
