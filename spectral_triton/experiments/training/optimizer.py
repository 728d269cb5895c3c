"""Three learning rates: reflectors, singular values, and everything else."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.models.parameter_groups import parameter_groups


def build_optimizer(model: nn.Module, settings: Settings) -> AdamW:
    """AdamW over the groups that are not empty; of the rest, biases decay, too."""
    groups = parameter_groups(
        model,
        settings.lr,
        singular_values_lr=settings.singular_values_lr,
        reflectors_lr=settings.reflectors_lr,
        weight_decay=settings.weight_decay,
        decay_vectors=True,
    )
    return AdamW([group | {"base_rate": group["lr"]} for group in groups])


def set_rates(optimizer: AdamW, factor: float) -> None:
    """Sets each group's learning rate to ``factor`` times its own base."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor


def descend(model: nn.Module, optimizer: Optimizer, loss: Tensor, clip: float) -> float:
    """A step down the gradient, clipped to a norm unless ``clip`` is 0; none if it is not finite.

    Returns:
        The norm of the gradient before it was clipped.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf))
    if math.isfinite(norm):
        optimizer.step()
    return norm
