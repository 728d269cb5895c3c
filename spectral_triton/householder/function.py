r"""Householder products as autograd sees them: Functions with a closed-form backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_triton.householder import compact_wy, compact_wy_inplace, wy_block
from spectral_triton.householder import op as householder_op
from spectral_triton.householder.flat_function import FlatFunction
from spectral_triton.householder.prepared import (
    Prepared,
    is_one_block,
    prepare,
    prepare_pair,
    prepared_plainly,
)
from spectral_triton.runtime.backend import forced_backend, hand_on, may_launch
from spectral_triton.runtime.flop_count import flops_are_counted
from spectral_triton.runtime.forward_mode import functions_serve, is_differentiated
from spectral_triton.runtime.validation import without_autocast


def apply_plain(x: Tensor, reflectors: Tensor, transpose: bool, triangular: bool) -> Tensor:
    """What ApplyReflectors computes, in operations with derivatives of every kind."""
    v, t, _ = prepared_plainly(reflectors, triangular)
    return compact_wy.apply_fwd(x, v, t, transpose)


def _reflector_gradient(grad_rows: Tensor, scale: Tensor) -> Tensor:
    """From the gradient for unit rows (padded) to that for the rows as they were given."""
    k = scale.shape[-2]
    grad = grad_rows if grad_rows.shape[-2] == k else grad_rows.narrow(-2, 0, k)
    return grad * scale if is_differentiated() else grad.mul_(scale)


class ApplyReflectors(FlatFunction):
    """(N, n) or (M, N, n) rows and (k, n) or (M, k, n) reflectors, full precision, none empty.

    Returns what the backward of several blocks needs beside the product.
    """

    @staticmethod
    def forward(
        x: Tensor,
        reflectors: Tensor,
        v: Tensor,
        t: Tensor,
        scale: Tensor,
        transpose: bool,
        triangular: bool,
    ) -> tuple[Tensor, ...]:
        return _apply_fwd(x, v, t, transpose, triangular)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, reflectors, v, t, scale, ctx.transpose, ctx.triangular = inputs
        ctx.forced = forced_backend()
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(reflectors, v, t, scale, *output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        reflectors, v, t, scale, y, *coefficients = ctx.saved_tensors
        none = (None,) * 5
        if grad_y is None:
            return None, None, *none
        with without_autocast(y.device.type), hand_on(ctx.forced):
            way = ctx.transpose, ctx.triangular
            if not ctx.needs_input_grad[1]:
                return _adjoint(grad_y, reflectors, (v, t, scale), *way), None, *none
            if is_differentiated():
                v, t, scale = prepared_plainly(reflectors, ctx.triangular)
            grad_x, grad = _apply_bwd(coefficients, y, grad_y, v, t, *way)
            return grad_x, _reflector_gradient(grad, scale), *none


def _apply_fwd(
    x: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool
) -> tuple[Tensor, ...]:
    """x Qᵀ (x Q if transpose), and the coefficients where there are several blocks."""
    if is_one_block(v, x):
        return (wy_block.apply_fwd(x, v, t),)
    if may_launch(x):
        flops_are_counted()  # Lets a counter know the op.
        return (householder_op.apply_fwd(x, v, t, transpose, triangular),)
    return compact_wy_inplace.apply_fwd(x, v, t, transpose, triangular)


def _adjoint(
    grad_y: Tensor, reflectors: Tensor, prepared: Prepared, transpose: bool, triangular: bool
) -> Tensor:
    """The gradient for x alone: the product the other way."""
    if not functions_serve():
        return apply_plain(grad_y, reflectors, not transpose, triangular)
    v, t, _ = prepared
    if is_one_block(v, grad_y):
        if not is_differentiated():
            return wy_block.apply_fwd(grad_y, t, v)
        prepared = prepare(reflectors, triangular, grad_y.shape[-2], not transpose)
    return ApplyReflectors.apply(grad_y, reflectors, *prepared, not transpose, triangular)[0]


def _apply_bwd(
    coefficients: Sequence[Tensor],
    y: Tensor,
    grad_y: Tensor,
    v: Tensor,
    t: Tensor,
    transpose: bool,
    triangular: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients for x and for unit rows."""
    way = y, grad_y, v, t, transpose, triangular
    if is_differentiated():
        return compact_wy.apply_bwd(*way)
    if is_one_block(v, y):
        return wy_block.apply_bwd(*way)
    if may_launch(y):
        flops_are_counted()
        return householder_op.apply_bwd(*way)
    return compact_wy_inplace.apply_bwd(*way, *coefficients)


