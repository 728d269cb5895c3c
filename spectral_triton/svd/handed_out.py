"""Dense weights that were handed out, and whether one was written to: that changes no parameter."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectral_triton.runtime.caller import stacklevel_of_caller


class _HandedOut(NamedTuple):
    name: str
    counter: Tensor
    version: int


def hand_out(weight: nn.Module, dense: Tensor, name: str) -> Tensor:
    """``dense``, of which ``weight`` remembers whether it is written to, at a few microseconds.

    What is kept shares the counter of changes and no memory. Writes through ``.data`` or NumPy do
    not count, nor do those in inference mode, in a compiled program, or under ``torch.func``.

    Args:
        weight: The ``SVDWeight`` that it was formed from.
        dense: What a property of a layer returns.
        name: What the user knows it by.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or type(dense) is not Tensor or dense.is_inference():
        return dense
    if torch._C._are_functorch_transforms_active():
        return dense
    counter = dense.detach()
    counter.data = dense.new_empty(0)
    vars(weight)["_handed_out"] = _HandedOut(name, counter, counter._version)
    return dense


def warn_of_writing(weight: nn.Module) -> None:
    """Warns, once, where the dense weight that was handed out last has been written to."""
    if torch.compiler.is_compiling():
        return
    handed: _HandedOut | None = vars(weight).get("_handed_out")
    if handed is None or handed.counter._version <= handed.version:
        return
    forget(weight)
    warnings.warn(
        f"{handed.name}, which is formed from factors at each access, was written to, and that "
        "changed no parameter: assign a matrix to it, which is factored, or call "
        "reset_parameters() for another start",
        stacklevel=stacklevel_of_caller(),
    )


def forget(weight: nn.Module) -> None:
    """Lets what was handed out be written to."""
    vars(weight).pop("_handed_out", None)


def state_without(weight: nn.Module) -> dict[str, Any]:
    """The attributes to copy or pickle."""
    return {name: value for name, value in vars(weight).items() if name != "_handed_out"}
