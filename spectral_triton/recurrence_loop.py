r"""The time loop in plain PyTorch: preallocated buffers, a few in-place calls a step, no autograd.

Note [Rows of a packed batch]
    x is (T, B, n), or the rows of a PackedSequence with its batch_sizes: step t then owns the next
    batch_sizes[t] rows, one for each sequence still running, longest first. Going forward in time
    the state loses its last rows as sequences end. Going backward it gains the rows of h0 of the
    sequences that start there. The gradient runs the other way round, with the gradient of h_n in
    the place of h0.

The weight comes as W itself (``scale`` and ``q`` None, ``p`` = W), or folded:
W = diag(scale) - P Qᵀ with P and Q of shape (n, r).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_relu_backward = torch.ops.aten.threshold_backward.grad_input
_leaky_relu_backward = torch.ops.aten.leaky_relu_backward.grad_input


def _activate(nonlinearity: str, slope: float, bias: Tensor | None) -> Callable[[Tensor], object]:
    """φ in place."""
    if nonlinearity == "tanh":
        return torch.tanh_
    if nonlinearity == "relu":
        return torch.relu_
    if nonlinearity == "leaky_relu":
        return lambda z: torch.nn.functional.leaky_relu_(z, slope)
    if nonlinearity == "modrelu":
        return lambda z: z.copy_(z.sign() * (z.abs() + bias).relu_())
    return lambda z: None


def _deactivate(nonlinearity: str, slope: float) -> Callable[[Tensor, Tensor], object]:
    """Multiplies a gradient by φ', told from the output alone, in place."""
    if nonlinearity == "tanh":
        return lambda grad, y: _tanh_backward(grad, y, grad_input=grad)
    if nonlinearity == "relu":
        return lambda grad, y: _relu_backward(grad, y, 0, grad_input=grad)
    if nonlinearity == "leaky_relu":
        return lambda grad, y: _leaky_relu_backward(grad, y, slope, True, grad_input=grad)
    if nonlinearity == "modrelu":
        return lambda grad, y: grad.mul_(y != 0)
    return lambda grad, y: None


def _steps(rows: Tensor, batch_sizes: list[int] | None) -> tuple[Tensor, ...]:
    return rows.unbind(0) if batch_sizes is None else rows.split(batch_sizes)


def _in_order(steps: Iterable[tuple[Tensor, ...]], backward: bool) -> list[tuple[Tensor, ...]]:
    return list(steps)[::-1] if backward else list(steps)


