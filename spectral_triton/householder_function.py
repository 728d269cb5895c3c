r"""Householder products as autograd sees them: Functions with a closed-form backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_triton import compact_wy, compact_wy_inplace, householder_op
from spectral_triton.backend import forced_backend, hand_on, may_launch, reflector_block_size
from spectral_triton.flat_function import FlatFunction, in_order
from spectral_triton.forward_mode import is_differentiated
from spectral_triton.validation import without_autocast

# Entries of one matrix of reflectors up to which two of them are prepared together.
SMALL = 1 << 15


def _prepared(reflectors: Tensor, triangular: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks V and T of the unit rows, and what the rows were multiplied by; differentiable."""
    unit, scale = compact_wy.unit_rows(reflectors, triangular)
    v = compact_wy.blocks(unit, compact_wy.block_size(unit.shape[-2]))
    return v, compact_wy.t_factor(v, triangular), scale


@torch.no_grad()
def prepare(
    reflectors: Tensor, triangular: bool, num_vectors: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the Functions take beside the reflectors, so that their backward can keep it."""
    reflectors = reflectors.detach()
    if not may_launch(reflectors):
        return _prepared(reflectors, triangular)
    unit, scale = compact_wy.unit_rows(reflectors, triangular)
    v = compact_wy.blocks(unit, reflector_block_size(unit, num_vectors))
    return v, householder_op.t_factor(v), scale


@torch.no_grad()
def _prepare_pair(
    first: Tensor, second: Tensor, triangular: bool, num_vectors: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The same for two single matrices, at once where they are small and of one shape.

    Of small matrices the calls cost more than the arithmetic, of large ones the copy.
    """
    if first.shape != second.shape or first.numel() > SMALL:
        return prepare(first, triangular, num_vectors), prepare(second, triangular, num_vectors)
    both = _prepared(torch.stack((first.detach(), second.detach())), triangular)
    v, t, scale = (part.unbind() for part in both)
    return (v[0], t[0], scale[0]), (v[1], t[1], scale[1])


def apply_plain(x: Tensor, reflectors: Tensor, transpose: bool, triangular: bool) -> Tensor:
    """What ApplyReflectors computes, in operations with derivatives of every kind."""
    v, t, _ = _prepared(reflectors, triangular)
    return compact_wy.apply_fwd(x, v, t, transpose)


def _reflector_gradient(grad_rows: Tensor, scale: Tensor) -> Tensor:
    """From the gradient for unit rows (padded) to that for the rows as they were given."""
    k = scale.shape[-2]
    grad = grad_rows if grad_rows.shape[-2] == k else grad_rows.narrow(-2, 0, k)
    return grad * scale if is_differentiated() else grad.mul_(scale)


class ApplyReflectors(FlatFunction):
    """(N, n) or (M, N, n) rows and (k, n) or (M, k, n) reflectors, full precision, none empty."""

    @staticmethod
    @in_order
    def forward(
        x: Tensor,
        reflectors: Tensor,
        v: Tensor,
        t: Tensor,
        scale: Tensor,
        transpose: bool,
        triangular: bool,
    ) -> tuple[Tensor, Tensor]:
        if may_launch(x):
            y = householder_op.apply_fwd(x, v, t, transpose, triangular)
            return y, x.new_empty(*x.shape[:-2], 0)
        return compact_wy_inplace.apply_fwd(x, v, t, transpose, triangular)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, reflectors, v, t, scale, ctx.transpose, ctx.triangular = inputs
        ctx.forced = forced_backend()
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(reflectors, v, t, scale, *output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        reflectors, v, t, scale, y, coefficients = ctx.saved_tensors
        none = (None,) * 5
        if grad_y is None:
            return None, None, *none
        with without_autocast(y.device.type), hand_on(ctx.forced):
            way = ctx.transpose, ctx.triangular
            if not ctx.needs_input_grad[1]:
                back = (v, t, scale, not ctx.transpose, ctx.triangular)
                return ApplyReflectors.apply(grad_y, reflectors, *back)[0], None, *none
            if is_differentiated():
                v, t, scale = _prepared(reflectors, ctx.triangular)
            elif may_launch(y):
                grad_x, grad = householder_op.apply_bwd(y, grad_y, v, t, *way)
                return grad_x, _reflector_gradient(grad, scale), *none
            grad_x, grad = _apply_bwd(coefficients, y, grad_y, v, t, *way)
            return grad_x, _reflector_gradient(grad, scale), *none


def _apply_bwd(
    coefficients: Tensor,
    y: Tensor,
    grad_y: Tensor,
    v: Tensor,
    t: Tensor,
    transpose: bool,
    triangular: bool,
) -> tuple[Tensor, Tensor]:
    """compact_wy's, in buffers unless derivatives are taken; a kernel hands no coefficients on."""
    if is_differentiated():
        return compact_wy.apply_bwd(y, grad_y, v, t, transpose, triangular)
    known = coefficients if coefficients.numel() else None
    return compact_wy_inplace.apply_bwd(y, grad_y, v, t, transpose, triangular, known)


class ApplyFactors(FlatFunction):
    """U (σ ∘ (Vᵀ x)) + b of (N, n) or (M, N, n) rows, Vᵀ x and both coefficients; nothing empty.

    With a bias also what it is added to, which the backward needs as exactly as it was. One
    Function, since for few reflectors what autograd does for each takes as long as a product.
    """

    SCALE = -2

    @staticmethod
    @in_order
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
        fwd = compact_wy_inplace.apply_fwd
        inner, c_right = fwd(x, v_right, t_right, True, triangular)
        middle = resized(resized(inner, sigma.shape[-1]) * sigma.unsqueeze(-2), left.shape[-1])
        y, c_left = fwd(middle, v_left, t_left, False, triangular)
        if bias is None:
            return y, inner, c_left, c_right
        return y + bias.unsqueeze(-2), inner, c_left, c_right, y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, left, sigma, right, bias, *prepared, ctx.triangular = inputs
        ctx.mark_non_differentiable(*output[2:4])
        ctx.set_materialize_grads(False)
        y = output[0 if bias is None else 4]
        ctx.save_for_backward(left, sigma, right, *prepared, y, *output[1:4])

    @staticmethod
    def backward(
        ctx: Any,
        grad_y: Tensor | None,
        grad_inner: Tensor | None,
        _left: None,
        _right: None,
        grad_without_bias: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        left, sigma, right, *prepared, y, inner, c_left, c_right = ctx.saved_tensors
        triangular = ctx.triangular
        none = (None,) * 7
        grad_y = torch.zeros_like(y) if grad_y is None else grad_y
        grad_bias = grad_y.sum(-2) if ctx.needs_input_grad[4] else None
        if grad_without_bias is not None:
            grad_y = grad_y + grad_without_bias
        with without_autocast(y.device.type):
            if not any(ctx.needs_input_grad[1:4]):
                grad, _ = ApplyReflectors.apply(grad_y, left, *prepared[:3], True, triangular)
                grad = _through_sigma(grad, sigma, inner, grad_inner)
                grad, _ = ApplyReflectors.apply(grad, right, *prepared[3:], False, triangular)
                return grad, None, None, None, grad_bias, *none
            if is_differentiated():
                prepared = [*_prepared(left, triangular), *_prepared(right, triangular)]
            v, t, scale = prepared[:3]
            grad, grad_left = _apply_bwd(c_left, y, grad_y, v, t, False, triangular)
            grad_left = _reflector_gradient(grad_left, scale)
            p = sigma.shape[-1]
            grad_sigma = (resized(grad, p) * resized(inner, p)).sum(-2)
            grad = _through_sigma(grad, sigma, inner, grad_inner)
            v, t, scale = prepared[3:]
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
    pair = _prepare_pair(left, right, triangular, x.shape[-2])
    return ApplyFactors.apply(x, left, sigma, right, bias, *pair[0], *pair[1], triangular)[0]


class HouseholderProduct(FlatFunction):
    """Q, or its first columns, of (k, n) or (M, k, n) reflectors, full precision, none empty."""

    @staticmethod
    @in_order
    def forward(
        reflectors: Tensor,
        v: Tensor,
        t: Tensor,
        scale: Tensor,
        num_columns: int,
        triangular: bool,
    ) -> Tensor:
        return compact_wy_inplace.product_fwd(v, t, num_columns, triangular)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        reflectors, v, t, scale, _, ctx.triangular = inputs
        ctx.save_for_backward(reflectors, v, t, scale, output)

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor) -> tuple[Tensor | None, ...]:
        reflectors, v, t, scale, q = ctx.saved_tensors
        k, (n, columns) = scale.shape[-2], q.shape[-2:]
        with without_autocast(q.device.type):
            wy: Any = compact_wy_inplace
            if is_differentiated():
                wy = compact_wy
                v, t, scale = _prepared(reflectors, ctx.triangular)
            # Multiply-adds: 6 c n k against n² c + 3 n² k, a half and a third when triangular.
            share = (1 / 2, 1 / 3) if ctx.triangular else (1, 1)
            if 6 * columns * k * share[0] < n * columns + 3 * n * k * share[1]:
                rows = (q.mT, grad_q.mT)
                _, grad = wy.apply_bwd(*rows, v, t, False, ctx.triangular)
            else:
                grad = wy.product_bwd(q, grad_q, v, t, ctx.triangular)
            return _reflector_gradient(grad, scale), None, None, None, None, None
