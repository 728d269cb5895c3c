"""Putting one module in the place of another, everywhere in a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from spectral_triton.parametrizations import release_flat_weights

# Carried as they are, not copied, so that handles of the hooks still remove them.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy, also where an RNN with a parametrized weight keeps a graph."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            release_flat_weights(module)
    return copy.deepcopy(model)


def replace_modules(root: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Exchanges modules wherever they are registered, and returns the root, or what replaces it.

    A module registered in several places is replaced by one module in all of them. References
    from elsewhere, such as a Python list, keep the old one.
    """
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(root, root)


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """Gives ``new`` the mode, the hooks and, themselves, the parameters that both have by name."""
    new.train(old.training)
    for name in _HOOKS:
        new.__dict__[name] = old.__dict__[name]
    for name, parameter in old._parameters.items():
        if parameter is not None and new._parameters.get(name) is not None:
            setattr(new, name, parameter)
