"""What the autograd Functions of reflectors share: how they are called, and how they are mapped."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd import Function


class FlatFunction(Function):
    """Matrices have one leading batch dimension or none; one that is mapped by vmap joins it."""

    SCALE = -3  # Which argument is a scale, (k, 1) or (M, k, 1)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        is_batched = args[cls.SCALE].dim() - (in_dims[cls.SCALE] is not None) == 3
        moved = []
        for arg, dim in zip(args, in_dims, strict=True):
            if isinstance(arg, Tensor):
                arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
                arg = arg.flatten(0, 1) if is_batched else arg
            moved.append(arg)
        out = cls.apply(*moved)
        outs = out if isinstance(out, tuple) else (out,)
        if is_batched:
            outs = tuple(part.unflatten(0, (size, -1)) for part in outs)
        return (outs, (0,) * len(outs)) if isinstance(out, tuple) else (outs[0], 0)


class _InOrder(inspect.Signature):
    """The signature of a function that is given all its arguments, in order.

    Function.apply asks for it, and for which argument is which, at each call. To find that out
    takes as long as several small products.
    """

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        return _Bound(args, kwargs)


class _Bound(NamedTuple):
    """As much of inspect.BoundArguments as Function.apply reads."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply_defaults(self) -> None:
        """There are none."""


def in_order(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a ``forward`` that is given all its arguments in order."""
    parameters = inspect.signature(function).parameters.values()
    function.__signature__ = _InOrder(list(parameters))  # type: ignore[attr-defined]
    return function
