"""Values of parameters inside torch.onnx.export, which shows a model placeholders instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Value = TypeVar("Value")

_evaluated: WeakKeyDictionary[Any, dict[tuple[nn.Module, str], Any]] = WeakKeyDictionary()


def exports_to_onnx() -> bool:
    """Whether torch.onnx.export with ``dynamo=True`` is looking at the model."""
    return torch.compiler.is_compiling() and _in_onnx_export()


def _in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


# What torch.compiler.assume_constant_result does, after it has loaded the compiler: traced with
# strict=True the function of torch is False throughout.
_in_onnx_export._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextmanager
def outside_trace() -> Iterator[None]:
    """Lets what is computed of values be a value: a constant of the graph, not a part of it."""
    with (
        torch.utils._python_dispatch._disable_current_modes(),
        torch._C.DisableTorchFunction(),
        torch.no_grad(),
    ):
        yield


def evaluated(
    module: nn.Module, make: Callable[..., Value], *tensors: Tensor | None, name: str = ""
) -> Value:
    """What ``make(*tensors)`` returns, of values in the place of placeholders; once per export.

    Args:
        module: Its parameters and buffers have their values meanwhile.
        make: Called outside the trace.
        tensors: What else it needs: parameters of the model.
        name: Tells several values of a module apart.

    Raises:
        RuntimeError: if one of them is computed, not a parameter or buffer of the model.
    """
    if torch.compiler.is_dynamo_compiling():
        # What torch.onnx.export tries after an error, which it shows; it would find another one.
        raise RuntimeError("only torch.export without strict=True sees values of parameters")
    found = _values([*tensors, *module.parameters(), *module.buffers()], module)
    kept = _evaluated.setdefault(found.mode, {}) if found.mode is not None else {}
    key = module, name
    if key not in kept:
        with outside_trace(), _with_values(module, found):
            kept[key] = make(*(None if t is None else found[t].detach() for t in tensors))
    value: Value = kept[key]
    return value


class _Values:
    """The values of placeholders, by identity, and the mode of the export that made these."""

    def __init__(self, mode: Any, values: dict[int, Tensor]) -> None:
        self.mode, self._values = mode, values

    def __getitem__(self, tensor: Tensor) -> Tensor:
        return self._values[id(tensor)]


def _values(tensors: list[Tensor | None], module: nn.Module) -> _Values:
    found: dict[int, Tensor] = {}
    mode, real = None, {}
    for tensor in tensors:
        if tensor is None:
            continue
        if mode is None and hasattr(tensor, "fake_mode"):
            mode = tensor.fake_mode
            real = _placeholders(mode)
        value = real.get(id(tensor)) if hasattr(tensor, "fake_mode") else tensor
        if value is None:
            raise RuntimeError(
                f"an ONNX graph holds the dense matrix of {type(module).__name__}, which needs the "
                "values of its parameters: they have to be parameters or buffers of the exported "
                "module, not computed in it; export bake(model) instead"
            )
        found[id(tensor)] = value
    return _Values(mode, found)


def _placeholders(mode: Any) -> dict[int, Tensor]:
    """What each placeholder of an export stands for, by its id."""
    converter = mode.fake_tensor_converter.meta_converter
    ids = converter.describer.lookup_tensor.items()
    made = ((converter.tensor_memo.get(number), tensor) for tensor, number in ids)
    return {id(placeholder): tensor for placeholder, tensor in made if placeholder is not None}


@contextmanager
def _with_values(module: nn.Module, values: _Values) -> Iterator[None]:
    places = [
        (place, name, tensor)
        for part in module.modules()
        for place in (part._parameters, part._buffers)
        for name, tensor in place.items()
        if tensor is not None
    ]
    try:
        for place, name, tensor in places:
            place[name] = values[tensor].detach()  # type: ignore[assignment]
        yield
    finally:
        for place, name, tensor in places:
            place[name] = tensor  # type: ignore[assignment]
