"""How much of a loss's gradient reaches each step of the past, in any recurrent network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spectral_triton.runtime.validation import check_floating

State = Tensor | tuple[Tensor, ...] | None


def gradient_norms(
    encoder: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor], state: State = None
) -> tuple[list[float], list[float]]:
    r"""Norms of ∂L/∂h_t for t = 1 .. T, and of the part of it that does not come through h_{t+1}.

    .. math:: \frac{\partial L}{\partial h_t} = d_t +
        \Bigl(\frac{\partial h_{t+1}}{\partial h_t}\Bigr)^{\!\top}
        \frac{\partial L}{\partial h_{t+1}}

    h_t is all that the network carries from step t to t + 1: every layer, of an LSTM h and c
    together. The norms are taken over batch and features at once; those of
    :func:`spectral_triton.analysis.bounds.gradient_bound` are their upper bounds. The network is
    called step by step, in evaluation mode, at a cost of T short calls; nothing is left in
    ``.grad``.

    Args:
        encoder: ``SpectralRNN``, ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` or what is called like them,
            in one direction.
        inputs: Shape ``(T, B, features)``, or ``(B, T, features)`` where ``batch_first``.
        loss: Takes the last layer's outputs, shape ``(T, B, n)``, and returns a scalar.
        state: What the sequence begins from; zeros if None.

    Returns:
        The norms of ∂L/∂h_t and of d_t, T numbers each.

    Raises:
        TypeError: if ``inputs`` is not a real floating-point tensor.
        ValueError: if ``inputs`` is not a batch of sequences, or ``encoder`` runs both ways, or
            ``loss`` returns no scalar with a gradient.

    Example:
        >>> rnn = torch.nn.GRU(3, 8)
        >>> norms, direct = gradient_norms(rnn, torch.randn(20, 4, 3), lambda h: h[-1].sum())
        >>> len(norms), direct[0], direct[-1] == norms[-1]
        (20, 0.0, True)
    """
    check_floating("inputs", inputs)
    if inputs.dim() != 3 or 0 in inputs.shape[:2]:
        raise ValueError(
            f"inputs must be a batch of sequences (T, B, features), got {tuple(inputs.shape)}"
        )
    if getattr(encoder, "bidirectional", False):
        raise ValueError("encoder must run in one direction: of two there is no step before t")
    # cuDNN has no backward pass in evaluation mode.
    with evaluation_mode(encoder), torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
        states, tops = _states(encoder, inputs, state)
        flat = [part for parts in states for part in parts] + tops
        value = loss(torch.stack(tops))
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ValueError(f"loss must return a scalar with a gradient, got {value!r}")
        gradients = torch.autograd.grad(value, flat, allow_unused=True)
    width = len(states[0])
    total = [_norm(gradients[width * t : width * (t + 1)]) for t in range(len(states))]
    direct = [_norm((gradient,)) for gradient in gradients[width * len(states) :]]
    return total, direct


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Without dropout for a while."""
    # Each for itself: one that was frozen in evaluation mode stays so.
    were_training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in were_training:
            part.training = True


def state_parts(state: State) -> tuple[Tensor, ...]:
    """The tensors of a state: h, or h and c."""
    return state if isinstance(state, tuple) else (state,)  # type: ignore[return-value]


def _states(
    encoder: nn.Module, inputs: Tensor, state: State
) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
    states, tops = [], []
    for step in inputs.split(1, dim=1 if getattr(encoder, "batch_first", False) else 0):
        _, state = encoder(step, state)
        # Inputs that need no gradient, met by frozen weights, leave the first state without one.
        parts = tuple(p if p.requires_grad else p.requires_grad_() for p in state_parts(state))
        states.append(parts)
        # A tensor of its own, so that what follows from it directly can be told apart.
        tops.append(parts[0][-1].clone())
    return states, tops


def _norm(gradients: tuple[Tensor | None, ...]) -> float:
    squares = [float(g.double().square().sum()) for g in gradients if g is not None]
    return sum(squares) ** 0.5
