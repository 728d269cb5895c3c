"""The recurrence by Triton kernels: whether one serves, and what it takes and gives."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_triton.recurrence.arguments import Arguments
from spectral_triton.recurrence.steps import Steps, last_rows
from spectral_triton.runtime.backend import use_triton


def serves(a: Arguments) -> bool:
    """Whether a kernel runs the recurrence on these tensors."""
    n = a.h0.shape[-1]
    if a.q is None:
        return use_triton("dense_recurrence", a.x, a.h0, a.p, a.bias, n=n)
    tensors = (a.x, a.h0, a.scale, a.p, a.q, a.bias)
    return use_triton("folded_recurrence", *tensors, n=n, r=a.rank)


def launch_fwd(projected: Tensor, a: Arguments) -> tuple[Tensor, Tensor]:
    """All states for a projected input, and Qᵀ h of every step."""
    from spectral_triton.kernels import recurrence as kernels

    launch = kernels.dense_fwd if a.q is None else kernels.folded_fwd
    offsets = _offsets(a.batch_sizes, projected)
    bias = None if a.bias is None else a.bias.contiguous()
    y = launch(*_tensors(a, projected), a.nonlinearity, a.slope, bias, offsets, a.reverse)
    kept = projected.new_empty((*projected.shape[:-1], a.rank))
    if a.q is not None and projected.numel():
        rows = kept.view(-1, a.rank)
        whole = Steps.of(projected, a.batch_sizes, a.reverse).whole()
        for h, at in whole.before(y.flatten(0, -2), a.h0):
            torch.mm(h, a.q, out=rows[at])
    return y, kept


def launch_bwd(
    grad_y: Tensor | None, grad_last: Tensor | None, y: Tensor, a: Arguments
) -> tuple[Tensor, Tensor]:
    """Gradients of the pre-activations and of h0."""
    from spectral_triton.kernels import recurrence as kernels

    # The kernel takes one gradient for all states: each sequence's last state is one of them.
    own = grad_y is None
    grad_y = torch.zeros_like(y) if grad_y is None else grad_y
    if grad_last is not None and len(y):
        rows = last_rows(y, a.h0, a.batch_sizes, a.reverse)
        flat_grad = grad_y.reshape(-1, y.shape[-1])
        add = flat_grad.index_add_ if own else flat_grad.index_add
        grad_y = add(0, rows, grad_last).view_as(y)
    launch = kernels.dense_bwd if a.q is None else kernels.folded_bwd
    # The gradient of modrelu needs the output alone, not its bias.
    options = (a.nonlinearity, a.slope, None, _offsets(a.batch_sizes, y), a.reverse)
    grad_z, grad_h0 = launch(*_tensors(a, grad_y, y), *options)
    if grad_last is not None and not len(y):
        grad_h0 = grad_last.clone()
    return grad_z, grad_h0


def _tensors(a: Arguments, *sequences: Tensor) -> list[Tensor]:
    """What a kernel reads, in its order."""
    weight = (a.p,) if a.scale is None or a.q is None else (a.scale, a.p, a.q)
    return [tensor.contiguous() for tensor in (*sequences, a.h0, *weight)]


def _offsets(batch_sizes: Tensor | None, x: Tensor) -> Tensor | None:
    if batch_sizes is None:
        return None
    return torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0)).to(x.device, non_blocking=True)
