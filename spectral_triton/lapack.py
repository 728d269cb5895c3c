"""A few vectors on a CPU without derivatives: LAPACK's ``ormqr``, which is one call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectral_triton.backend import may_launch
from spectral_triton.compact_wy import unit_rows

# Vectors up to which it is faster than products of blocks, for every n and k that was timed.
FEW = 64


def serves(num_vectors: int, triangular: bool, *tensors: Tensor) -> bool:
    """Whether LAPACK reads these reflectors and nothing but the numbers is wanted."""
    if not triangular or torch.compiler.is_compiling() or num_vectors > FEW:
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if torch._C._are_functorch_transforms_active():  # ormqr has no rule for them.
        return False
    plain = all(tensor.is_cpu and type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
    return plain and not may_launch(tensors[0])


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
