"""Putting one module in the place of another, everywhere in a model."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from spectral_triton.parametrizations import release_flat_weights
from spectral_triton.runtime.computed_tensors import computing_hooks
from spectral_triton.runtime.sharding import refuse_sharded

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


# Parameters of torch's layers, the modules in their place, and what hooks compute them from.
_OWN = re.compile(
    r"(svd|weight|bias)(_(ih|hh|hr|modrelu)(_l\d+(_reverse)?)?)?(_orig|_mask|_[guv])?"
)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy, also where an RNN with a parametrized weight or a hook's weight has a graph."""
    refuse_sharded(model)
    graphs = []
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            release_flat_weights(module)
        # What pruning and the old weight_norm put there before each call.
        own = vars(module)
        graphs += [(own, n, v) for n, v in own.items() if isinstance(v, Tensor) and not v.is_leaf]
    for own, name, value in graphs:
        own[name] = value.detach()
    try:
        return copy.deepcopy(model)
    finally:
        for own, name, value in graphs:
            own[name] = value


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


def compiled(root: nn.Module) -> set[nn.Module]:
    """What ``torch.compile`` was given itself: its program goes on with the module it has seen."""
    # By name, since importing the type takes a second.
    wrappers = [m for m in root.modules() if type(m).__name__ == "OptimizedModule"]
    return {part for wrapper in wrappers for part in wrapper.children()}


def altered(layer: nn.Module) -> str | None:
    """Why another layer in its place would not be the same, None where nothing is known."""
    if "forward" in vars(layer):
        return "its forward was replaced"
    members = [*layer._parameters, *layer._buffers, *layer._modules]
    more = [name for name in members if not _OWN.fullmatch(name)]
    return f"it was given more than its type has: {', '.join(more)}" if more else None


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """Gives ``new`` the mode, the hooks and, themselves, the parameters that both have by name.

    Hooks that compute a tensor stay behind: ``new`` has what they computed.
    """
    new.train(old.training)
    for name in _HOOKS:
        new.__dict__[name] = old.__dict__[name]
    computing = computing_hooks(old)
    if computing:
        kept = old._forward_pre_hooks.items()
        new._forward_pre_hooks = OrderedDict((k, h) for k, h in kept if h not in computing)
    for name, parameter in old._parameters.items():
        if parameter is not None and new._parameters.get(name) is not None:
            setattr(new, name, parameter)
