"""Parameters that are spread over several processes (DTensor), as FSDP2 leaves them between calls.

Inside ``forward`` a module wrapped by ``fully_shard`` has whole parameters. Everywhere else, as for
``layer.weight`` or a penalty on ``layer.factors``, they are shards, and the factorisation needs
whole rows: every process has to ask at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_WHOLE = (Tensor, nn.Parameter)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether the tensor is a DTensor; loads nothing of ``torch.distributed`` to find out."""
    return type(tensor) not in _WHOLE and hasattr(tensor, "full_tensor")


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor on every process; its gradient is the mean over the processes.

    A mean, because that is what data parallelism makes of local losses, and because a penalty that
    every process computes alike keeps its gradient.
    """
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Partial

    size = tensor.device_mesh.size()
    whole = tensor.full_tensor(grad_placements=[Partial()] * tensor.device_mesh.ndim)
    if whole.requires_grad:
        whole.register_hook(lambda grad: grad / size)
    return whole


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` has put a class of its own in the place of the module's."""
    return type(module).__bases__[0].__name__ == "FSDPModule"


def refuse_sharded(module: nn.Module) -> None:
    """Raises where a module could not be copied or exchanged, since it is fully sharded."""
    for name, part in module.named_modules():
        if is_fully_sharded(part):
            raise ValueError(
                f"{name or 'the model'} is sharded by fully_shard: gather its state dict "
                "(get_model_state_dict with full_state_dict=True), load it into a model that is "
                "not sharded, and use that one"
            )


def original_type(module: nn.Module) -> type[nn.Module]:
    """The class of a module before ``fully_shard`` and parametrizations replaced it."""
    kind = type(module)
    if is_fully_sharded(module):
        kind = kind.__bases__[1]
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


@torch.no_grad()
def assign_(target: Tensor, value: Tensor) -> None:
    """Copies a whole value into a tensor; into shards, the value of the first process."""
    if is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        value = value.to(target.dtype)
        value = distribute_tensor(value, target.device_mesh, target.placements)
    target.copy_(value)
