"""The adding problem: remember two marked numbers of a long sequence and give their sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.tasks.networks import GATED_MODELS, SPECTRAL_MODELS
from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.tasks.task import Batch, Metric, Tally, Task, generator_for

HELD_OUT = {"validation": 2000, "test": 5000}
EVALUATION_BATCH = 250


class Adding(Task):
    r"""Two inputs per step: a number from U[0, 1) and a mark, 1 at one step of each half.

    The target is the sum of the marked numbers. Always answering 1 has mean squared error
    :math:`\mathrm{Var}(U_1 + U_2) = 1/6`.

    Args:
        length: Steps T of each sequence, at least 2.
        batch_size: Sequences in a batch.
        seed: Everything is drawn from streams of this seed.
        dtype: Of inputs and targets; the numbers drawn do not depend on it.

    Raises:
        UsageError: if ``length < 2``.

    References:
        Hochreiter, Schmidhuber. Long short-term memory. Neural Computation 9(8), 1997.
    """

    name = "adding"
    options: ClassVar[dict[str, Any]] = {"length": 200}
    input_size = 2
    output_size = 1
    metric = Metric(
        name="mse",
        label="mean squared error",
        baseline=1 / 6,
        baseline_label="always answering 1",
        log_scale=True,
    )

    def __init__(self, length: int, batch_size: int, *, seed: int, dtype: torch.dtype) -> None:
        self.check_options({"length": length})
        self.length, self.batch_size, self.seed, self.dtype = length, batch_size, seed, dtype

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        if options["length"] < 2:
            raise UsageError(f"--length must be at least 2, not {options['length']}")

    @classmethod
    def defaults(cls, model: str, options: Mapping[str, Any]) -> Settings:
        length = options["length"]
        # The marks are found after about 700 steps at T = 200 and 2,300 at T = 400.
        steps = max(4000, 20 * length)
        if model not in SPECTRAL_MODELS:
            # At 5e-3 an LSTM stays at the baseline for 3,500 steps; at 1e-2 it leaves it.
            rate = 1e-2 if model in GATED_MODELS else 1e-3
            return Settings(steps=steps, lr=rate, reflectors_lr=rate, singular_values_lr=5 * rate)
        rate = 5e-3 if length <= 200 else 3e-3
        return Settings(
            steps=steps,
            nonlinearity="leaky_relu",
            # Turning planes let an accidental sum of all inputs die away; the identity keeps it.
            init="cayley",
            # A gradient may grow by (1 + margin)^T, so a longer memory needs a narrower band.
            margin=min(0.02, 4 / length),
            lr=rate,
            # Not critical: over T = 50, from 1 to 64 times the rate of the rest are level.
            reflectors_lr=8 * rate,
            singular_values_lr=5 * rate,
        )

    @classmethod
    def build(
        cls,
        options: Mapping[str, Any],
        settings: Settings,
        *,
        seed: int,
        dtype: torch.dtype,
        data: DataFolder,
    ) -> Adding:
        return cls(options["length"], settings.batch_size, seed=seed, dtype=dtype)

    def train_batch(self, step: int) -> Batch:
        return self._draw("train", step, self.batch_size)

    def batches(self, split: str) -> Iterator[Batch]:
        for index in range(HELD_OUT[split] // EVALUATION_BATCH):
            yield self._draw(split, index, EVALUATION_BATCH)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(outputs, targets)

    def tally(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> Tally:
        count = targets.shape[0]
        return Tally(loss=float(loss) * count, count=count)

    def results(self, tally: Tally) -> dict[str, float]:
        return {"mse": tally.loss / tally.count}

    def _draw(self, split: str, index: int, batch: int) -> Batch:
        generator = generator_for(self.seed, self.name, split, index)
        half = self.length // 2
        numbers = torch.rand(self.length, batch, generator=generator, dtype=torch.float64)
        first = torch.randint(0, half, (batch,), generator=generator)
        second = torch.randint(half, self.length, (batch,), generator=generator)
        column = torch.arange(batch)
        marks = torch.zeros_like(numbers)
        marks[first, column] = 1
        marks[second, column] = 1
        targets = (numbers[first, column] + numbers[second, column]).unsqueeze(1)
        inputs = torch.stack([numbers, marks], dim=-1)
        return Batch(inputs.to(self.dtype), targets.to(self.dtype))
