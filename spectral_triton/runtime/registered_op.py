"""How an opaque operation is registered with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("spectral_triton", "DEF")


def registered_op(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Makes a function of tensors an op that compilers leave alone; ``fake`` allocates its outputs.

    ``torch.library.custom_op`` would load the compiler at the first call, seconds that a program
    which compiles nothing need not wait, and fail where Triton is broken.
    """

    def register(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(f"{name}{schema}")
        # Gradients are the Functions' concern; an exported program calls the op without them.
        _LIBRARY.impl(name, torch.no_grad()(function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"spectral_triton::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.spectral_triton, name).default

    return register


def register_vmap(op: Any, rule: Callable[..., Any]) -> None:
    """Gives a registered op its rule for ``torch.func.vmap``."""
    torch.library.register_vmap(op, rule, lib=_LIBRARY)
