"""Cross-entropy and accuracy, and the tasks that give one label to a whole sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_triton.experiments.tasks.task import (
    Batch,
    Metric,
    Tally,
    Task,
    batches_per_epoch,
    shuffled_indices,
)

IGNORED = -100


def accuracy_metric(classes: int) -> Metric:
    """Accuracy with chance as its baseline."""
    return Metric(
        name="accuracy",
        label="accuracy",
        baseline=1 / classes,
        baseline_label=f"chance, 1 of {classes}",
        higher_is_better=True,
    )


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (..., classes) over the targets that count."""
    return torch.nn.functional.cross_entropy(
        outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED
    )


@dataclass(frozen=True)
class LabelledSequences:
    """Sequences (N, T, features) of any numeric dtype with labels (N,)."""

    sequences: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, order: Tensor, held_out: int) -> tuple[LabelledSequences, LabelledSequences]:
        """All but the last ``held_out`` of ``order``, and those."""
        cut = len(order) - held_out
        return self.take(order[:cut]), self.take(order[cut:])

    def take(self, indices: Tensor) -> LabelledSequences:
        """The samples at ``indices``."""
        return LabelledSequences(self.sequences[indices], self.labels[indices])


class SequenceClassification(Task):
    """One label for each whole sequence, read after its last step; subclasses bring the data."""

    def __init__(
        self,
        splits: dict[str, LabelledSequences],
        classes: int,
        batch_size: int,
        *,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        self.splits, self.batch_size, self.seed, self.dtype = splits, batch_size, seed, dtype
        self.metric = accuracy_metric(classes)
        self.input_size = splits["train"].sequences.shape[-1]
        self.output_size = classes
        self.steps_per_epoch = batches_per_epoch(len(splits["train"]), batch_size)
        self.has_validation = len(splits.get("validation", ())) > 0

    def prepare(self, sequences: Tensor) -> Tensor:
        """Stored sequences (B, T, features) as the model reads them, in the task's dtype."""
        return sequences.to(self.dtype)

    def train_batch(self, step: int) -> Batch:
        data = self.splits["train"]
        return self._batch(data.take(shuffled_indices(len(data), self.batch_size, step, self.seed)))

    def batches(self, split: str) -> Iterator[Batch]:
        data = self.splits[split]
        for indices in torch.arange(len(data)).split(max(self.batch_size, 250)):
            yield self._batch(data.take(indices))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)

    def tally(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> Tally:
        count = len(targets)
        correct = float((outputs.argmax(-1) == targets).sum())
        return Tally(loss=float(loss) * count, correct=correct, count=count)

    def results(self, tally: Tally) -> dict[str, float]:
        return {"loss": tally.loss / tally.count, "accuracy": tally.correct / tally.count}

    def _batch(self, data: LabelledSequences) -> Batch:
        return Batch(self.prepare(data.sequences).transpose(0, 1).contiguous(), data.labels)
