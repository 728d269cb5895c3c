"""Matrices that layers in evaluation keep from call to call, until their parameters change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spectral_triton.runtime.cached import is_plain, scope_is_open, tensors_of
from spectral_triton.runtime.fingerprint import fingerprint, stamps
from spectral_triton.runtime.validation import check_flag

Value = TypeVar("Value")


class _Kept(NamedTuple):
    """A value with the state it was made in; None where that state was seen once only."""

    state: tuple[object, ...]
    value: Any = None
    handed_out: tuple[object, ...] | None = None
    """What the value was when somebody else got it, who may write to it."""


# Beside the modules, not in them: copies, pickles and state dicts are without it.
_kept: WeakKeyDictionary[nn.Module, dict[str, _Kept]] = WeakKeyDictionary()
_enabled = True


def keep_weights_in_eval(enabled: bool) -> None:
    r"""Whether layers in evaluation keep the matrices they form, as they do by default.

    A layer after ``model.eval()``, called under ``torch.no_grad()`` or ``torch.inference_mode()``,
    forms W at its second call at the latest and keeps it until its parameters change. This switch
    is for the whole process; ``False`` also frees what is kept.

    What is kept takes the memory of the dense weights, m n numbers in float32 at least, until
    ``model.train()``, ``load_state_dict``, ``.to`` or the end of the layer. At each call its
    parameters are read once, at O(m k_u + n k_v) beside the 2 m n operations per vector: not only
    optimizers and in-place writes are noticed, but also those into ``.data``, through NumPy and
    from other processes. Nothing is kept on other devices than the CPU, where looking at
    parameters would wait for the device, with gradients enabled, under torch.compile and other
    tracers, in transforms of ``torch.func`` and forward mode, of tensor subclasses and of
    parameters made in inference mode, and in programs with a process group. There
    :func:`cached` or :func:`bake` help.

    Args:
        enabled: Whether to keep them.

    Raises:
        TypeError: if ``enabled`` is not a bool.

    Example:
        >>> layer = SVDLinear(64, 64).eval()
        >>> with torch.no_grad():
        ...     layer.weight is layer.weight
        True
        >>> keep_weights_in_eval(False)
        >>> with torch.no_grad():
        ...     layer.weight is layer.weight
        False
        >>> keep_weights_in_eval(True)
    """
    check_flag("enabled", enabled)
    global _enabled
    _enabled = bool(enabled)
    if not enabled:
        _kept.clear()


def keeps(owner: nn.Module, tensors: Sequence[Tensor | None]) -> bool:
    """Whether what is made of these tensors of the module now is kept for its later calls."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or owner.training or not _enabled:
        return False
    if scope_is_open() or not is_plain():
        return False
    return all(
        tensor is None
        or (
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.device.type == "cpu"
            # They count no changes.
            and not tensor.is_inference()
        )
        for tensor in tensors
    )


def kept(
    owner: nn.Module,
    name: str,
    stamp: tuple[object, ...],
    tensors: Sequence[Tensor | None],
    make: Callable[[], Value],
    at_once: bool = True,
    hand_out: bool = True,
) -> Value | None:
    """What ``make()`` returns, or returned in the same state.

    Args:
        owner: Of which there is one such value, by name.
        name: That of the value.
        stamp: ``stamps`` of what ``tensors`` were read from, taken before.
        tensors: All that the value is made of, on the CPU.
        make: Returns a tensor, or a tuple of tensors.
        at_once: False to make it only where the state was seen before, and return None else.
        hand_out: False where nobody gets the value who could write to it.
    """
    # Taken before the value is made: what changes meanwhile is noticed by the next call.
    state = stamp, fingerprint(tensors)
    values = _kept.setdefault(owner, {})
    found = values.get(name)
    if found is None or found.state != state:
        found = _Kept(state)
        if not at_once:
            values[name] = found
            return None
    value, before = found.value, found.handed_out
    if value is None or (before is not None and before != _look_at(value)):
        # A tensor made in inference mode would count no changes.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        before = None
    if hand_out and before is None:
        before = _look_at(value)
    values[name] = _Kept(state, value, before)
    return value  # type: ignore[no-any-return]


def _look_at(value: object) -> tuple[object, ...]:
    tensors = tensors_of(value)
    return stamps(tensors), fingerprint(tensors)


def drop_kept(owner: nn.Module) -> None:
    """Frees what is kept for the module."""
    _kept.pop(owner, None)
