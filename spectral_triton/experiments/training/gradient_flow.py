"""How much of a task's loss reaches each step of the past."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from spectral_triton.analysis import gradient_flow
from spectral_triton.experiments.tasks.task import Batch
from spectral_triton.experiments.training.model import SequenceModel


def gradient_norms(
    model: SequenceModel, loss: Callable[[Tensor, Tensor], Tensor], batch: Batch
) -> tuple[list[float], list[float]]:
    """:func:`spectral_triton.analysis.gradient_flow.gradient_norms` of the model's encoder."""

    def loss_of(hidden: Tensor) -> Tensor:
        outputs = model.answer(hidden if model.answers_every_step else hidden[-1])
        return loss(outputs, batch.targets)

    with gradient_flow.evaluation_mode(model):
        return gradient_flow.gradient_norms(model.encoder, model.embed(batch.inputs), loss_of)
