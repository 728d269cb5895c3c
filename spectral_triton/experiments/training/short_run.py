"""A run without a folder: trained in one go, looked at on the way, and thrown away."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch

from spectral_triton.experiments.errors import TrainingStopped
from spectral_triton.experiments.tasks.task import Tally
from spectral_triton.experiments.training.denormals import flushed_denormals
from spectral_triton.experiments.training.model import SequenceModel, build_model
from spectral_triton.experiments.training.optimizer import build_optimizer, descend, set_rates

if TYPE_CHECKING:
    from spectral_triton.experiments.tasks.task import Task
    from spectral_triton.experiments.training.config import RunConfig
    from spectral_triton.experiments.training.training import Report

Watch = Callable[[int, SequenceModel], None]


@flushed_denormals()
def short_run(
    config: RunConfig,
    task: Task,
    report: Report,
    *,
    watch: Watch | None = None,
    at: Collection[int] = (),
) -> SequenceModel:
    """Trains as ``Training`` does, for tasks that carry no state; returns the model at the end.

    ``watch`` is called with the step and the model after the steps in ``at``; 0 is before the
    first one.

    Raises:
        TrainingStopped: at a loss or gradient that is not a finite number.
    """
    settings, device = config.settings, torch.device(config.device)
    total = settings.total_steps(task.steps_per_epoch)
    torch.manual_seed(config.seed)
    model = build_model(config.model, settings, task, device=device, dtype=config.torch_dtype)
    optimizer = build_optimizer(model, settings)
    report.begin(config.label, total, 0)
    for step in range(total + 1):
        if watch is not None and step in at:
            watch(step, model)
        if step == total:
            break
        batch = task.train_batch(step).to(device)
        set_rates(optimizer, settings.rate_factor(step, total))
        outputs, _ = model(batch.inputs)
        loss = task.loss(outputs, batch.targets)
        norm, value = descend(model, optimizer, loss, settings.clip), float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingStopped(f"loss {value}, norm of the gradient {norm} at step {step + 1}")
        report.advance(step + 1, value)
    return model


@torch.no_grad()
def measure(model: SequenceModel, task: Task, split: str, device: str) -> dict[str, float]:
    """The task's results on ``"validation"`` or ``"test"``."""
    model.eval()
    tally = Tally()
    for batch in task.batches(split):
        batch = batch.to(torch.device(device))
        outputs, _ = model(batch.inputs)
        tally.add(task.tally(task.loss(outputs, batch.targets), outputs, batch.targets))
    model.train()
    return task.results(tally)