class ApplyFactors(FlatFunction):
    """U (σ ∘ (Vᵀ x)) + b of (N, n) or (M, N, n) rows, Vᵀ x and what is kept of both products.

    With a bias also what it is added to, which the backward needs as exactly as it was. One
    Function, since for few reflectors what autograd does for each takes as long as a product.
    Nothing is empty.
    """

    SCALE = -2

    @staticmethod
    def forward(
        x: Tensor,
        left: Tensor,
        sigma: Tensor,
        right: Tensor,
        bias: Tensor | None,
        v_left: Tensor,
        t_left: Tensor,
        scale_left: Tensor,
        v_right: Tensor,
        t_right: Tensor,
        scale_right: Tensor,
        triangular: bool,
    ) -> tuple[Tensor, ...]:
        inner, *c_right = _apply_fwd(x, v_right, t_right, True, triangular)
        middle = resized(resized(inner, sigma.shape[-1]) * sigma.unsqueeze(-2), left.shape[-1])
        y, *c_left = _apply_fwd(middle, v_left, t_left, False, triangular)
        if bias is None:
            return y, inner, *c_left, *c_right
        return y + bias.unsqueeze(-2), inner, *c_left, *c_right, y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, left, sigma, right, bias, *prepared, ctx.triangular = inputs
        y, coefficients = (output[0], output[2:]) if bias is None else (output[-1], output[2:-1])
        ctx.with_bias = bias is not None
        ctx.mark_non_differentiable(*coefficients)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(left, sigma, right, *prepared, y, output[1], *coefficients)

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor | None, grad_inner: Tensor | None, *others: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # Read once: a checkpoint computes them for the first reader alone.
        saved = ctx.saved_tensors
        left, sigma, right, *prepared, y, inner = saved[:11]
        from_left, from_right = prepared[:3], prepared[3:]
        # A product of several blocks has coefficients, one of a single block has none.
        coefficients = saved[11:]
        c_left = () if is_one_block(from_left[0], y) else coefficients[:1]
        c_right = coefficients[len(c_left) :]
        triangular = ctx.triangular
        none = (None,) * 7
        grad_y = torch.zeros_like(y) if grad_y is None else grad_y
        grad_bias = grad_y.sum(-2) if ctx.needs_input_grad[4] else None
        if ctx.with_bias and others[-1] is not None:
            grad_y = grad_y + others[-1]
        with without_autocast(y.device.type):
            if not any(ctx.needs_input_grad[1:4]):
                grad = _adjoint(grad_y, left, from_left, False, triangular)
                grad = _through_sigma(grad, sigma, inner, grad_inner)
                grad = _adjoint(grad, right, from_right, True, triangular)
                return grad, None, None, None, grad_bias, *none
            if is_differentiated():
                from_left, from_right = (
                    prepared_plainly(left, triangular),
                    prepared_plainly(right, triangular),
                )
            v, t, scale = from_left
            grad, grad_left = _apply_bwd(c_left, y, grad_y, v, t, False, triangular)
            grad_left = _reflector_gradient(grad_left, scale)
            p = sigma.shape[-1]
            grad_sigma = (resized(grad, p) * resized(inner, p)).sum(-2)
            grad = _through_sigma(grad, sigma, inner, grad_inner)
            v, t, scale = from_right
            grad, grad_right = _apply_bwd(c_right, inner, grad, v, t, True, triangular)
            grad_right = _reflector_gradient(grad_right, scale)
            return grad, grad_left, grad_sigma, grad_right, grad_bias, *none


def _through_sigma(grad: Tensor, sigma: Tensor, inner: Tensor, grad_inner: Tensor | None) -> Tensor:
    """The gradient for Vᵀ x from the one for σ ∘ (Vᵀ x) and the one it has itself."""
    grad = resized(resized(grad, sigma.shape[-1]) * sigma.unsqueeze(-2), inner.shape[-1])
    return grad if grad_inner is None else grad + grad_inner


def resized(x: Tensor, size: int) -> Tensor:
    """x with its last dimension cut or filled up with zeros to a size, itself where it has it."""
    missing = size - x.shape[-1]
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def apply_factors(
    x: Tensor, left: Tensor, sigma: Tensor, right: Tensor, bias: Tensor | None, triangular: bool
) -> Tensor:
    """U (σ ∘ (Vᵀ x)) + b of what ApplyFactors takes."""
    pair = prepare_pair(left, right, triangular, x.shape[-2])
    return ApplyFactors.apply(x, left, sigma, right, bias, *pair[0], *pair[1], triangular)[0]


class HouseholderProduct(FlatFunction):
    """Q, or its first columns, of (k, n) or (M, k, n) reflectors, full precision, none empty."""

    @staticmethod
    def forward(
        reflectors: Tensor,
        v: Tensor,
        h: Tensor,
        scale: Tensor,
        num_columns: int,
        triangular: bool,
    ) -> Tensor:
        if is_one_block(v, reflectors):
            return wy_block.product_fwd(v, h, num_columns)
        return compact_wy_inplace.product_fwd(v, h, num_columns, triangular)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        reflectors, v, h, scale, _, ctx.triangular = inputs
        ctx.save_for_backward(reflectors, v, h, scale, output)

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor) -> tuple[Tensor | None, ...]:
        reflectors, v, h, scale, q = ctx.saved_tensors
        k, (n, columns) = scale.shape[-2], q.shape[-2:]
        triangular = ctx.triangular
        # Multiply-adds: 6 c n k against n² c + 3 n² k, a half and a third when triangular.
        share = (1 / 2, 1 / 3) if triangular else (1, 1)
        thin = 6 * columns * k * share[0] < n * columns + 3 * n * k * share[1]
        rows = q.mT, grad_q.mT
        with without_autocast(q.device.type):
            if is_differentiated():
                v, t, scale = prepared_plainly(reflectors, triangular)
                if thin:
                    _, grad = compact_wy.apply_bwd(*rows, v, t, False, triangular)
                else:
                    grad = compact_wy.product_bwd(q, grad_q, v, t, triangular)
            elif is_one_block(v, reflectors):
                grad = wy_block.product_bwd(q, grad_q, v, h, triangular)
            elif thin:
                t = compact_wy.t_factor(v, triangular)
                _, grad = compact_wy_inplace.apply_bwd(*rows, v, t, False, triangular)
            else:
                grad = compact_wy_inplace.product_bwd(q, grad_q, v, h, triangular)
            return _reflector_gradient(grad, scale), None, None, None, None, None
