"""A few vectors on a CPU without derivatives: LAPACK's ``ormqr``, which is one call."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_triton.householder.compact_wy import may_be_looked_at, unit_rows
from spectral_triton.runtime.backend import may_launch
from spectral_triton.runtime.flop_count import flops_are_counted

# Vectors up to which it is faster than products of blocks, for every n and k that was timed.
FEW = 64


def serves(num_vectors: int, triangular: bool, *tensors: Tensor) -> bool:
    """Whether LAPACK reads these reflectors and nothing but the numbers is wanted."""
    if not triangular or not all(may_be_looked_at(tensor) for tensor in tensors):
        return False
    if num_vectors > FEW or may_launch(tensors[0]):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if flops_are_counted():
        return False
    # ormqr has no rule for transforms.
    return not torch._C._are_functorch_transforms_active()


@torch.no_grad()
def apply_reflectors(rows: Tensor, reflectors: Tensor, transpose: bool) -> Tensor:
    """x Qᵀ (x Q if transpose) for rows (..., N, n) and triangular reflectors (..., k, n)."""
    unit, _ = unit_rows(reflectors, triangular=True)
    # LAPACK's reflectors begin with a one. One that begins with (almost) nothing gets a beginning
    # below rounding; a row of zeros becomes H = I - 2 tiny² e eᵀ, the identity.
    tiny = torch.finfo(unit.dtype).eps ** 1.5
    first = unit.diagonal(dim1=-2, dim2=-1)
    first = torch.where(first.abs() < tiny, tiny, first)
    columns = unit.div_(first.unsqueeze(-1)).mT
    return torch.ormqr(columns, 2 * first.square(), rows.mT, left=True, transpose=transpose).mT
