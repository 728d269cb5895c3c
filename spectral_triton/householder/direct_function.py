"""An autograd Function that is called without the detour through ``inspect``."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function


class DirectFunction(Function):
    """Takes all its arguments in order.

    ``Function.apply`` binds them to the signature of ``forward`` at each call, to find defaults.
    That takes as long as several small products.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Calls ``forward``; under transforms and in a traced program as Function.apply does."""
        if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
            return super().apply(*args)
        return super(Function, cls).apply(*args)  # type: ignore[misc]
