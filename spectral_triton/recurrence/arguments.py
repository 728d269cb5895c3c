"""What a recurrence runs on, under one name for all that take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """The arguments of the registered ops, in their order; full precision, on one device.

    The weight comes as W itself (``scale`` and ``q`` None, ``p`` = W), or folded:
    W = diag(scale) - P Qᵀ with P and Q of shape (n, r).

    Attributes:
        x: Inputs (T, B, features), or the rows of a PackedSequence.
        weight_ih: What projects them to n features; None where they are projected already.
        bias_ih: Added to the projection.
        h0: States before the first step, (B, n).
        scale: (n,).
        p: (n, n) or (n, r).
        q: (n, r).
        bias: That of modrelu, (n,).
        batch_sizes: Rows of every step of packed sequences.
        nonlinearity: φ by name.
        slope: That of leaky_relu below zero.
        reverse: Whether the last step comes first.
    """

    x: Tensor
    weight_ih: Tensor | None
    bias_ih: Tensor | None
    h0: Tensor
    scale: Tensor | None
    p: Tensor
    q: Tensor | None
    bias: Tensor | None
    batch_sizes: Tensor | None
    nonlinearity: str
    slope: float
    reverse: bool

    @property
    def rank(self) -> int:
        """r, zero of a W that is not folded."""
        return 0 if self.q is None else self.q.shape[-1]


DIFFERENTIABLE = Arguments._fields[: Arguments._fields.index("batch_sizes")]
"""What a recurrence can be differentiated by."""
