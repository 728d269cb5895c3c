"""The stored reproductions, with the settings they were found to work with and what they cost.

Costs were measured on one core of an AMD EPYC server, those of MNIST of an Intel Xeon, and are
printed before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from spectral_triton.experiments import former_names
from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.studies.archive import CLASSIFIERS, UCR_LENGTHS
from spectral_triton.experiments.studies.deep_mlp import DeepMLPStudy
from spectral_triton.experiments.studies.gradient_study import GradientStudy
from spectral_triton.experiments.studies.plan import Case, Goal, Published, Recipe, Search
from spectral_triton.experiments.studies.reproduction import Reproduction
from spectral_triton.experiments.studies.sensitivity import Sensitivity
from spectral_triton.experiments.studies.study import Study
from spectral_triton.experiments.studies.theory import Theory
from spectral_triton.experiments.tasks.ucr import FOLDS

RATES = ({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2})
# Of weights without bounds that are multiplied 784 times.
LOW_RATES: tuple[Mapping[str, Any], ...] = tuple({"lr": rate} for rate in (1e-5, 3e-5, 1e-4, 3e-4))
SUMMING: Mapping[str, Any] = {"init": "identity", "nonlinearity": "relu"}
TURNING: Mapping[str, Any] = {"init": "cayley", "nonlinearity": "leaky_relu"}


def _adding(length: int, steps: int) -> Study:
    cost = {"spectral": 64, "orthogonal": 64, "rnn": 40, "irnn": 40, "lstm": 130, "gru": 110}
    return Study(
        name=f"adding-{length}",
        title=f"Adding problem, T = {length}",
        task="adding",
        cases={"": Case({"length": length}, length)},
        recipes={model: Recipe({}, cost[model], RATES) for model in cost},
        steps=steps,
        goal=Goal("mse", 0.01),
        search=Search(steps=1000, evaluations=5),
    )


def _copying(length: int, steps: int) -> Study:
    cost = {"spectral": 120, "orthogonal": 120, "rnn": 150, "irnn": 150, "lstm": 300, "gru": 400}
    rates = dict.fromkeys(("rnn", "lstm", "gru"), 1e-2)  # Found by a search at 200 steps.
    return Study(
        name=f"copying-{length}",
        title=f"Copying problem, T = {length}",
        task="copying",
        cases={"": Case({"length": length}, length + 20)},
        recipes={
            model: Recipe({"lr": rates.get(model, 3e-3)}, cost[model], RATES) for model in cost
        },
        steps=steps,
        goal=Goal("recall", 0.99, higher_is_better=True),
        also=("recall",),
        search=Search(steps=400, evaluations=4),
    )


PAPER = "arXiv 1803.09327"
SEQUENTIAL = (
    Published("Spectral-RNN, 128 units, 16 + 16 reflectors", "97.7 %", PAPER),
    Published("oRNN, 256 units", "97.2 %", PAPER),
    Published("RNN", "94.1 %", PAPER),
    Published("LSTM", "97.3 %", PAPER),
    Published("orthogonal RNN, 170 units", "98.5 %", "GeoTorch's example"),
)
# Ahead of the others after two epochs: permuted, and with planes enough to turn also in order.
PLANES = {"init": "cayley", "nonlinearity": "modrelu", "lr": 1e-3}
FEW_PLANES = {**PLANES, "lr": 3e-3}
PERMUTED = (Published("relatives with orthogonal weights", "95.2 %", "their papers"),)


def _mnist(
    name: str,
    epochs: int,
    batch_size: int,
    *,
    found: Mapping[str, Any] = MappingProxyType({}),
    permuted: bool = False,
    size: str = "",
    cost_factor: float = 1.0,
    **common: Any,
) -> Study:
    cost = {"spectral": 105, "orthogonal": 105, "rnn": 135, "irnn": 120, "lstm": 430}
    order = "Permuted MNIST" if permuted else "Sequential MNIST"
    larger = {"batch_size": 2 * batch_size}
    variants: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]] = {
        "spectral": (found, SUMMING, TURNING),
        "orthogonal": (found, SUMMING, TURNING),
        "rnn": ({}, {}, {"nonlinearity": "relu"}),
        # With higher rates the first steps are enough for 784 of them to overflow.
        "irnn": ({"lr": 1e-5}, {}, larger),
        "lstm": ({}, {}, larger),
    }
    lower = {
        "rnn": tuple(
            {**way, **rate} for way in ({}, {"nonlinearity": "relu"}) for rate in LOW_RATES
        ),
        "irnn": LOW_RATES,
    }
    return Study(
        name=name,
        title=", ".join(filter(None, (order, size, f"{epochs} epochs"))),
        task="sequential-mnist",
        cases={"": Case({"permuted": permuted}, 784)},
        recipes={
            model: Recipe(
                settings,
                cost_factor * cost[model],
                (
                    *({**way, **rate} for way in (first, second) for rate in RATES),
                    *lower.get(model, ()),
                ),
            )
            for model, (settings, first, second) in variants.items()
        },
        common={
            "evaluations": 2 * epochs,
            "batch_size": batch_size,
            "num_reflectors": (16, 16),
            **common,
        },
        steps=epochs * 55000 // batch_size,
        published=PERMUTED if permuted else SEQUENTIAL,
        search=Search(steps=400, evaluations=2),
    )


ONE_LAYER = {"spectral": 200, "rnn": 198, "lstm": 188}
GATES_TOO = {**ONE_LAYER, "spectral-lstm": 190}


def _treebank(
    name: str,
    layers: int,
    sizes: Mapping[str, int],
    *,
    epochs: int = 1,
    search_steps: int = 100,
    found: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    **common: Any,
) -> Study:
    cost = {"spectral": 6000, "rnn": 6000, "lstm": 4500, "spectral-lstm": 6500}
    length = f", {epochs} epochs" if epochs > 1 else ""
    return Study(
        name=name,
        title=f"Penn Treebank, {layers} layer{'s' * (layers > 1)}, equal parameters{length}",
        task="ptb",
        cases={"": Case({}, 35)},
        recipes={
            model: Recipe(
                {"hidden_size": size, "num_layers": layers, **found.get(model, {})},
                cost[model] * layers,
                RATES,
            )
            for model, size in sizes.items()
        },
        common={"evaluations": 4 * epochs, **common},
        steps=1328 * epochs,
        search=Search(steps=search_steps, evaluations=1),
    )


def _archive() -> Study:
    variants: dict[str, Mapping[str, Any]] = {
        "spectral": TURNING,
        "orthogonal": TURNING,
        "rnn": {"nonlinearity": "relu"},
        "lstm": {"batch_size": 16},
    }
    cost = {"spectral": 21, "orthogonal": 21, "rnn": 18, "lstm": 24}
    return Study(
        name="ucr",
        title="UCR archive, 30 data sets",
        task="ucr",
        cases={name: Case({"dataset": name}, length) for name, length in UCR_LENGTHS.items()},
        recipes={
            model: Recipe(
                {"lr": 1e-2},
                cost[model],
                (*RATES, *({**variant, **rate} for rate in RATES)),
            )
            for model, variant in variants.items()
        },
        common={"hidden_size": 32, "num_reflectors": (8, 8)},
        steps=750,
        search=Search(steps=500, cases=("MedicalImages", "SwedishLeaf", "SyntheticControl")),
    )


def _archive_both_ways() -> Study:
    """As :func:`_archive`, read both ways; every choice was made on folds of the training part."""
    candidates: dict[str, tuple[Mapping[str, Any], ...]] = {
        "spectral": (SUMMING, TURNING),
        "lstm": RATES[1:],
        "gru": RATES[1:],
    }
    cost = {"spectral": 42, "lstm": 48, "gru": 54}
    return Study(
        name="ucr-both-ways",
        title="UCR archive, 30 data sets, read both ways",
        task="ucr",
        cases={name: Case({"dataset": name}, length) for name, length in UCR_LENGTHS.items()},
        recipes={
            model: Recipe(TURNING if model == "spectral" else {}, cost[model], candidates[model])
            for model in cost
        },
        common={"hidden_size": 32, "num_reflectors": (8, 8), "bidirectional": True, "lr": 1e-2},
        steps=750,
        published=CLASSIFIERS,
        search=Search(steps=750, evaluations=1, folds=FOLDS),
    )


STUDIES = (
    _adding(200, 4000),
    _adding(750, 10000),
    _adding(1000, 15000),
    _copying(200, 4000),
    _copying(500, 6000),
    _copying(1000, 10000),
    _mnist("sequential-mnist-short", 4, 100),
    _mnist("sequential-mnist", 25, 50),
    _mnist(
        "sequential-mnist-64",
        25,
        50,
        found=PLANES,
        size="64 + 64 reflectors",
        num_reflectors=(64, 64),
    ),
    _mnist("permuted-mnist", 25, 50, permuted=True, found=FEW_PLANES),
    _mnist(
        "permuted-mnist-64",
        25,
        50,
        permuted=True,
        found=PLANES,
        size="64 + 64 reflectors",
        num_reflectors=(64, 64),
    ),
    _mnist(
        "permuted-mnist-170",
        25,
        50,
        permuted=True,
        found=PLANES,
        size="170 units, all reflectors",
        cost_factor=1.4,
        hidden_size=170,
        num_reflectors=None,
    ),
    _mnist(
        "permuted-mnist-170-rebase",
        25,
        50,
        permuted=True,
        found=PLANES,
        size="170 units, 16 + 16 reflectors rebased every 30 steps",
        cost_factor=1.2,
        hidden_size=170,
        rebase=30,
    ),
    _treebank("ptb-1", 1, ONE_LAYER),
    _treebank(
        "ptb-1-long",
        1,
        GATES_TOO,
        epochs=4,
        search_steps=664,
        found={
            "spectral": {"lr": 1e-2},
            "lstm": {"lr": 1e-2},
            "spectral-lstm": {"lr": 1e-2, "num_reflectors": (64, 64)},
        },
        dropout=0.3,
    ),
    _treebank("ptb-2", 2, {"spectral": 200, "rnn": 197, "lstm": 179}),
    _archive(),
    _archive_both_ways(),
)

INVESTIGATIONS = (DeepMLPStudy(), GradientStudy(), Sensitivity(), Theory())

REPRODUCTIONS: dict[str, Reproduction] = {
    study.name: study for study in (*STUDIES, *INVESTIGATIONS)
}
"""All of them by the name the command line knows them by, in the order in which ``all`` runs."""


def find(name: str) -> list[Reproduction]:
    """The reproduction called ``name``, now or formerly, or every one for ``"all"``.

    Raises:
        UsageError: if there is none of that name.
    """
    if name == "all":
        return list(REPRODUCTIONS.values())
    name = former_names.REPRODUCTIONS.get(name, name)
    if name not in REPRODUCTIONS:
        raise UsageError(f"no reproduction {name!r}: choose from {', '.join(REPRODUCTIONS)}, all")
    return [REPRODUCTIONS[name]]
