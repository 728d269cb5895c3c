"""What tells that a tensor was changed, also by a write that autograd does not see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SMALL = 1024
"""Up to so many elements are compared one by one."""
SAMPLES = 16
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def stamps(tensors: Iterable[Tensor | None]) -> tuple[object, ...]:
    """What differs once one of the tensors is written to where autograd sees it, or replaced.

    Assigning another tensor to ``.data`` changes the address, not the version.
    """
    stamped: list[object] = []
    for tensor in tensors:
        if tensor is not None:
            version = 0 if tensor.is_inference() else tensor._version
            where = tensor.data_ptr(), tensor.stride()
            stamped += (id(tensor), version, *where, tensor.requires_grad)
    return tuple(stamped)


def fingerprint(tensors: Sequence[Tensor | None]) -> tuple[object, ...]:
    """What differs once values on the CPU do, however they were written.

    Small tensors are compared bit by bit. Of larger ones the sum of the bits of each row tells any
    change of one entry, and a sample most changes of sign or order that leave the sums. All is read
    once: a 768 x 768 matrix takes from 25 µs on, where forming it takes some 50 ms.
    """
    return tuple(None if tensor is None else _fingerprint(tensor.detach()) for tensor in tensors)


def _fingerprint(tensor: Tensor) -> object:
    if tensor.device.type != "cpu":
        return None
    shape = tensor.shape
    tensor = tensor.contiguous()
    if tensor.numel() <= SMALL:
        return shape, _bytes(tensor)
    sums = _as_integers(tensor).sum(-1)
    return shape, _bytes(sums), _bytes(_taken(tensor, 64))


def _bytes(tensor: Tensor) -> bytes:
    integers = tensor.view(_INTEGERS[tensor.dtype.itemsize])
    return integers.numpy().tobytes()


def _as_integers(tensor: Tensor) -> Tensor:
    """The bits of each row, where possible in words of 64, which are summed four times as fast."""
    offset, row = tensor.storage_offset(), tensor.shape[-1]
    size = tensor.dtype.itemsize
    whole = row * size % 8 == 0 and offset * size % 8 == 0
    return tensor.view(torch.int64 if whole else _INTEGERS[size])


def _taken(tensor: Tensor, count: int) -> Tensor:
    """About so many entries, far from each other, and in all columns alike."""
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.flatten()
    # An even step would meet every other column only.
    return flat[:: max(1, flat.numel() // count) | 1].contiguous()


def sample(tensors: Iterable[Tensor | None]) -> tuple[object, ...]:
    """A few entries of each tensor on the CPU, which tell that all of it was written to.

    It costs some 3 µs a tensor of any size. On other devices it would wait for them.
    """
    taken: list[object] = []
    for tensor in tensors:
        if tensor is None or tensor.device.type != "cpu" or not tensor.numel():
            continue
        taken.append(_taken(tensor.detach(), SAMPLES).tolist())
    return tuple(taken)
