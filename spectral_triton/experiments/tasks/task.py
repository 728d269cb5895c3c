"""What a task is to the training loop: batches, a loss, and a metric with its baseline."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.experiments.tasks.storage import DataFolder


@dataclass(frozen=True)
class Batch:
    """Inputs (T, B, features), or tokens (T, B), and their targets.

    ``fresh`` says that the sequences begin here; otherwise they go on from the last batch.
    """

    inputs: Tensor
    targets: Tensor
    fresh: bool = True

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(self.inputs.to(device), self.targets.to(device), self.fresh)


@dataclass(frozen=True)
class Metric:
    """The number a task is judged by, and its value for an answer that ignores the input."""

    name: str
    label: str
    baseline: float
    baseline_label: str
    higher_is_better: bool = False
    log_scale: bool = False

    def better(self, value: float, than: float | None) -> bool:
        """Whether ``value`` improves on ``than``; anything improves on None."""
        if than is None:
            return True
        return value > than if self.higher_is_better else value < than


@dataclass
class Tally:
    """Sums over the targets seen so far; their means are independent of the batch size."""

    loss: float = 0.0
    correct: float = 0.0
    count: int = 0

    def add(self, other: Tally) -> None:
        """Adds another tally to this one."""
        self.loss += other.loss
        self.correct += other.correct
        self.count += other.count


class Task(ABC):
    """One problem: its data, its loss and its yardstick.

    ``train_batch(step)`` depends on nothing but the seed and the step, so that a run can be
    continued at any step with the data it would have seen.
    """

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    """Options of this task alone, with their defaults."""

    metric: Metric
    input_size: int
    """Features of each step, or the number of tokens where ``reads_tokens``."""
    output_size: int
    reads_tokens: bool = False
    answers_every_step: bool = False
    carries_state: bool = False
    steps_per_epoch: int | None = None
    has_validation: bool = True

    @classmethod
    @abstractmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuses option values that make no sense, before any data is read.

        Raises:
            UsageError: names the option and its value.
        """

    @classmethod
    @abstractmethod
    def defaults(cls, model: str, options: Mapping[str, Any]) -> Settings:
        """Settings with which ``model`` does well on this task."""

    @classmethod
    @abstractmethod
    def build(
        cls,
        options: Mapping[str, Any],
        settings: Settings,
        *,
        seed: int,
        dtype: torch.dtype,
        data: DataFolder,
    ) -> Task:
        """The task with its data made or read."""

    @abstractmethod
    def train_batch(self, step: int) -> Batch:
        """The training data of step 0, 1, 2, ..."""

    @abstractmethod
    def batches(self, split: str) -> Iterator[Batch]:
        """All data of ``"validation"`` or ``"test"``, in a fixed order."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What training minimises: a mean over the targets."""

    @abstractmethod
    def tally(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> Tally:
        """The sums of one batch whose mean loss is known."""

    @abstractmethod
    def results(self, tally: Tally) -> dict[str, float]:
        """Named numbers made from sums; ``metric.name`` is one of them."""


def generator_for(seed: int, *names: object) -> torch.Generator:
    """A generator whose stream depends on the seed and the names and on nothing else."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def shuffled_indices(size: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices of the batch of ``step`` where each epoch is a shuffled pass over all samples."""
    epoch, position = divmod(step, batches_per_epoch(size, batch_size))
    order = torch.randperm(size, generator=generator_for(seed, "order", epoch))
    return order[position * batch_size : (position + 1) * batch_size]


def batches_per_epoch(size: int, batch_size: int) -> int:
    """Batches of one pass; the last one may be smaller."""
    return -(-size // batch_size)
