"""How much of the loss's gradient reaches each step of the past."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectral_triton.experiments.model import SequenceModel
from spectral_triton.experiments.task import Batch


def gradient_norms(
    model: SequenceModel, loss: Callable[[Tensor, Tensor], Tensor], batch: Batch
) -> tuple[list[float], list[float]]:
    r"""Norms of ∂L/∂h_t for t = 1 .. T, and of the part of it that comes straight from the head.

    h_t is all the encoder carries from step t to t + 1 (of an LSTM h and c together), the norm is
    taken over batch and features at once. The encoder is called step by step, as only this gives
    gradients of the states themselves, at a cost of T short calls; nothing is left in ``.grad``.

    With :math:`\rho \ge \lVert\partial h_{t+1} / \partial h_t\rVert` the first is at most
    ``bound(direct, rho)``.
    """
    was_training = model.training
    model.eval()
    try:
        # cuDNN has no backward pass in evaluation mode.
        with torch.backends.cudnn.flags(enabled=False):
            states, tops = _states(model, batch)
            outputs = model.answer(torch.stack(tops) if model.answers_every_step else tops[-1])
            flat = [part for parts in states for part in parts] + tops
            gradients = torch.autograd.grad(loss(outputs, batch.targets), flat, allow_unused=True)
    finally:
        model.train(was_training)
    width = len(states[0])
    total = [_norm(gradients[width * t : width * (t + 1)]) for t in range(len(states))]
    direct = [_norm((gradient,)) for gradient in gradients[width * len(states) :]]
    return total, direct


def bound(direct: list[float], factor: float) -> list[float]:
    r"""The largest norms possible: :math:`\sum_{s \ge t} \rho^{s-t} \lVert d_s \rVert`."""
    bounds, carried = [], 0.0
    for norm in reversed(direct):
        carried = norm + factor * carried
        bounds.append(carried)
    return bounds[::-1]


def _states(model: SequenceModel, batch: Batch) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
    states, tops, state = [], [], None
    for step in model.embed(batch.inputs).split(1):
        _, state = model.encoder(step, state)
        parts = state if isinstance(state, tuple) else (state,)
        states.append(parts)
        # A tensor of its own, so that the head's share of the gradient can be told apart.
        tops.append(parts[0][-1].clone())
    return states, tops


def _norm(gradients: tuple[Tensor | None, ...]) -> float:
    squares = [float(g.double().square().sum()) for g in gradients if g is not None]
    return sum(squares) ** 0.5
