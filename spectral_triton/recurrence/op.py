r"""The recurrence as PyTorch sees it: opaque registered ops, and the Function that gives gradients.

Note [Backward of the recurrence]
    With dz_t = φ'(z_t) ∘ (∂L/∂h_t as it arrives), the state's gradient is the same recurrence with
    P and Q exchanged, h ← σ∘dz - Q (Pᵀ dz). Everything else is a matrix product over all steps, see
    :mod:`gradient_sums`. φ' is told from the output, so y is all that is kept besides the input and
    Qᵀh, and second derivatives reach x through y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from spectral_triton.householder.direct_function import DirectFunction
from spectral_triton.recurrence.arguments import DIFFERENTIABLE, Arguments
from spectral_triton.recurrence.gradient_sums import GradientSums
from spectral_triton.recurrence.launch import launch_bwd, launch_fwd, serves
from spectral_triton.recurrence.loop import loop_bwd, loop_fwd, project
from spectral_triton.recurrence.plain import plain_bwd, plain_fwd
from spectral_triton.recurrence.steps import Steps, flat, last_rows
from spectral_triton.recurrence.vmap import batching_rule, merging_rule
from spectral_triton.runtime.backend import forced_backend, hand_on
from spectral_triton.runtime.flop_count import flop_formula, flops_are_counted
from spectral_triton.runtime.forward_mode import functions_serve, is_differentiated
from spectral_triton.runtime.registered_op import register_vmap, registered_op
from spectral_triton.runtime.validation import without_autocast


def _recurrence_fwd_fake(a: Arguments) -> tuple[Tensor, Tensor]:
    shape = a.x.shape[:-1]
    return a.x.new_empty((*shape, a.h0.shape[-1])), a.x.new_empty((*shape, a.rank))


@registered_op("recurrence_fwd", _recurrence_fwd_fake)
def recurrence_fwd(a: Arguments) -> tuple[Tensor, Tensor]:
    """All states, and Qᵀ h of every step."""
    if not serves(a):
        return loop_fwd(a)
    projected = a.x
    if a.weight_ih is not None:
        projected = a.x.new_empty(*a.x.shape[:-1], a.h0.shape[-1])
        rows = flat(a.x, a.batch_sizes), flat(projected, a.batch_sizes)
        project(rows[0], a.weight_ih, a.bias_ih, rows[1])
    return launch_fwd(projected, a)


@flop_formula(recurrence_fwd)
def _recurrence_fwd_flops(*arguments: Any) -> int:
    a = Arguments(*arguments)
    return math.prod(a.x.shape[:-1]) * (_projection(a) + _step(a))


def _projection(a: Arguments) -> int:
    """What one row of the input takes."""
    return 0 if a.weight_ih is None else 2 * a.weight_ih.numel()


def _step(a: Arguments) -> int:
    """What W takes for one row."""
    return 2 * a.p.numel() + (0 if a.q is None else 2 * a.q.numel())


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
    a: Arguments,
) -> Gradients:
    tensors: Any = a[: len(needs)]
    pairs = zip(needs, tensors, strict=True)
    return _outputs([y.new_empty(arg.shape) if need else None for need, arg in pairs], y)


@registered_op("recurrence_bwd", _recurrence_bwd_fake)
def recurrence_bwd(
    needs: Sequence[bool],
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    y: Tensor,
    kept: Tensor,
    a: Arguments,
) -> Gradients:
    """Gradients by all arguments from x to bias, empty where not needed."""
    sums = GradientSums(needs)
    if not serves(a):
        grad_x, grad_h0 = loop_bwd(grad_y, grad_last, y, kept, a, sums)
    else:
        grad_z, grad_h0 = launch_bwd(grad_y, grad_last, y, a)
        dz, *rows = (flat(sequence, a.batch_sizes) for sequence in (grad_z, a.x, y, kept))
        if len(dz):
            before = Steps.of(y, a.batch_sizes, a.reverse).whole().before(rows[1], a.h0)
            products = (None, None) if a.q is None else (rows[2], dz @ a.p)
            sums.add(dz, rows[0], rows[1], before, *products)
        grad_x = grad_z if a.weight_ih is None or not needs[0] else dz @ a.weight_ih
    return _outputs(sums.gradients(grad_x.view(a.x.shape) if needs[0] else grad_x, grad_h0, a), y)


@flop_formula(recurrence_bwd)
def _recurrence_bwd_flops(needs: Sequence[bool], *rest: Any) -> int:
    a = Arguments(*rest[4:])
    wanted = {name for name, need in zip(DIFFERENTIABLE, needs, strict=True) if need}
    row = _step(a) + _projection(a) * len(wanted & {"x", "weight_ih"})
    row += 2 * a.p.numel() * len(wanted & {"p", "q"})
    return math.prod(a.x.shape[:-1]) * row


def _plain_fwd(*arguments: Any) -> tuple[Tensor, Tensor]:
    return plain_fwd(Arguments(*arguments))


def _plain_bwd(needs: Sequence[bool], *rest: Any) -> list[Tensor | None]:
    grad_y, grad_last, y, _, *arguments = rest
    return plain_bwd(needs, grad_y, grad_last, y, Arguments(*arguments))


register_vmap(
    recurrence_fwd,
    merging_rule(recurrence_fwd, {"x": 1, "h0": 0}, batching_rule(recurrence_fwd, _plain_fwd)),
)
register_vmap(recurrence_bwd, batching_rule(recurrence_bwd, _plain_bwd))


def _last_states(y: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Tensor:
    if y.shape[0] == 0:
        return h0.clone()
    if batch_sizes is None:
        return y[0 if reverse else -1].clone()
    return y.index_select(0, last_rows(y, h0, batch_sizes, reverse))


class Recurrence(DirectFunction):
    """(y, last states, Qᵀh) of the recurrence on ``Arguments``."""

    generate_vmap_rule = True

    # One by one: torch.compile counts them where no gradient is needed.
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
        options = (batch_sizes, nonlinearity, slope, reverse)
        y, kept = recurrence_fwd(x, weight_ih, bias_ih, h0, scale, p, q, bias, *options)
        return y, _last_states(y, h0, batch_sizes, reverse), kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        y, _, kept = output
        ctx.options, ctx.forced = inputs[-3:], forced_backend()
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)
        # An x that nothing multiplies has the shape of y, which is all that is asked of it.
        x = None if inputs[1] is None else inputs[0]
        ctx.save_for_backward(y, kept, x, *inputs[1:-3])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: None) -> Any:
        if grad_y is None and grad_last is None:
            return (None,) * len(Arguments._fields)
        y, kept, x, *rest = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[: len(DIFFERENTIABLE)])
        a = Arguments(y if x is None else x, *rest, *ctx.options)
        with without_autocast(y.device.type), hand_on(ctx.forced):
            if is_differentiated():
                grads = plain_bwd(needs, grad_y, grad_last, y, a)
            else:
                flops_are_counted()  # Lets a counter know the op.
                made = recurrence_bwd(needs, grad_y, grad_last, y, kept, *a)
                grads = [g if need else None for g, need in zip(made, needs, strict=True)]
        return *grads, *[None] * (len(a) - len(grads))


def recurrence(a: Arguments) -> tuple[Tensor, Tensor]:
    """All states and the last ones, with derivatives of every kind."""
    if functions_serve():
        flops_are_counted()  # Lets a counter know the op.
        return Recurrence.apply(*a)[:2]
    y, _ = plain_fwd(a)
    return y, _last_states(y, a.h0, a.batch_sizes, a.reverse)
