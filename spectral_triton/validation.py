"""Checks and precision rules every public function shares."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless the argument called ``name`` is a real floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be a real floating-point tensor, got dtype {tensor.dtype}; "
            f"convert it first, for example with {name}.float()"
        )


def full_precision(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype to compute in: the widest of the arguments, and float32 at least."""
    widest = torch.float32
    for dtype in dtypes:
        widest = torch.promote_types(widest, dtype)
    return widest


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Keeps autocast from lowering the precision of the factors' arithmetic."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
