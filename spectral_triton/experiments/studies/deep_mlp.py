"""Feed-forward networks of 5 to 100 layers on MNIST: which of them still train?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spectral_triton.experiments.errors import DataError
from spectral_triton.experiments.studies.investigation import (
    Investigation,
    Measurement,
    Result,
    Surroundings,
)
from spectral_triton.experiments.studies.markdown import spread, table
from spectral_triton.experiments.tasks.mnist import CLASSES, read_mnist
from spectral_triton.experiments.tasks.task import generator_for, shuffled_indices
from spectral_triton.experiments.training.optimizer import descend

if TYPE_CHECKING:
    from spectral_triton.experiments.tasks.storage import DataFolder

DEPTHS = (5, 10, 20, 35, 50, 70, 100)
KINDS = ("plain", "residual", "svd", "svd-residual")
RATES = {"plain": 3e-4, "residual": 3e-4, "svd": 1e-3, "svd-residual": 1e-3}
"""The better of 1e-3 and 3e-4 at the greatest depth tried beforehand, 50 or 100 layers."""

MILLISECONDS = {"plain": 0.4, "residual": 0.45, "svd": 1.3, "svd-residual": 1.3}
"""A layer's share of a step of 128 digits on one CPU core."""

WIDTH, REFLECTORS = 128, 8
MARGINS = {"svd": (1.0, 0.01), "svd-residual": (0.0, 0.1)}
"""(center, margin) of the singular values."""

SIGMA_RATE = 5
STEPS, BATCH, CLIP = 400, 128, 1.0
SEEDS = (0, 1)
MEAN, DEVIATION = 0.1307, 0.3081
THRESHOLDS = (0.5, 0.8, 0.9)
"""Test accuracies: the answer to "how deep can it be" depends on what counts as trained."""


class DeepMLP(nn.Module):
    r"""``depth`` hidden layers of one width between two dense ones.

    .. math:: h_{i+1} = \mathrm{relu}(W_i h_i + b_i) \quad\text{or}\quad
        h_{i+1} = h_i + \mathrm{relu}(W_i h_i + b_i)

    ``plain`` begins with He's normal weights and zero biases, ``residual`` with those of
    ``nn.Linear`` (He's weights would double the variance in every layer), the SVD kinds with
    random reflectors and zero biases, ``svd`` with every σ at the center. In ``svd-residual`` that
    center is 0: with W = 0 and no bias ReLU would stand at its kink, where PyTorch's derivative is
    0, and no hidden layer would ever learn; so σ̂ is drawn from the normal distribution there.
    """

    def __init__(self, kind: str, depth: int, inputs: int, width: int, reflectors: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.hidden = nn.ModuleList(_layer(kind, width, reflectors) for _ in range(depth))
        self.last = nn.Linear(width, CLASSES)
        self.residual = kind.endswith("residual")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.states(x)[-1])

    def states(self, x: Tensor) -> list[Tensor]:
        """h_0 .. h_depth."""
        states = [torch.relu(self.first(x))]
        for layer in self.hidden:
            change = torch.relu(layer(states[-1]))
            states.append(states[-1] + change if self.residual else change)
        return states


def _layer(kind: str, width: int, reflectors: int) -> nn.Module:
    if kind in MARGINS:
        from spectral_triton import SigmoidSpectrum, SVDLinear

        center, margin = MARGINS[kind]
        spectrum = SigmoidSpectrum(center=center, margin=margin)
        bounded = SVDLinear(width, width, num_reflectors=reflectors, spectrum=spectrum)
        raw = bounded.svd.raw_singular_values
        if kind == "svd-residual" and raw is not None:
            nn.init.normal_(raw)
        bounded.bias = nn.Parameter(torch.zeros(width))
        return bounded
    layer = nn.Linear(width, width)
    if kind == "plain":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return layer


def train(
    kind: str,
    depth: int,
    seed: int,
    surroundings: Surroundings,
    *,
    steps: int = STEPS,
    width: int = WIDTH,
    reflectors: int = REFLECTORS,
) -> dict[str, Any]:
    """Trains one network, at most to a gradient that is not finite, and tests it."""
    device = surroundings.device
    digits = _mnist(surroundings.data, device)
    images, labels = digits["train"]
    torch.manual_seed(seed)
    model = DeepMLP(kind, depth, images.shape[1], width, reflectors).to(device)
    optimizer = _optimizer(model, RATES[kind])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator_seed = int(torch.randint(2**31, (), generator=generator_for(seed, "deep-mlp")))
    shares, losses = {"start": gradient_share(model, images[:BATCH], labels[:BATCH])}, []
    surroundings.report.begin(f"{kind} {depth} seed {seed}", steps, 0)
    start, stopped = time.perf_counter(), None
    for step in range(steps):
        chosen = shuffled_indices(len(labels), BATCH, step, generator_seed).to(device)
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        if not math.isfinite(descend(model, optimizer, loss, CLIP)):
            stopped = step + 1
            break
        schedule.step()
        losses.append(float(loss.detach()))
        surroundings.report.advance(step + 1, losses[-1])
    shares["end"] = gradient_share(model, images[:BATCH], labels[:BATCH])
    return {
        "kind": kind,
        "depth": depth,
        "accuracy": accuracy(model, *digits["test"]),
        "training_loss": sum(losses[-20:]) / len(losses[-20:]) if losses else None,
        "stopped_at": stopped,
        "first_over_last_gradient": shares,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "batch_size": BATCH,
        "lr": RATES[kind],
        "seconds": time.perf_counter() - start,
    }


