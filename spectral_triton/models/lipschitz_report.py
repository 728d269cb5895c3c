"""Which layer of a network allows how much, and how much of that it makes use of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.models.lipschitz import Known, lipschitz_constant, parts_of

STEPS = 30


@dataclass(frozen=True)
class LayerBound:
    """One layer of a :class:`LipschitzReport`.

    Attributes:
        name: Of the layer in the network, "" for the network itself.
        kind: Its type.
        bound: What it can at most do to a distance.
        reached: What it does to the most stretched direction at an example; None without one.
    """

    name: str
    kind: str
    bound: float
    reached: float | None = None


@dataclass(frozen=True)
class LipschitzReport:
    """Layers in their order, and the whole network; printed as a table."""

    layers: tuple[LayerBound, ...]
    whole: LayerBound

    def __str__(self) -> str:
        rows = [("layer", "type", "at most", "reached")]
        for layer in (*self.layers, self.whole):
            reached = "" if layer.reached is None else f"{layer.reached:.4g}"
            rows.append((layer.name or "all", layer.kind, f"{layer.bound:.4g}", reached))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = ("<", "<", ">", ">")
        lines = (
            "  ".join(f"{cell:{to}{w}}" for cell, to, w in zip(row, aligned, widths, strict=True))
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)


def lipschitz_report(
    module: nn.Module, example: Tensor | None = None, *, known: Known | None = None
) -> LipschitzReport:
    r"""The bounds of :func:`lipschitz_constant` layer by layer, and how nearly they are reached.

    With an example, ``reached`` is the largest singular value of the Jacobian of each layer at what
    it is given there, by power iteration from one random direction: a lower bound of its Lipschitz
    constant. Where it is far below the bound of a convolution or a linear layer, the bound is
    loose, or the example small; of the whole network it falls behind the more, the more layers
    there are, since the directions that they stretch differ.

    Args:
        module: A network whose constant is known. It is run, and not changed.
        example: One input, or a batch.
        known: Constants of further types of modules, as for :func:`lipschitz_constant`.

    Raises:
        TypeError, ValueError: as :func:`lipschitz_constant`.

    Example:
        >>> model = nn.Sequential(SVDLinear(8, 8, margin=0.1), nn.Tanh(), nn.Linear(8, 1))
        >>> report = lipschitz_report(model, torch.randn(1, 8))
        >>> [layer.kind for layer in report.layers]
        ['SVDLinear', 'Tanh', 'Linear']
        >>> all(layer.reached <= 1.001 * layer.bound for layer in report.layers)
        True
    """
    whole = lipschitz_constant(module, known=known).item()
    parts = list(parts_of(module, known or {}))
    bounds = [lipschitz_constant(part, known=known).item() for _, part in parts]
    reached: list[float | None] = [None] * (len(parts) + 1)
    if example is not None:
        if not isinstance(example, Tensor) or not example.is_floating_point():
            raise TypeError(f"example must be a floating point tensor, got {example!r}")
        with _inputs([part for _, part in parts]) as inputs, torch.no_grad():
            module(example)
        given = [*(inputs.get(part) for _, part in parts), example]
        reached = [
            None if x is None else stretch(part, x)
            for part, x in zip([*(part for _, part in parts), module], given, strict=True)
        ]
    layers = tuple(
        LayerBound(name, type(part).__name__, bound, own)
        for (name, part), bound, own in zip(parts, bounds, reached, strict=False)
    )
    return LipschitzReport(layers, LayerBound("", type(module).__name__, whole, reached[-1]))


def stretch(module: nn.Module, x: Tensor, steps: int = STEPS) -> float:
    """The largest singular value of the Jacobian of a module at x, by power iteration."""
    x = x.detach()
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0)).to(x.device)
    size = 0.0
    for _ in range(steps):
        v = v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
        _, tangent = torch.autograd.functional.jvp(module, x, v)
        size = max(size, tangent.norm().item())
        _, v = torch.autograd.functional.vjp(module, x, tangent)
    return size


@contextmanager
def _inputs(parts: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """What each of them is given first."""
    found: dict[nn.Module, Tensor] = {}

    def remember(part: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if given and isinstance(given[0], Tensor):
            found.setdefault(part, given[0].detach())

    handles = [part.register_forward_hook(remember) for part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