def loop_fwd(
    x: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    bias: Tensor | None,
    batch_sizes: list[int] | None,
    nonlinearity: str,
    slope: float,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """All outputs, shaped like x, and the coefficients Qᵀ h of every step (none if dense)."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    coefficients = x.new_empty((*x.shape[:-1], 0 if q is None else q.shape[-1]))
    activate = _activate(nonlinearity, slope, bias)
    p_t = p.mT
    steps = zip(
        _steps(x, batch_sizes),
        _steps(y, batch_sizes),
        _steps(coefficients, batch_sizes),
        strict=True,
    )
    h = h0
    for x_t, y_t, c_t in _in_order(steps, reverse):
        if batch_sizes is not None and len(h) != len(x_t):
            h = h[: len(x_t)] if len(h) > len(x_t) else torch.cat((h, h0[len(h) : len(x_t)]))
        if q is None:
            torch.addmm(x_t, h, p_t, out=y_t)
        else:
            torch.mm(h, q, out=c_t)
            torch.addcmul(x_t, h, scale, out=y_t)
            y_t.addmm_(c_t, p_t, alpha=-1)
        activate(y_t)
        h = y_t
    return y, coefficients


def loop_fwd_plain(
    x: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    bias: Tensor | None,
    batch_sizes: list[int] | None,
    nonlinearity: str,
    slope: float,
    reverse: bool,
) -> Tensor:
    """All outputs in operations that have derivatives of every kind."""
    activate = _activate(nonlinearity, slope, bias)
    h, outputs = h0, []
    for (x_t,) in _in_order(zip(_steps(x, batch_sizes), strict=True), reverse):
        h = h[: len(x_t)] if len(h) >= len(x_t) else torch.cat((h, h0[len(h) : len(x_t)]))
        h = x_t + (h @ p.mT if q is None else h * scale - (h @ q) @ p.mT)
        activate(h)
        outputs.append(h)
    outputs = outputs[::-1] if reverse else outputs
    if not outputs:
        return torch.zeros_like(x)
    return torch.stack(outputs) if batch_sizes is None else torch.cat(outputs)


def loop_bwd(
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    y: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    batch_sizes: list[int] | None,
    nonlinearity: str,
    slope: float,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the pre-activations (so of x) and of h0, and Pᵀ of the former (none if dense).

    ``grad_y`` belongs to the outputs, ``grad_last`` to each sequence's last state; None is zero.
    """
    grad_z = torch.empty_like(y)
    coefficients = y.new_empty((*y.shape[:-1], 0 if q is None else q.shape[-1]))
    deactivate = _deactivate(nonlinearity, slope)
    q_t = None if q is None else q.mT

    def pull(dz: Tensor, base: Tensor | None, c: Tensor, out: Tensor) -> None:
        """base + Wᵀ dz into out."""
        if q_t is None:
            torch.mm(dz, p, out=out) if base is None else torch.addmm(base, dz, p, out=out)
            return
        torch.mm(dz, p, out=c)
        if base is None:
            torch.mul(dz, scale, out=out)
        else:
            torch.addcmul(base, dz, scale, out=out)
        out.addmm_(c, q_t, alpha=-1)

    outputs, grads = _steps(y, batch_sizes), _steps(grad_z, batch_sizes)
    incoming = (None,) * len(outputs) if grad_y is None else _steps(grad_y, batch_sizes)
    steps = zip(outputs, incoming, grads, _steps(coefficients, batch_sizes), strict=True)
    last = torch.zeros_like(h0) if grad_last is None else grad_last
    grad_h0 = torch.empty_like(h0, memory_format=torch.contiguous_format)
    # The gradient that has come down to the state before the step at hand, while rows change.
    carried = last
    dz = c = None
    for y_t, dy_t, dz_t, c_t in _in_order(steps, not reverse):
        if dz is not None and len(dz) == len(dz_t):
            pull(dz, dy_t, c, dz_t)
        else:
            if dz is not None:
                carried = torch.empty_like(dz)
                pull(dz, None, c, carried)
            if len(carried) > len(dz_t):
                if dz is not None:
                    grad_h0[len(dz_t) : len(carried)] = carried[len(dz_t) :]
                carried = carried[: len(dz_t)]
            elif len(carried) < len(dz_t):
                carried = torch.cat((carried, last[len(carried) : len(dz_t)]))
            dz_t.copy_(carried) if dy_t is None else torch.add(carried, dy_t, out=dz_t)
        deactivate(dz_t, y_t)
        dz, c = dz_t, c_t
    if dz is None:
        grad_h0.copy_(last)
    else:
        pull(dz, None, c, grad_h0[: len(dz)])
    return grad_z, grad_h0, coefficients


def previous_states(
    y: Tensor, h0: Tensor, batch_sizes: list[int] | None, reverse: bool
) -> list[tuple[Tensor, slice]]:
    """The state before each step: pairs of states and the rows of a flat x they belong to."""
    n = y.shape[-1]
    if batch_sizes is None:
        size, rows = h0.shape[0], y.shape[0] * h0.shape[0]
        flat = y.reshape(rows, n)
        if not rows:
            return []
        if reverse:
            return [(flat[size:], slice(0, rows - size)), (h0, slice(rows - size, rows))]
        return [(flat[: rows - size], slice(size, rows)), (h0, slice(0, size))]
    pieces, h = [], h0
    for y_t in _in_order(zip(_steps(y, batch_sizes), strict=True), reverse):
        size = len(y_t[0])
        h = h[:size] if len(h) >= size else torch.cat((h, h0[len(h) : size]))
        pieces.append(h)
        h = y_t[0]
    if not pieces:
        return []
    return [(torch.cat(pieces[::-1] if reverse else pieces), slice(0, len(y)))]


def loop_bwd_plain(
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    y: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    batch_sizes: list[int] | None,
    nonlinearity: str,
    slope: float,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """loop_bwd in operations that autograd records, for second derivatives."""

    def deactivate(grad: Tensor, y_t: Tensor) -> Tensor:
        if nonlinearity == "tanh":
            return grad * (1 - y_t * y_t)
        if nonlinearity == "relu":
            return grad * (y_t > 0)
        if nonlinearity == "leaky_relu":
            return torch.where(y_t > 0, grad, slope * grad)
        return grad * (y_t != 0) if nonlinearity == "modrelu" else grad

    outputs = _steps(y, batch_sizes)
    incoming = (None,) * len(outputs) if grad_y is None else _steps(grad_y, batch_sizes)
    last = torch.zeros_like(h0) if grad_last is None else grad_last
    carried, grads, starting = last, [], []
    for y_t, dy_t in _in_order(zip(outputs, incoming, strict=True), not reverse):
        size = len(y_t)
        if len(carried) < size:
            carried = torch.cat((carried, last[len(carried) : size]))
        elif len(carried) > size:
            if grads:
                starting.append(carried[size:])
            carried = carried[:size]
        dz = deactivate(carried if dy_t is None else carried + dy_t, y_t)
        carried = dz @ p if q is None else scale * dz - (dz @ p) @ q.mT
        grads.append(dz)
    if not grads:
        return (
            torch.zeros_like(y),
            last,
            y.new_zeros((*y.shape[:-1], 0 if q is None else len(q.mT))),
        )
    grads = grads if reverse else grads[::-1]
    grad_z = torch.stack(grads) if batch_sizes is None else torch.cat(grads)
    grad_h0 = torch.cat((carried, *reversed(starting)))
    return grad_z, grad_h0, grad_z[..., :0] if q is None else grad_z @ p
