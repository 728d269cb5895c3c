r"""The time loop in plain PyTorch: preallocated buffers, a few in-place calls a step, no autograd.

Note [Chunks]
    On a CPU a step is a small product, and memory is what costs: fresh pages, and sequences that
    leave the cache between two passes over them. So the steps are taken in chunks that stay in
    cache. Forward, a chunk's inputs are projected into the memory of its outputs, where the steps
    then add to them. Backward, the gradients of a chunk's pre-activations live in a small buffer
    and go into the sums for all weights while they are at hand. Nothing of the size of the
    sequence is written but the output and, where it is asked for, the gradient of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_triton.recurrence.arguments import Arguments
from spectral_triton.recurrence.gradient_sums import GradientSums
from spectral_triton.recurrence.nonlinearity import activation_, derivative_
from spectral_triton.recurrence.steps import Steps, carry, flat, rows_at_once

# Elements of a chunk on a CPU: half a MiB in float32, so that all it needs stays in a core's cache.
CHUNK = 1 << 17
# Rows below which products over a chunk's rows are too thin.
FEWEST_ROWS = 256


def chunk_rows(n: int, device: torch.device) -> int:
    """Rows of n features to take at once."""
    return max(FEWEST_ROWS, rows_at_once(n, CHUNK, device))


def project(x: Tensor, weight: Tensor | None, bias: Tensor | None, out: Tensor) -> None:
    """weight x + bias for every row, x itself without a weight, into ``out``."""
    if weight is None:
        out.copy_(x)
    elif bias is None:
        torch.mm(x, weight.mT, out=out)
    else:
        torch.addmm(bias, x, weight.mT, out=out)


def loop_fwd(a: Arguments) -> tuple[Tensor, Tensor]:
    """All states, and the coefficients Qᵀ h of every step (none if not folded)."""
    n, shape = a.h0.shape[-1], a.x.shape[:-1]
    # In their final shape: of a view, as which they would be returned, nobody may change a part.
    states, kept = a.x.new_empty(*shape, n), a.x.new_empty(*shape, a.rank)
    x, y, coefficients = (flat(rows, a.batch_sizes) for rows in (a.x, states, kept))
    activate = activation_(a.nonlinearity, a.slope, a.bias)
    p_t = a.p.mT.contiguous()
    h = a.h0
    for chunk in Steps.of(a.x, a.batch_sizes, a.reverse).chunks(chunk_rows(n, x.device)):
        rows = chunk.of(y)
        project(chunk.of(x), a.weight_ih, a.bias_ih, rows)
        parts = chunk.split(rows), chunk.split(chunk.of(coefficients))
        for y_t, c_t in zip(*parts, strict=True):
            h = carry(h, a.h0, len(y_t))
            if a.q is None:
                y_t.addmm_(h, p_t)
            else:
                torch.mm(h, a.q, out=c_t)
                y_t.addcmul_(h, a.scale).addmm_(c_t, p_t, alpha=-1)
            activate(y_t)
            h = y_t
    return states, kept


class _Transpose:
    """Multiplies gradients by Wᵀ."""

    def __init__(self, scale: Tensor | None, p: Tensor, q: Tensor | None) -> None:
        self.scale, self.p = scale, p.contiguous()
        self.q_t = None if q is None else q.mT.contiguous()

    def into(self, out: Tensor, dz: Tensor, coefficients: Tensor, base: Tensor | None) -> None:
        """base + Wᵀ dz into out, Pᵀ dz into coefficients if folded."""
        if self.q_t is None:
            if base is None:
                torch.mm(dz, self.p, out=out)
            else:
                torch.addmm(base, dz, self.p, out=out)
            return
        torch.mm(dz, self.p, out=coefficients)
        if base is None:
            torch.mul(dz, self.scale, out=out)
        else:
            torch.addcmul(base, dz, self.scale, out=out)
        out.addmm_(coefficients, self.q_t, alpha=-1)


def loop_bwd(
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    y: Tensor,
    coefficients: Tensor,
    a: Arguments,
    sums: GradientSums,
) -> tuple[Tensor, Tensor]:
    """Gradients of x (empty unless ``sums`` wants it) and of h0; those of weights go to ``sums``.

    ``grad_y`` belongs to the outputs, ``grad_last`` to each sequence's last state; None is zero.
    """
    steps = Steps.of(y, a.batch_sizes, a.reverse)
    x, y, coefficients = (flat(rows, a.batch_sizes) for rows in (a.x, y, coefficients))
    grad_y = None if grad_y is None else flat(grad_y, a.batch_sizes)
    h0, q, weight_ih = a.h0, a.q, a.weight_ih
    n, wants_x = h0.shape[-1], sums.wants("x")
    grad_x = x.new_empty(x.shape if wants_x else (0,))
    grad_h0 = torch.empty_like(h0, memory_format=torch.contiguous_format)
    chunks = list(steps.chunks(chunk_rows(n, x.device), backward=True))
    longest = max((chunk.end - chunk.start for chunk in chunks), default=0)
    buffer = None if wants_x and weight_ih is None else y.new_empty(longest, n)
    back = y.new_empty(longest, a.rank)
    deactivate, transpose = derivative_(a.nonlinearity, a.slope), _Transpose(a.scale, a.p, q)
    last = torch.zeros_like(h0) if grad_last is None else grad_last
    carried = last  # What has come down to the state before the step at hand.
    for chunk in chunks:
        size = chunk.end - chunk.start
        dz_rows = chunk.of(grad_x) if buffer is None else buffer[:size]
        back_rows = back[:size]
        parts = [chunk.split(rows, True) for rows in (chunk.of(y), dz_rows, back_rows)]
        incoming: Sequence[Tensor | None] = [None] * len(parts[0])
        if grad_y is not None:
            incoming = chunk.split(chunk.of(grad_y), True)
        dz = c = None
        for y_t, dz_t, c_t, dy_t in zip(*parts, incoming, strict=True):
            if dz is not None and len(dz) == len(dz_t):
                transpose.into(dz_t, dz, c, dy_t)
            else:
                if dz is not None:
                    carried = torch.empty_like(dz)
                    transpose.into(carried, dz, c, None)
                if len(carried) > len(dz_t):  # These sequences start here, going back in time.
                    grad_h0[len(dz_t) : len(carried)] = carried[len(dz_t) :]
                carried = carry(carried, last, len(dz_t))
                dz_t.copy_(carried) if dy_t is None else torch.add(carried, dy_t, out=dz_t)
            deactivate(dz_t, y_t)
            dz, c = dz_t, c_t
        if dz is not None:
            carried = torch.empty_like(dz)
            transpose.into(carried, dz, c, None)
        if buffer is not None and wants_x:
            torch.mm(dz_rows, weight_ih, out=chunk.of(grad_x))
        products = (None, None) if q is None else (chunk.of(coefficients), back_rows)
        sums.add(dz_rows, chunk.of(x), chunk.of(y), chunk.before(y, h0), *products)
    grad_h0[: len(carried)] = carried
    return grad_x, grad_h0
