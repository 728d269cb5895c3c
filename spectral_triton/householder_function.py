r"""Householder products as autograd sees them: Functions with a closed-form backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from spectral_triton import compact_wy, householder_op
from spectral_triton.backend import may_launch, reflector_block_size
from spectral_triton.forward_mode import in_forward_mode, is_differentiated
from spectral_triton.validation import without_autocast

# Entries of one matrix of reflectors up to which two of them are prepared together.
SMALL = 1 << 15


def _prepared(reflectors: Tensor, triangular: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks V and T of the rows made unit, and the lengths of the rows; differentiable."""
    unit, length = compact_wy.unit_rows(reflectors, triangular)
    v = compact_wy.blocks(unit, compact_wy.block_size(unit.shape[-2]))
    return v, compact_wy.t_factor(v), length


@torch.no_grad()
def prepare(
    reflectors: Tensor, triangular: bool, num_vectors: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the Functions take beside the reflectors, so that their backward can keep it."""
    reflectors = reflectors.detach()
    if not may_launch(reflectors):
        return _prepared(reflectors, triangular)
    unit, length = compact_wy.unit_rows(reflectors, triangular)
    v = compact_wy.blocks(unit, reflector_block_size(unit, num_vectors))
    return v, householder_op.t_factor(v), length


@torch.no_grad()
def prepare_pair(
    first: Tensor, second: Tensor, triangular: bool
) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
    """The same for two matrices at once, None where they differ or are not small.

    Of small matrices the calls cost more than the arithmetic, of large ones the copy.
    """
    alike = first.shape == second.shape and first.dim() == 2 and 0 < first.numel() <= SMALL
    if not alike or may_launch(first) or in_forward_mode():
        return None, None
    both = _prepared(torch.stack((first.detach(), second.detach())), triangular)
    return tuple(part[0] for part in both), tuple(part[1] for part in both)


def apply_plain(x: Tensor, reflectors: Tensor, transpose: bool, triangular: bool) -> Tensor:
    """What ApplyReflectors computes, in operations with derivatives of every kind."""
    v, t, _ = _prepared(reflectors, triangular)
    return compact_wy.apply_fwd(x, v, t, transpose, triangular)


def _reflector_gradient(grad_unit: Tensor, length: Tensor, triangular: bool) -> Tensor:
    """From the gradient for unit rows (padded) to that for the rows as they were given."""
    grad = grad_unit.narrow(-2, 0, length.shape[-2])
    if is_differentiated():
        return (grad / length).triu() if triangular else grad / length
    grad.div_(length)
    return grad.triu_() if triangular else grad


class _Flat:
    """The vmap rule of both Functions: a mapped dimension joins the leading batch of matrices."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        is_batched = args[-3].dim() - (in_dims[-3] is not None) == 3  # the lengths (M, k, 1)
        moved = []
        for arg, dim in zip(args, in_dims, strict=True):
            if isinstance(arg, Tensor):
                arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
                arg = arg.flatten(0, 1) if is_batched else arg
            moved.append(arg)
        out = cls.apply(*moved)  # type: ignore[attr-defined]
        return (out.unflatten(0, (size, -1)) if is_batched else out), 0


def _with_signature(function: Callable[..., Any]) -> Callable[..., Any]:
    """Function.apply asks for it at each call; finding it out takes as long as a small product."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


class ApplyReflectors(_Flat, Function):
    """(N, n) or (M, N, n) rows and (k, n) or (M, k, n) reflectors, full precision, none empty."""

    @staticmethod
    @_with_signature
    def forward(
        x: Tensor,
        reflectors: Tensor,
        v: Tensor,
        t: Tensor,
        length: Tensor,
        transpose: bool,
        triangular: bool,
    ) -> Tensor:
        fwd = householder_op.apply_fwd if may_launch(x) else compact_wy.apply_fwd
        return fwd(x, v, t, transpose, triangular)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, reflectors, v, t, length, ctx.transpose, ctx.triangular = inputs
        ctx.save_for_backward(reflectors, v, t, length, output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        reflectors, v, t, length, y = ctx.saved_tensors
        none = (None,) * 5
        with without_autocast(y.device.type):
            if not ctx.needs_input_grad[1]:
                back = (v, t, length, not ctx.transpose, ctx.triangular)
                return ApplyReflectors.apply(grad_y, reflectors, *back), None, *none
            bwd = householder_op.apply_bwd if may_launch(y) else compact_wy.apply_bwd
            if is_differentiated():
                v, t, length = _prepared(reflectors, ctx.triangular)
                bwd = compact_wy.apply_bwd
            grad_x, grad = bwd(y, grad_y, v, t, ctx.transpose, ctx.triangular)
            return grad_x, _reflector_gradient(grad, length, ctx.triangular), *none


class HouseholderProduct(_Flat, Function):
    """Q, or its first columns, of (k, n) or (M, k, n) reflectors, full precision, none empty."""

    @staticmethod
    @_with_signature
    def forward(
        reflectors: Tensor,
        v: Tensor,
        t: Tensor,
        length: Tensor,
        num_columns: int,
        triangular: bool,
    ) -> Tensor:
        return compact_wy.product_fwd(v, t, num_columns, triangular)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        reflectors, v, t, length, _, ctx.triangular = inputs
        ctx.save_for_backward(reflectors, v, t, length, output)

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor) -> tuple[Tensor | None, ...]:
        reflectors, v, t, length, q = ctx.saved_tensors
        k, (n, columns) = length.shape[-2], q.shape[-2:]
        with without_autocast(q.device.type):
            if is_differentiated():
                v, t, length = _prepared(reflectors, ctx.triangular)
            # Multiply-adds: 6 c n k against n² c + 3 n² k, a half and a third when triangular.
            share = (1 / 2, 1 / 3) if ctx.triangular else (1, 1)
            if 6 * columns * k * share[0] < n * columns + 3 * n * k * share[1]:
                rows = (q.mT, grad_q.mT)
                _, grad = compact_wy.apply_bwd(*rows, v, t, False, ctx.triangular)
            else:
                grad = compact_wy.product_bwd(q, grad_q, v, t, ctx.triangular)
            return _reflector_gradient(grad, length, ctx.triangular), None, None, None, None, None
