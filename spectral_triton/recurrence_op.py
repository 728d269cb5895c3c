r"""The recurrence as PyTorch sees it: opaque registered ops, and the Functions that give gradients.

Note [Backward of the recurrence]
    With dz_t = φ'(z_t) ∘ (∂L/∂h_t as it arrives), the state's gradient is the same recurrence with
    P and Q exchanged, h ← σ∘dz - Q (Pᵀ dz). Everything else is one matrix product over all steps:
    ∂L/∂P = -Σ dz (Qᵀh)ᵀ, ∂L/∂Q = -Σ h (Pᵀdz)ᵀ, ∂L/∂σ = Σ h∘dz, or ∂L/∂W = Σ dz hᵀ when dense; h is
    the state before the step. φ' is told from the output, so y is all that is kept besides Qᵀh,
    and second derivatives reach x through y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from spectral_triton.backend import use_triton
from spectral_triton.forward_mode import in_forward_mode, is_differentiated
from spectral_triton.recurrence_loop import (
    loop_bwd,
    loop_bwd_plain,
    loop_fwd,
    loop_fwd_plain,
    previous_states,
)
from spectral_triton.recurrence_vmap import vmap_rule
from spectral_triton.registered_op import register_vmap, registered_op
from spectral_triton.validation import without_autocast

# Elements of a temporary in a sum over all steps: small enough to stay in cache.
CHUNK = 1 << 18


def _sizes(batch_sizes: Tensor | None) -> list[int] | None:
    return None if batch_sizes is None else batch_sizes.tolist()


def _offsets(batch_sizes: Tensor | None, x: Tensor) -> Tensor | None:
    if batch_sizes is None:
        return None
    return torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0)).to(x.device)


def _launches(
    x: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    bias: Tensor | None,
) -> bool:
    if q is None:
        return use_triton("dense_recurrence", x, h0, p, bias, n=x.shape[-1])
    return use_triton("folded_recurrence", x, h0, scale, p, q, bias, n=x.shape[-1], r=q.shape[-1])


def _recurrence_fwd_fake(
    x: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    *rest: object,
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty((*x.shape[:-1], 0 if q is None else q.shape[-1]))


@registered_op("recurrence_fwd", _recurrence_fwd_fake)
def recurrence_fwd(
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
    """All states, and Qᵀ h of every step."""
    sizes = _sizes(batch_sizes)
    if not _launches(x, h0, scale, p, q, bias):
        return loop_fwd(x, h0, scale, p, q, bias, sizes, nonlinearity, slope, reverse)
    from spectral_triton.kernels import recurrence as kernels

    launch = kernels.dense_fwd if q is None else kernels.folded_fwd
    weight = (p,) if q is None else (scale, p, q)
    tensors = [a.contiguous() for a in (x, h0, *weight)]
    y = launch(*tensors, nonlinearity, slope, bias, _offsets(batch_sizes, x), reverse)
    coefficients = x.new_empty((*x.shape[:-1], 0 if q is None else q.shape[-1]))
    if q is not None:
        rows = coefficients.view(-1, q.shape[-1])
        for h, at in previous_states(y, h0, sizes, reverse):
            torch.mm(h, q, out=rows[at])
    return y, coefficients


def _recurrence_bwd_fake(
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    y: Tensor,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    *rest: object,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_h0 = torch.empty_like(h0, memory_format=torch.contiguous_format)
    coefficients = y.new_empty((*y.shape[:-1], 0 if q is None else q.shape[-1]))
    return torch.empty_like(y), grad_h0, coefficients


@registered_op("recurrence_bwd", _recurrence_bwd_fake)
def recurrence_bwd(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the pre-activations and of h0, and Pᵀ dz of every step."""
    if not _launches(y, h0, scale, p, q, None):
        sizes = _sizes(batch_sizes)
        return loop_bwd(grad_y, grad_last, y, h0, scale, p, q, sizes, nonlinearity, slope, reverse)
    from spectral_triton.kernels import recurrence as kernels

    # The kernel takes one gradient for all states: each sequence's last state is one of them.
    grad_y = torch.zeros_like(y) if grad_y is None else grad_y
    if grad_last is not None and len(y):
        rows = _last_rows(y, h0, batch_sizes, reverse)
        grad_y = grad_y.reshape(-1, y.shape[-1]).index_add(0, rows, grad_last).view_as(y)
    launch = kernels.dense_bwd if q is None else kernels.folded_bwd
    weight = (p,) if q is None else (scale, p, q)
    tensors = [a.contiguous() for a in (grad_y, y, h0, *weight)]
    # The gradient of modrelu needs the output alone, not its bias.
    options = (nonlinearity, slope, None, _offsets(batch_sizes, y), reverse)
    grad_z, grad_h0 = launch(*tensors, *options)
    if grad_last is not None and not len(y):
        grad_h0 = grad_last.clone()
    coefficients = y.new_empty((*y.shape[:-1], 0)) if q is None else grad_z @ p
    return grad_z, grad_h0, coefficients


