"""Matrices that are formed once and used many times, until what they are made of changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spectral_triton.forward_mode import functions_serve

Value = TypeVar("Value")


class _Formed(NamedTuple):
    """A value, and what it was made of, held so that nothing else takes their ids."""

    value: Any
    tensors: list[Tensor]
    made: tuple[int, ...]
    state: tuple[int, ...]
    sources: tuple[object, ...]


_Store = WeakKeyDictionary[object, dict[tuple[Any, ...], _Formed]]
_store: ContextVar[_Store | None] = ContextVar("spectral_triton_cached", default=None)


@contextmanager
def cached() -> Iterator[None]:
    r"""Forms each matrix once for all calls inside, instead of once for each call.

    .. math:: W = U\,\mathrm{diag}(\sigma)\,V^\top \text{ once}, \qquad y_i = W x_i

    For cells in a loop, policies that act step by step, streams of single inputs. All layers,
    cells and parametrizations of this library take part. A call then costs 2 m n operations per
    vector, without the 4 (m k_u + n k_v) and O(k² n) of factors and of preparing them. One long
    sequence in a single call gains nothing, and with few reflectors neither do large matrices.

    A matrix is formed anew once its parameters change, by an optimizer or in any other way, and
    after a backward pass has gone through it. Outputs are those outside, up to rounding.
    Losses whose backward passes share one matrix are added up, or all but the last backward
    takes ``retain_graph=True``, as with ``torch.nn.utils.parametrize.cached()``.

    It holds for the thread, or asyncio task, that enters it, and may be used as a decorator. Under
    torch.compile, in transforms of ``torch.func``, forward mode, traces, CUDA graph captures,
    within checkpoints, and for sharded parameters, nothing is kept.

    Example:
        >>> cell, h = SpectralRNNCell(3, 8), None
        >>> with torch.no_grad(), cached():
        ...     for x in torch.randn(100, 3):
        ...         h = cell(x, h)
    """
    if _store.get() is not None:
        yield
        return
    store: _Store = WeakKeyDictionary()
    token = _store.set(store)
    try:
        yield
    finally:
        _store.reset(token)
        store.clear()


def is_cached(*tensors: Tensor | None) -> bool:
    """Whether what is made of these tensors now is kept for later calls."""
    if torch.compiler.is_compiling() or _store.get() is None:
        return False
    if torch._C._are_functorch_transforms_active() or not functions_serve():
        return False
    # Checkpoints count what is saved, which differs where a value was made before.
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return False
    for tensor in tensors:
        if tensor is not None and (_is_special(tensor) or tensor.is_inference()):
            return False
        if tensor is not None and tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
    return True


def formed_once(
    owner: object,
    name: str,
    tensors: Sequence[Tensor | None],
    make: Callable[[], Value],
    *others: object,
) -> Value:
    """What ``make()`` returns, inside :func:`cached` kept with its owner while it lives.

    Args:
        owner: Of which there is one such value, by name.
        name: That of the value.
        tensors: What the value is made of.
        make: Returns a tensor, a tuple of tensors, or an object with tensors as attributes.
        others: What else it depends on, compared by identity.
    """
    store = _store.get() if is_cached(*tensors) else None
    if store is None:
        return make()
    state = (*_state(tensors), *map(id, others))
    # What another stream forms may not be there yet.
    first = tensors[0]
    stream = None
    if first is not None and first.is_cuda:
        stream = torch.cuda.current_stream(first.device)
    key = name, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), stream
    values = store.setdefault(owner, {})
    formed = values.get(key)
    if formed is not None and formed.state == state and formed.made == _state(formed.tensors):
        return formed.value  # type: ignore[no-any-return]
    value = make()
    results = _tensors(value)
    if not any(_is_special(result) for result in results):
        values[key] = _Formed(value, results, _state(results), state, (*tensors, *others))
        for result in results:
            if result.requires_grad and not result.is_leaf:
                # Its graph is spent then.
                result.register_hook(lambda _: store.clear())
    return value


def _is_special(tensor: Tensor) -> bool:
    """Whether its values may change without a trace, as those of shards do."""
    return type(tensor) is not nn.Parameter and type(tensor) is not Tensor


def _state(tensors: Sequence[Tensor | None]) -> tuple[int, ...]:
    """What differs once one of the tensors does.

    Writing to ``.data``, as ``vector_to_parameters`` does, changes the address, not the version.
    """
    state: list[int] = []
    for tensor in tensors:
        if tensor is not None:
            version = 0 if tensor.is_inference() else tensor._version
            state += (id(tensor), version, tensor.data_ptr(), tensor.requires_grad)
    return tuple(state)


def _tensors(value: object) -> list[Tensor]:
    parts = (value,) if isinstance(value, Tensor) else value
    parts = parts if isinstance(parts, tuple) else vars(value).values()
    return [part for part in parts if isinstance(part, Tensor)]
