"""One thing to be timed, and the proof that it computes what it is compared on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Absent(Exception):
    """A peer that is not installed, or does not serve the sizes asked for."""


class WrongResult(Exception):
    """A peer whose result is not what it is compared on."""


@dataclass
class Contender:
    """A computation, the tensors it is differentiated by, and what can be checked about it.

    ``expected`` computes the same output in another way. ``matrix`` is the weight that stands for
    the computation; its singular values lie in ``interval`` up to ``tolerance``, which is wider
    than rounding only where the peer itself promises no more than an approximation. ``has_signs``
    says that the diagonal of a square parameter is read as signs, which differences must not move.
    """

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    expected: Callable[[], Tensor] | None = None
    matrix: Callable[[], Tensor] | None = None
    interval: tuple[float, float] = (1.0, 1.0)
    tolerance: float = 1e-4
    has_signs: bool = False

    def backward_ready(self) -> Callable[[], object]:
        """Forward and backward as one call."""
        with torch.no_grad():
            # Not constant: the sum of an orthogonal matrix times ones has too simple a gradient.
            grad = torch.randn_like(self.forward())

        def both() -> object:
            return torch.autograd.grad(self.forward(), self.leaves, grad)

        return both

    def inference(self) -> Tensor:
        """Forward alone, as without training."""
        with torch.no_grad():
            return self.forward()


def optional(module: str) -> Any:
    """The imported module; Absent where it cannot be."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise Absent(f"{module} ({type(error).__name__}: {error})") from error


def of_module(
    layer: nn.Module, x: Tensor, interval: tuple[float, float], tolerance: float = 1e-4
) -> Contender:
    """A linear layer with a readable ``weight``, differentiated by its parameters and its input."""
    return Contender(
        lambda: layer(x),
        (*(p for p in layer.parameters() if p.requires_grad), x),
        lambda: nn.functional.linear(x, layer.weight, layer.bias),
        lambda: layer.weight,
        interval,
        tolerance,
    )


def verify(contender: Contender) -> str | None:
    """What is wrong with the values at the size that is timed; None if nothing is."""
    with torch.no_grad():
        y = contender.forward()
        if not torch.isfinite(y).all():
            return "the output is not finite"
        precise = y.dtype == torch.float64
        if contender.expected is not None:
            expected = contender.expected()
            error = (y - expected).abs().max() / expected.abs().max()
            if error > (1e-10 if precise else 1e-4):
                return f"the output is off by {error:.1e}"
        if contender.matrix is not None:
            sigma = torch.linalg.svdvals(contender.matrix().double())
            low, high = contender.interval
            slack = 1e-10 if precise and contender.tolerance <= 1e-4 else contender.tolerance
            if sigma.min() < low - slack or sigma.max() > high + slack:
                return (
                    f"singular values from {sigma.min():.4f} to {sigma.max():.4f} "
                    f"are not within [{low}, {high}]"
                )
    return None


def prove(contender: Contender) -> str | None:
    """What is wrong with values or gradients, at a small size; None if nothing is.

    The gradient is compared along a random direction with the central difference: in float64,
    or in float32 with less certainty where a peer has no float64.
    """
    if problem := verify(contender):
        return problem
    leaves = contender.leaves
    y = contender.forward()
    weight = torch.randn_like(y)
    grads = torch.autograd.grad(y, leaves, weight)
    directions = [torch.randn_like(leaf) for leaf in leaves]
    if contender.has_signs:
        for direction in directions:
            if direction.dim() == 2 and direction.shape[0] == direction.shape[1]:
                direction.fill_diagonal_(0)
    claimed = sum((g * d).sum().item() for g, d in zip(grads, directions, strict=True))
    step, tolerance = (1e-6, 1e-5) if y.dtype == torch.float64 else (1e-3, 3e-3)
    values = []
    with torch.no_grad():
        for shift in (step, -2 * step):
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.add_(direction, alpha=shift)
            values.append((contender.forward() * weight).sum().item())
        for leaf, direction in zip(leaves, directions, strict=True):
            leaf.add_(direction, alpha=step)
    found = (values[0] - values[1]) / (2 * step)
    scale = sum((g.norm() * d.norm()).item() for g, d in zip(grads, directions, strict=True))
    if abs(found - claimed) > tolerance * scale:
        return f"the gradient gives {claimed:.6g} where differences give {found:.6g}"
    return None