register_vmap(recurrence_fwd, vmap_rule(recurrence_fwd, {0: 1, 1: 0}, 6, (1, 1)))
register_vmap(
    recurrence_bwd,
    vmap_rule(recurrence_bwd, {0: 1, 1: 0, 2: 1, 3: 0}, 7, (1, 0, 1)),
)


def _last_rows(y: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Tensor:
    """Where among the rows of all states each sequence has its last one."""
    sequences = torch.arange(h0.shape[0])
    if reverse:
        rows = sequences
    elif batch_sizes is None:
        rows = sequences + (y.shape[0] - 1) * h0.shape[0]
    else:
        steps = (batch_sizes.unsqueeze(1) > sequences).sum(0)
        rows = (batch_sizes.cumsum(0) - batch_sizes)[steps - 1] + sequences
    return rows.to(y.device)


def _last_states(y: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Tensor:
    if y.shape[0] == 0:
        return h0.clone()
    if batch_sizes is None:
        return y[0 if reverse else -1].clone()
    return y.index_select(0, _last_rows(y, h0, batch_sizes, reverse))


def _sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """Σ a∘b over rows, without a temporary as large as the whole sequence."""
    rows = max(1, CHUNK // max(1, a.shape[-1]))
    pieces = zip(a.split(rows), b.split(rows), strict=True)
    return torch.stack([(x * y).sum(0) for x, y in pieces]).sum(0)


class Recurrence(Function):
    """(y, last states, Qᵀh) of the recurrence; arguments as recurrence_fwd, full precision."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, coefficients = recurrence_fwd(
            x, h0, scale, p, q, bias, batch_sizes, nonlinearity, slope, reverse
        )
        return y, _last_states(y, h0, batch_sizes, reverse), coefficients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, h0, scale, p, q, _, batch_sizes, *ctx.options = inputs
        y, _, coefficients = output
        ctx.mark_non_differentiable(coefficients)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h0, scale, p, q, batch_sizes, y, coefficients)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: None) -> Any:
        if grad_y is None and grad_last is None:
            return (None,) * 10
        *state, batch_sizes, y, coefficients = ctx.saved_tensors
        h0, _, _, q = state
        *_, reverse = ctx.options
        with without_autocast(y.device.type):
            before = previous_states(y, h0, _sizes(batch_sizes), reverse)
            if is_differentiated():
                options = (_sizes(batch_sizes), *ctx.options)
                back = loop_bwd_plain(grad_y, grad_last, y, *state, *options)
                # What was kept of the forward is no function of y and h0 to autograd.
                kept = None if q is None else [h @ q for h, _ in before]
            else:
                back = recurrence_bwd(grad_y, grad_last, y, *state, batch_sizes, *ctx.options)
                flat = coefficients.flatten(0, -2)
                kept = None if q is None else [flat[rows] for _, rows in before]
            grads = _gradients(*back, y, *state[1:], before, kept, ctx.needs_input_grad)
        return *grads, None, None, None, None


def recurrence(
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
    """All states and the last ones, with derivatives of every kind."""
    options = (nonlinearity, slope, reverse)
    if not in_forward_mode():
        return Recurrence.apply(x, h0, scale, p, q, bias, batch_sizes, *options)[:2]
    y = loop_fwd_plain(x, h0, scale, p, q, bias, _sizes(batch_sizes), *options)
    return y, _last_states(y, h0, batch_sizes, reverse)


def _gradients(
    grad_z: Tensor,
    grad_h0: Tensor,
    back: Tensor,
    y: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    before: list[tuple[Tensor, slice]],
    kept: list[Tensor] | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Those of x, h0, scale, p, q, bias as far as needed, from those of all pre-activations."""
    dz = grad_z.reshape(-1, y.shape[-1])
    back = back.flatten(0, -2)
    grad_scale = grad_p = grad_q = grad_bias = None
    if needs[3]:
        grad_p = torch.zeros_like(p)
        for i, (h, rows) in enumerate(before):
            sign, right = (1, h) if kept is None else (-1, kept[i])
            grad_p = grad_p.addmm(dz[rows].mT, right, alpha=sign)
    if needs[4]:
        grad_q = torch.zeros_like(q)
        for h, rows in before:
            grad_q = grad_q.addmm(h.mT, back[rows], alpha=-1)
    if needs[2]:
        sums = [_sum_of_products(h, dz[rows]) for h, rows in before if len(h)]
        grad_scale = sum(sums, torch.zeros_like(scale))
    if needs[5]:
        signs = y.detach().reshape(-1, y.shape[-1]).sign()
        grad_bias = _sum_of_products(dz, signs) if len(dz) else dz.sum(0)
    return (
        grad_z if needs[0] else None,
        grad_h0 if needs[1] else None,
        grad_scale,
        grad_p,
        grad_q,
        grad_bias,
    )
