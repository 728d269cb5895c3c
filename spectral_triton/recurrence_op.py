r"""The recurrence as PyTorch sees it: opaque registered ops, and the Function that gives gradients.

Note [Backward of the recurrence]
    With dz_t = φ'(z_t) ∘ (∂L/∂h_t as it arrives), the state's gradient is the same recurrence with
    P and Q exchanged, h ← σ∘dz - Q (Pᵀ dz). Everything else is a matrix product over all steps, see
    :mod:`gradient_sums`. φ' is told from the output, so y is all that is kept besides the input and
    Qᵀh, and second derivatives reach x through y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd import Function

from spectral_triton.backend import forced_backend, hand_on
from spectral_triton.forward_mode import in_forward_mode, is_differentiated
from spectral_triton.gradient_sums import ARGUMENTS, GradientSums
from spectral_triton.recurrence_launch import launch_bwd, launch_fwd, serves
from spectral_triton.recurrence_loop import loop_bwd, loop_fwd, project
from spectral_triton.recurrence_plain import plain_bwd, plain_fwd
from spectral_triton.recurrence_vmap import batching_rule, merging_rule
from spectral_triton.registered_op import register_vmap, registered_op
from spectral_triton.steps import Steps, flat, last_rows
from spectral_triton.validation import without_autocast


def _empty_outputs(x: Tensor, h0: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor]:
    y = x.new_empty((*x.shape[:-1], h0.shape[-1]))
    return y, x.new_empty((*x.shape[:-1], 0 if q is None else q.shape[-1]))


def _recurrence_fwd_fake(
    x: Tensor,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    *rest: object,
) -> tuple[Tensor, Tensor]:
    return _empty_outputs(x, h0, q)


@registered_op("recurrence_fwd", _recurrence_fwd_fake)
def recurrence_fwd(
    x: Tensor,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
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
    shape = (*x.shape[:-1], h0.shape[-1])
    rows = flat(x, batch_sizes)
    if not serves(x, h0, scale, p, q, bias):
        options = (Steps.of(x, batch_sizes, reverse), nonlinearity, slope)
        y, kept = loop_fwd(rows, weight_ih, bias_ih, h0, scale, p, q, bias, *options)
        return y.view(shape), kept.view(*shape[:-1], kept.shape[-1])
    if weight_ih is not None:
        projected = x.new_empty(len(rows), shape[-1])
        project(rows, weight_ih, bias_ih, projected)
        x = projected.view(shape)
    return launch_fwd(x, h0, scale, p, q, bias, batch_sizes, nonlinearity, slope, reverse)


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _outputs(grads: Sequence[Tensor | None], like: Tensor) -> Gradients:
    """An op has as many outputs as it says: empty ones in the place of those not needed."""
    filled = [like.new_empty(0) if grad is None else grad for grad in grads]
    return tuple(filled)  # type: ignore[return-value]


def _recurrence_bwd_fake(
    needs: Sequence[bool],
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    y: Tensor,
    kept: Tensor,
    *rest: Any,
) -> Gradients:
    pairs = zip(needs, rest[: len(needs)], strict=True)
    return _outputs([y.new_empty(a.shape) if need else None for need, a in pairs], y)


@registered_op("recurrence_bwd", _recurrence_bwd_fake)
def recurrence_bwd(
    needs: Sequence[bool],
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    y: Tensor,
    kept: Tensor,
    x: Tensor,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
    h0: Tensor,
    scale: Tensor | None,
    p: Tensor,
    q: Tensor | None,
    bias: Tensor | None,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    slope: float,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by all arguments from x to bias, empty where not needed."""
    steps, sums = Steps.of(y, batch_sizes, reverse), GradientSums(needs)
    flat_x, flat_y, flat_kept = (flat(a, batch_sizes) for a in (x, y, kept))
    if not serves(y, h0, scale, p, q, None):
        weights = (weight_ih, flat_y, flat_kept, h0, scale, p, q)
        by_steps = (steps, nonlinearity, slope, sums)
        flat_grad = None if grad_y is None else flat(grad_y, batch_sizes)
        grad_x, grad_h0 = loop_bwd(flat_grad, grad_last, flat_x, *weights, *by_steps)
    else:
        options = (batch_sizes, nonlinearity, slope, reverse)
        grad_z, grad_h0 = launch_bwd(grad_y, grad_last, y, h0, scale, p, q, *options)
        dz = flat(grad_z, batch_sizes)
        if len(dz):
            before = steps.whole().before(flat_y, h0)
            products = (None, None) if q is None else (flat_kept, dz @ p)
            sums.add(dz, flat_x, flat_y, before, *products)
        grad_x = grad_z if weight_ih is None or not needs[0] else dz @ weight_ih
    arguments = (x, weight_ih, bias_ih, h0, scale, p, q, bias)
    return _outputs(
        sums.gradients(grad_x.view(x.shape) if needs[0] else grad_x, grad_h0, arguments), y
    )


register_vmap(
    recurrence_fwd, merging_rule(recurrence_fwd, {0: 1, 3: 0}, 8, batching_rule(plain_fwd, 8))
)
register_vmap(recurrence_bwd, batching_rule(plain_bwd, 13))


def _last_states(y: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Tensor:
    if y.shape[0] == 0:
        return h0.clone()
    if batch_sizes is None:
        return y[0 if reverse else -1].clone()
    return y.index_select(0, last_rows(y, h0, batch_sizes, reverse))


class Recurrence(Function):
    """(y, last states, Qᵀh) of the recurrence; arguments as recurrence_fwd, full precision."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight_ih: Tensor | None,
        bias_ih: Tensor | None,
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
        weights, options = (scale, p, q, bias), (nonlinearity, slope, reverse)
        y, kept = recurrence_fwd(x, weight_ih, bias_ih, h0, *weights, batch_sizes, *options)
        return y, _last_states(y, h0, batch_sizes, reverse), kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, _, _, _ = inputs
        y, _, kept = output
        ctx.options, ctx.forced = inputs[-3:], forced_backend()
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)
        if inputs[1] is None:
            tensors[0] = None  # Of the same shape as y, which is all that is asked of it.
        ctx.save_for_backward(y, kept, *tensors)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: None) -> Any:
        if grad_y is None and grad_last is None:
            return (None,) * 12
        y, kept, x, *rest = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[: len(ARGUMENTS)])
        arguments = (needs, grad_y, grad_last, y, kept, y if x is None else x, *rest, *ctx.options)
        with without_autocast(y.device.type), hand_on(ctx.forced):
            if is_differentiated():
                grads = plain_bwd(*arguments)
            else:
                made = zip(recurrence_bwd(*arguments), needs, strict=True)
                grads = [grad if need else None for grad, need in made]
        return *grads, None, None, None, None


def recurrence(
    x: Tensor,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
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
    weights, options = (scale, p, q, bias), (nonlinearity, slope, reverse)
    arguments = (x, weight_ih, bias_ih, h0, *weights, batch_sizes, *options)
    if not in_forward_mode():
        return Recurrence.apply(*arguments)[:2]
    y, _ = plain_fwd(*arguments)
    return y, _last_states(y, h0, batch_sizes, reverse)
