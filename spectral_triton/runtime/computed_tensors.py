"""Tensors that hooks compute before each call of a module, as pruning does."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def computing_hooks(module: nn.Module) -> list[Any]:
    """The hooks that compute a tensor of the module before each call."""
    found = []
    for hook in module._forward_pre_hooks.values():
        name = getattr(hook, "_tensor_name", getattr(hook, "name", ""))
        if isinstance(vars(module).get(name), Tensor):
            found.append(hook)
    return found


def compute_tensors(module: nn.Module) -> None:
    """Computes them as the next call would, for who reads them without one."""
    if module._forward_pre_hooks:
        for hook in computing_hooks(module):
            hook(module, ())
