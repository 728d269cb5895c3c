"""Whether derivatives are being taken that an autograd Function cannot give.

A Function with a ``jvp`` loses the outer derivative of nested forward mode without a word
(PyTorch 2.13), so where forward mode is on, functions are computed by differentiable operations.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def in_forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open, as in ``torch.func.jvp``."""
    return forward_ad._current_level >= 0


def functions_serve() -> bool:
    """Whether autograd Functions may be called: neither forward mode nor torch.jit.trace can.

    In compiled transforms of ``torch.func`` a backward is traced as one that nobody differentiates.
    """
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return False
    return not (in_forward_mode() or torch.jit.is_tracing())


def is_differentiated() -> bool:
    """Whether what is computed now, such as a backward, has to be differentiable itself.

    A program that torch.jit.trace records without gradients is compared with one with them.
    """
    return torch.is_grad_enabled() or in_forward_mode() or torch.jit.is_tracing()
