"""Matrices that are formed once and used many times, until what they are made of changes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from spectral_triton.runtime.fingerprint import sample, stamps
from spectral_triton.runtime.forward_mode import functions_serve

Value = TypeVar("Value")


class _Formed(NamedTuple):
    """A value, and what it was made of, held so that nothing else takes its ids and addresses."""

    value: Any
    tensors: list[Tensor]
    made: tuple[object, ...]
    state: tuple[object, ...]
    sources: tuple[object, ...]
    storages: list[torch.UntypedStorage]


_Store = WeakKeyDictionary[object, dict[tuple[Any, ...], _Formed]]


class _Scope:
    """What is kept, for those who entered it, or were started inside."""

    def __init__(self) -> None:
        self.store: _Store = WeakKeyDictionary()
        self.is_open = True


_scope: ContextVar[_Scope | None] = ContextVar("spectral_triton_cached", default=None)
_open_scopes: set[_Scope] = set()


@contextmanager
def cached() -> Iterator[None]:
    r"""Forms each matrix once for all calls inside, instead of once for each call.

    .. math:: W = U\,\mathrm{diag}(\sigma)\,V^\top \text{ once}, \qquad y_i = W x_i

    For cells in a loop, policies that act step by step, streams of single inputs. All layers,
    cells and parametrizations of this library take part. A call then costs 2 m n operations per
    vector, without the 4 (m k_u + n k_v) and O(k² n) of factors and of preparing them. One long
    sequence in a single call gains nothing, and large matrices of few reflectors gain less.

    A matrix is formed anew after an optimizer has stepped, after a backward pass has gone through
    it, and once its parameters were changed in place or replaced. Of what is written to parameters
    behind autograd's back, into ``.data``, through NumPy, or from another process, changes of whole
    tensors on a CPU are noticed, as those of a moving average; single entries, and writes on other
    devices, are not. What is read inside, as ``layer.weight`` and ``layer.factors``, is what is
    kept: clone it to change it.

    Outputs are those outside, up to rounding. Losses whose backward passes share one matrix are
    added up, or all but the last backward takes ``retain_graph=True``, as with
    ``torch.nn.utils.parametrize.cached()``.

    It holds for the thread, or asyncio task, that enters it and for tasks begun inside, and may
    decorate a function that is neither a coroutine nor a generator. Nothing is kept, so all is as
    outside, under torch.compile and other tracers, in transforms of ``torch.func``, forward mode,
    checkpoints that are not reentrant, CUDA graph captures, and programs with a process group, and
    of parameters that are parts of a larger tensor, as ``vector_to_parameters`` makes them.

    Example:
        >>> cell, h = SpectralRNNCell(3, 8), None
        >>> with torch.no_grad(), cached():
        ...     for x in torch.randn(100, 3):
        ...         h = cell(x, h)
    """
    outer = None if torch.compiler.is_compiling() else _scope.get()
    if torch.compiler.is_compiling() or (outer is not None and outer.is_open):
        yield
        return
    _watch_optimizers()
    scope = _Scope()
    _open_scopes.add(scope)
    token = _scope.set(scope)
    try:
        yield
    finally:
        # Tasks begun inside may go on.
        scope.is_open = False
        _open_scopes.discard(scope)
        scope.store.clear()
        with suppress(ValueError):  # Where asyncio closes a generator in another task.
            _scope.reset(token)


@functools.cache
def _watch_optimizers() -> None:
    """Fused optimizers change parameters without a new version.

    Once for all: torch walks through the hooks while other threads may enter and leave.
    """

    def forget(*_: object) -> None:
        for scope in tuple(_open_scopes):
            scope.store.clear()

    register_optimizer_step_post_hook(forget)


def scope_is_open() -> bool:
    """Whether :func:`cached` is on here."""
    scope = _scope.get()
    return scope is not None and scope.is_open


def is_cached(*tensors: Tensor | None) -> bool:
    """Whether what is made of these tensors now is kept for later calls."""
    if torch.compiler.is_compiling() or not scope_is_open() or not is_plain():
        return False
    for tensor in tensors:
        # Of subclasses, and of what has no version, changes cannot be told.
        special = type(tensor) is not nn.Parameter and type(tensor) is not Tensor
        if tensor is not None and (special or tensor.is_inference()):
            return False
        if tensor is not None and tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
    return True


def is_plain() -> bool:
    """Whether nothing takes part that would keep what is computed, or compute it again."""
    return not (
        torch._C._are_functorch_transforms_active()
        or not functions_serve()
        # Tracers would take what is kept for a constant.
        or torch._C._len_torch_dispatch_stack()
        # Checkpoints count what is saved, which differs where a value was made before. Others
        # compute again inside a backward pass, whose graph ends with it.
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or torch._C._current_graph_task_id() != -1
        # Collectives and shards change parameters without a new version.
        or (torch.distributed.is_available() and torch.distributed.is_initialized())
    )


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
    scope = _scope.get() if is_cached(*tensors) else None
    if scope is None:
        return make()
    store = scope.store
    state = (*stamps(tensors), *map(id, others))
    if isinstance(owner, nn.Module):
        # Other owners are made of parameters that were looked at just before.
        state += sample(tensors)
    # What another stream forms may not be there yet.
    first = tensors[0]
    stream = None
    if first is not None and first.is_cuda:
        stream = torch.cuda.current_stream(first.device)
    key = name, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), stream
    values = store.setdefault(owner, {})
    formed = values.get(key)
    if formed is not None and formed.state == state and formed.made == stamps(formed.tensors):
        return formed.value  # type: ignore[no-any-return]
    value = make()
    results = tensors_of(value)
    given = [tensor for tensor in tensors if tensor is not None]
    storages = [tensor.untyped_storage() for tensor in given]
    # The larger tensor can be written to, with a version of its own.
    if any(a.nbytes != whole.nbytes() for a, whole in zip(given, storages, strict=True)):
        return value
    sources = *tensors, *others
    values[key] = _Formed(value, results, stamps(results), state, sources, storages)
    for result in results:
        if result.requires_grad and not result.is_leaf:
            # Its graph is spent then.
            result.register_hook(lambda _: store.clear())
    return value


def tensors_of(value: object) -> list[Tensor]:
    parts = (value,) if isinstance(value, Tensor) else value
    parts = parts if isinstance(parts, tuple) else vars(value).values()
    return [part for part in parts if isinstance(part, Tensor)]
