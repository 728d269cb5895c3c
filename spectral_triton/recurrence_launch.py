"""The recurrence by Triton kernels: whether one serves, and what it takes and gives."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_triton.backend import use_triton
from spectral_triton.steps import Steps, last_rows


def serves(
    x: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    bias: Tensor | None,
) -> bool:
    """Whether a kernel runs the recurrence on these tensors."""
    n = h0.shape[-1]
    if q is None:
        return use_triton("dense_recurrence", x, h0, p, bias, n=n)
    return use_triton("folded_recurrence", x, h0, scale, p, q, bias, n=n, r=q.shape[-1])


def launch_fwd(
    x: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    bias: Tensor | None,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    slope: float,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """All states for a projected input, and Qᵀ h of every step."""
    from spectral_triton.kernels import recurrence as kernels

    launch = kernels.dense_fwd if q is None else kernels.folded_fwd
    weight = (p,) if q is None else (scale, p, q)
    tensors = [a.contiguous() for a in (x, h0, *weight)]
    y = launch(*tensors, nonlinearity, slope, bias, _offsets(batch_sizes, x), reverse)
    kept = x.new_empty((*x.shape[:-1], 0 if q is None else q.shape[-1]))
    if q is not None and x.numel():
        rows = kept.view(-1, q.shape[-1])
        whole = Steps.of(x, batch_sizes, reverse).whole()
        for h, at in whole.before(y.flatten(0, -2), h0):
            torch.mm(h, q, out=rows[at])
    return y, kept


def launch_bwd(
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    y: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    slope: float,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the pre-activations and of h0."""
    from spectral_triton.kernels import recurrence as kernels

    # The kernel takes one gradient for all states: each sequence's last state is one of them.
    grad_y = torch.zeros_like(y) if grad_y is None else grad_y
    if grad_last is not None and len(y):
        rows = last_rows(y, h0, batch_sizes, reverse)
        grad_y = grad_y.reshape(-1, y.shape[-1]).index_add(0, rows, grad_last).view_as(y)
    launch = kernels.dense_bwd if q is None else kernels.folded_bwd
    weight = (p,) if q is None else (scale, p, q)
    tensors = [a.contiguous() for a in (grad_y, y, h0, *weight)]
    # The gradient of modrelu needs the output alone, not its bias.
    options = (nonlinearity, slope, None, _offsets(batch_sizes, y), reverse)
    grad_z, grad_h0 = launch(*tensors, *options)
    if grad_last is not None and not len(y):
        grad_h0 = grad_last.clone()
    return grad_z, grad_h0


def _offsets(batch_sizes: Tensor | None, x: Tensor) -> Tensor | None:
    if batch_sizes is None:
        return None
    return torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0)).to(x.device)
