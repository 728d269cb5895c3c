"""How an opaque operation is registered with PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import torch

_LIBRARY = torch.library.Library("spectral_triton", "DEF")


def registered_op(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Makes a function of tensors an op that compilers leave alone; ``fake`` allocates its outputs.

    The last parameter of both may be a NamedTuple: the op, for which PyTorch knows no such type,
    takes its fields one by one, under their names.

    ``torch.library.custom_op`` would load the compiler at the first call, seconds that a program
    which compiles nothing need not wait, and fail where Triton is broken.
    """

    def register(function: Callable[..., Any]) -> Any:
        flat = _with_fields(function)
        schema = torch.library.infer_schema(flat, mutates_args=())
        _LIBRARY.define(f"{name}{schema}")
        # Gradients are the Functions' concern; an exported program calls the op without them.
        _LIBRARY.impl(name, torch.no_grad()(flat), "CompositeExplicitAutograd")
        torch.library.register_fake(f"spectral_triton::{name}", _with_fields(fake), lib=_LIBRARY)
        return getattr(torch.ops.spectral_triton, name).default

    return register


def register_vmap(op: Any, rule: Callable[..., Any]) -> None:
    """Gives a registered op its rule for ``torch.func.vmap``."""
    torch.library.register_vmap(op, rule, lib=_LIBRARY)


def _with_fields(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the fields of a NamedTuple in the place of its last parameter."""
    hints = get_type_hints(function)
    *others, last = inspect.signature(function).parameters
    kind = hints.get(last)
    if not (isinstance(kind, type) and issubclass(kind, tuple)):
        return function
    make, count = kind, len(others)

    def flat(*arguments: Any) -> Any:
        return function(*arguments[:count], make(*arguments[count:]))

    types = {name: hints[name] for name in others} | get_type_hints(kind)
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(n, positional, annotation=t) for n, t in types.items()]
    flat.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=hints.get("return")
    )
    return flat
