r"""Householder products as registered ops, for tensors a Triton kernel may serve.

Opaque to torch.compile and torch.export: what they hold, a kernel or the algebra of compact_wy, is
decided when they run. Arguments as in :mod:`spectral_triton.householder.compact_wy`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spectral_triton.householder import compact_wy, compact_wy_inplace
from spectral_triton.runtime.backend import use_triton
from spectral_triton.runtime.flop_count import flop_formula
from spectral_triton.runtime.registered_op import registered_op


def _launches(v: Tensor, *others: Tensor) -> bool:
    return use_triton("apply_reflectors", v, *others, n=v.shape[-1], k=v.shape[-3] * v.shape[-2])


def _flat(v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """V as (M, k, n) and T as (M, m, b, b), contiguous, as the kernels take them."""
    if v.dim() == 3:
        v, t = v.unsqueeze(0), t.unsqueeze(0)
    return v.flatten(1, 2).contiguous(), t.contiguous()


def _batched(rows: Tensor) -> Tensor:
    return (rows if rows.dim() == 3 else rows.unsqueeze(0)).contiguous()


def _t_factor_fake(v: Tensor) -> Tensor:
    return v.new_empty(*v.shape[:-1], v.shape[-2])


@registered_op("t_factor", _t_factor_fake)
def t_factor(v: Tensor) -> Tensor:
    """T of all blocks."""
    if not _launches(v):
        return compact_wy.t_factor(v).contiguous()
    from spectral_triton.kernels.t_factor import t_factor_fwd

    m, b, n = v.shape[-3:]
    return t_factor_fwd(v.reshape(-1, m * b, n).contiguous(), b).reshape(*v.shape[:-1], b)


@flop_formula(t_factor)
def _t_factor_flops(v: Tensor) -> int:
    b, n = v.shape[-2:]
    return math.prod(v.shape[:-2]) * 2 * b * b * n


def _apply_fwd_fake(x: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@registered_op("apply_reflectors_fwd", _apply_fwd_fake)
def apply_fwd(x: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool) -> Tensor:
    """x Qᵀ, or x Q if transpose."""
    if not _launches(v, x, t):
        return compact_wy_inplace.apply_fwd(x, v, t, transpose, triangular)[0]
    from spectral_triton.kernels import compact_wy as kernels

    return kernels.apply_fwd(_batched(x), *_flat(v, t), transpose).view(x.shape)


# Those of the kernels, which multiply the zeros of a trapezoid too.
@flop_formula(apply_fwd)
def _apply_fwd_flops(x: Tensor, v: Tensor, *_: Any) -> int:
    num, (b, n) = x.shape[-2], v.shape[-2:]
    return math.prod(v.shape[:-2]) * (4 * num * b * n + 2 * num * b * b)


def _apply_bwd_fake(
    y: Tensor, grad_y: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty_like(y, memory_format=torch.contiguous_format)
    return grad_x, v.new_empty(*v.shape[:-3], v.shape[-3] * v.shape[-2], v.shape[-1])


@registered_op("apply_reflectors_bwd", _apply_bwd_fake)
def apply_bwd(
    y: Tensor, grad_y: Tensor, v: Tensor, t: Tensor, transpose: bool, triangular: bool
) -> tuple[Tensor, Tensor]:
    """Gradients for the rows and the unit reflectors, zero before the diagonal if triangular."""
    if not _launches(v, y, grad_y, t):
        grads = compact_wy_inplace.apply_bwd(y, grad_y, v, t, transpose, triangular)
    else:
        from spectral_triton.kernels import compact_wy as kernels

        grads = kernels.apply_bwd(_batched(y), _batched(grad_y), *_flat(v, t), transpose)
        grads = (grads[0], grads[1].triu()) if triangular else grads
    # Copies: an op's outputs must not share memory, nor depend on how they were computed.
    k = v.shape[-3] * v.shape[-2]
    return grads[0].reshape(y.shape).clone(), grads[1].reshape(*v.shape[:-3], k, v.shape[-1])


@flop_formula(apply_bwd)
def _apply_bwd_flops(y: Tensor, grad_y: Tensor, v: Tensor, *_: Any) -> int:
    num, (b, n) = 2 * y.shape[-2], v.shape[-2:]
    return math.prod(v.shape[:-2]) * (6 * num * b * n + 4 * num * b * b + 2 * b * b * n)
