"""The recurrence in operations that have derivatives of every kind, slower than the loop.

All tensors have one more leading dimension where a recurrence is mapped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_triton.recurrence.arguments import Arguments
from spectral_triton.recurrence.gradient_sums import GradientSums
from spectral_triton.recurrence.nonlinearity import activation, derivative
from spectral_triton.recurrence.steps import Steps, carry, flat


def plain_fwd(a: Arguments) -> tuple[Tensor, Tensor]:
    """All states, and Qᵀ h of every step."""
    x, weight_ih, bias_ih, h0, scale, p, q, bias, batch_sizes, nonlinearity, slope, reverse = a
    whole = Steps.of(x, batch_sizes, reverse).whole()
    rows = flat(x, batch_sizes)
    rows = rows if weight_ih is None else rows @ weight_ih.mT
    rows = rows if bias_ih is None else rows + bias_ih.unsqueeze(-2)
    scale, bias = (None if v is None else v.unsqueeze(-2) for v in (scale, bias))
    h, outputs, kept = h0, [], []
    for x_t in whole.split(rows):
        h = carry(h, h0, x_t.shape[-2])
        if q is None:
            product = h @ p.mT
        else:
            kept.append(h @ q)
            product = h * scale - kept[-1] @ p.mT
        h = activation(x_t + product, nonlinearity, slope, bias)
        outputs.append(h)
    shape = x.shape[:-1]
    if not outputs:
        return rows.new_zeros(*shape, h0.shape[-1]), rows.new_zeros(*shape, a.rank)
    y = torch.cat(outputs[::-1] if reverse else outputs, -2).view(*shape, h0.shape[-1])
    if q is None:
        return y, y.new_zeros(*shape, 0)
    return y, torch.cat(kept[::-1] if reverse else kept, -2).view(*shape, a.rank)


def plain_bwd(
    needs: Sequence[bool],
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    y: Tensor,
    a: Arguments,
) -> list[Tensor | None]:
    """Gradients by all that a recurrence can be differentiated by, None where not needed."""
    x, weight_ih, _, h0, scale, p, q, _, batch_sizes, nonlinearity, slope, reverse = a
    whole = Steps.of(y, batch_sizes, reverse).whole()
    x_rows, y_rows = flat(x, batch_sizes), flat(y, batch_sizes)
    outputs = whole.split(y_rows, backward=True)
    incoming: Sequence[Tensor | None] = [None] * len(outputs)
    if grad_y is not None:
        incoming = whole.split(flat(grad_y, batch_sizes), backward=True)
    sigma = None if scale is None else scale.unsqueeze(-2)
    last = torch.zeros_like(h0) if grad_last is None else grad_last
    carried = last
    grads: list[Tensor] = []
    starting: list[Tensor] = []
    for y_t, dy_t in zip(outputs, incoming, strict=True):
        size = y_t.shape[-2]
        if grads and carried.shape[-2] > size:
            starting.append(carried[..., size:, :])
        carried = carry(carried, last, size)
        dz = carried if dy_t is None else carried + dy_t
        dz = derivative(dz, y_t, nonlinearity, slope)
        carried = dz @ p if q is None else sigma * dz - (dz @ p) @ q.mT
        grads.append(dz)
    dz = torch.cat(grads if reverse else grads[::-1], -2) if grads else torch.zeros_like(y_rows)
    sums = GradientSums(needs, in_place=False)
    if grads:
        h = torch.cat([h for h, _ in whole.before(y_rows, h0)], -2)
        products = (None, None) if q is None else (h @ q, dz @ p)
        sums.add(dz, x_rows, y_rows, [(h, slice(None))], *products)
    grad_x = (dz if weight_ih is None else dz @ weight_ih).reshape(x.shape)
    grad_h0 = torch.cat((carried, *reversed(starting)), -2)
    return sums.gradients(grad_x, grad_h0, a)
