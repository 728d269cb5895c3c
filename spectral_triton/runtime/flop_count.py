r"""How ``torch.utils.flop_counter.FlopCounterMode`` comes to count what this library computes.

It counts products of matrices, by a table of operations. Those of this library are not in it until
a counter is active: that module imports Triton, which takes longer than importing this library.
Nor are products in place and LAPACK's, so while a counter is active others take their place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_FORMULAS: dict[Any, Callable[..., int]] = {}


def flop_formula(op: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Gives a registered op its number of operations, a function of the op's own arguments."""

    def register(formula: Callable[..., int]) -> Callable[..., int]:
        def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
            return formula(*args, **kwargs)

        count._get_raw = True  # type: ignore[attr-defined]
        _FORMULAS[op._overloadpacket] = count
        return formula

    return register


def flops_are_counted() -> bool:
    """Whether a ``FlopCounterMode`` is active, which then knows the ops of this library."""
    if torch.compiler.is_compiling() or not torch._C._len_torch_dispatch_stack():
        return False
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return False
    modes = _get_current_dispatch_mode_stack()
    counters = [mode.counter for mode in modes if isinstance(mode, module._FlopCounterMode)]
    for registry in (module.flop_registry, *(counter.flop_registry for counter in counters)):
        for op, formula in _FORMULAS.items():
            registry.setdefault(op, formula)
    return bool(counters)