@lru_cache(maxsize=1)
def _mnist(data: DataFolder, device: str) -> dict[str, tuple[Tensor, Tensor]]:
    digits = read_mnist(data)
    classes = int(digits["train"].labels.max()) + 1
    if classes > CLASSES:
        raise DataError(f"deep-mlp is for {CLASSES} classes, the data has {classes}")
    return {
        split: (
            ((labelled.sequences.flatten(1).float() / 255 - MEAN) / DEVIATION).to(device),
            labelled.labels.to(device),
        )
        for split, labelled in digits.items()
    }


def _optimizer(model: nn.Module, rate: float) -> torch.optim.Adam:
    named = list(model.named_parameters())
    sigma = [p for name, p in named if name.endswith("raw_singular_values")]
    rest = [p for name, p in named if not name.endswith("raw_singular_values")]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": rate}]
    if sigma:
        groups.append({"params": sigma, "lr": SIGMA_RATE * rate})
    return torch.optim.Adam(groups)


def gradient_share(model: DeepMLP, images: Tensor, labels: Tensor) -> float:
    """‖∂L/∂h_0‖ over ‖∂L/∂h_depth‖ for one batch."""
    states = model.states(images)
    loss = nn.functional.cross_entropy(model.last(states[-1]), labels)
    first, last = torch.autograd.grad(loss, [states[0], states[-1]])
    return float(first.double().norm() / last.double().norm())


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of digits that are named rightly."""
    batches = zip(images.split(1000), labels.split(1000), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


class DeepMLPStudy(Investigation):
    """All kinds at all depths, one seed after the other."""

    name = "deep-mlp"
    title = "Feed-forward networks of 5 to 100 layers on MNIST"

    def measurements(self) -> list[Measurement]:
        return [
            Measurement(
                kind,
                str(depth),
                seed,
                partial(train, kind, depth, seed),
                STEPS,
                STEPS * depth * MILLISECONDS[kind] / 60e3,
            )
            for seed in SEEDS
            for depth in DEPTHS
            for kind in KINDS
        ]

    def text(self, results: Sequence[Result], target: Path) -> list[str]:
        from spectral_triton.experiments.studies import figures

        cells: dict[str, dict[int, list[Result]]] = {}
        for result in results:
            row = cells.setdefault(result["kind"], {})
            row.setdefault(result["depth"], []).append(result)
        curves = {
            kind: {depth: [r["accuracy"] for r in runs] for depth, runs in row.items()}
            for kind, row in cells.items()
        }
        figures.accuracy_over_depth(target / "depth.png", curves, chance=1 / CLASSES)
        seeds = sorted({r["seed"] for r in results})
        header = ["layers", *cells]
        return [
            f"{WIDTH} units in every hidden layer, {STEPS} steps of Adam with {BATCH} digits each "
            f"(less than one epoch), cosine decay, gradients clipped to norm {CLIP:g}; seeds "
            f"{' and '.join(map(str, seeds))}. Learning rates: "
            + ", ".join(f"{kind} {rate:g}" for kind, rate in RATES.items())
            + f"; σ̂ {SIGMA_RATE} times that. SVD layers have {REFLECTORS} + {REFLECTORS} "
            "reflectors; σ lies in "
            + " and ".join(f"{c:g} ± {r:g} ({kind})" for kind, (c, r) in MARGINS.items())
            + ". Plain layers begin with He's weights, residual ones with those of `nn.Linear`.",
            "![Test accuracy over depth](depth.png)",
            "Test accuracy after the last step, mean (lowest to highest seed):",
            table(header, _rows(cells, lambda rs: spread("accuracy", _all(rs, "accuracy")))),
            "Deepest network whose mean test accuracy is at least:",
            table(
                ["", *cells],
                [
                    [f"{100 * least:.0f} %", *(_deepest(row, least) for row in curves.values())]
                    for least in THRESHOLDS
                ],
            ),
            "The paper reports that plain networks fail beyond 35 layers and residual ones beyond "
            "70.",
            "‖∂L/∂h_0‖ / ‖∂L/∂h_depth‖ before → after training, first seed:",
            table(header, _rows(cells, _share)),
            "## What this does not show",
            "Few seeds, one learning rate a kind, a fixed and small number of steps: a network "
            "that is behind here may only be slower, and a schedule made for it may close the gap. "
            "The optimizer, batches and weights the paper began with are not known to be these. "
            "An SVD layer has a seventh of a dense layer's parameters and takes about three times "
            "as long. With 8 + 8 reflectors a fresh one leaves most directions as they are, so "
            "`svd` begins near the identity, which is part of what sets it apart from `plain`. "
            "Wider bands and more reflectors were not tried at full length.",
        ]


def _rows(cells: dict[str, dict[int, list[Result]]], cell: Any) -> list[list[str]]:
    depths = sorted({depth for row in cells.values() for depth in row})
    return [
        [str(depth), *(cell(row[depth]) if depth in row else "-" for row in cells.values())]
        for depth in depths
    ]


def _all(results: Sequence[Result], name: str) -> list[float]:
    return [r[name] for r in results]


def _share(results: Sequence[Result]) -> str:
    share = results[0]["first_over_last_gradient"]
    return f"{share['start']:.2g} → {share['end']:.2g}"


def _deepest(row: dict[int, list[float]], least: float) -> str:
    trained = [depth for depth, values in row.items() if sum(values) / len(values) >= least]
    return str(max(trained)) if trained else "none"
