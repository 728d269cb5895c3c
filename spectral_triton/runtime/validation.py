"""Checks and precision rules every public function shares."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral, Real
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless the argument called ``name`` is a real floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be a real floating-point tensor, got dtype {tensor.dtype}; "
            f"convert it first, for example with {name}.float()"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor, got layout {tensor.layout}; {name}.to_dense() "
            "makes it one"
        )


def check_precision(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raises TypeError unless a tensor is of half precision, or of the dtype of the factors."""
    check_floating(name, tensor)
    if tensor.dtype is not dtype and tensor.dtype.itemsize != 2:
        raise TypeError(
            f"{name} must have the dtype of the factors, {dtype}, or half precision, got "
            f"{tensor.dtype}; {name}.to({dtype}) or layer.to({tensor.dtype}) makes them one"
        )


def check_device(name: str, tensor: Tensor, device: torch.device, whose: str) -> None:
    """Raises ValueError unless a tensor is on the device of the others.

    Mixed with a tensor on the meta device, which has no values, some operations would return
    memory that was never written.
    """
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of {whose}, {device}, got {tensor.device}")


def full_precision(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype to compute in: the widest of the arguments, and float32 at least."""
    widest = torch.float32
    for dtype in dtypes:
        if dtype is not widest:
            widest = torch.promote_types(widest, dtype)
    return widest


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Keeps autocast from lowering the precision of the factors' arithmetic."""
    if autocast_is_on(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def autocast_is_on(device_type: str) -> bool:
    """Whether autocast is enabled, also for devices such as meta that have none."""
    # Asked first, since PyTorch 2.11 cannot trace the other question.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def check_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> None:
    """Raises TypeError unless ``value`` is an integer, ValueError unless it lies in the range."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value}")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is an int, or one of NumPy's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_has_value(name: str, weight: Tensor) -> None:
    """Raises ValueError where the weight of a lazy module has no shape yet."""
    if is_lazy(weight):
        raise ValueError(f"{name} is lazy and has no weight yet: run it on an input first")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises TypeError unless parameters of this dtype, or of the default one, can be trained."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a real floating-point dtype, got {dtype!r}")


def check_flag(name: str, value: object) -> None:
    """Raises TypeError unless ``value`` is True or False, in any of their types."""
    if value not in (True, False):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_takes(name: str, function: object, arguments: Sequence[str]) -> None:
    """Raises TypeError unless a function can be called with arguments of these names, by place."""
    try:
        inspect.signature(function).bind(*arguments)  # type: ignore[arg-type]
    except TypeError:
        called = f"{name}({', '.join(arguments)})"
        raise TypeError(f"{name} must be a function called as {called}, got {function!r}") from None
    except ValueError:
        pass  # One of C, without a signature.


def check_number(name: str, value: object) -> None:
    """Raises TypeError unless ``value`` is a real number, ValueError unless it is finite.

    NumPy's numbers are numbers.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def check_positive(name: str, value: object) -> None:
    """As :func:`check_number`, and ValueError unless the number is above zero."""
    check_number(name, value)
    if not value > 0:  # type: ignore[operator]
        raise ValueError(f"{name} must be positive, got {value}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {expected}, got {value!r}")


def check_bounds(bounds: object) -> None:
    """Raises unless ``bounds`` is a pair of numbers, the lower one not above the upper one."""
    if not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise TypeError(f"bounds must be a pair (lower, upper), got {bounds!r}")
    lower, upper = bounds
    if not all(isinstance(bound, Real) and not isinstance(bound, bool) for bound in bounds):
        raise TypeError(f"bounds must be two numbers, infinite where there is none, got {bounds!r}")
    if math.isnan(lower) or math.isnan(upper) or lower > upper:
        raise ValueError(f"bounds must be two numbers with lower <= upper, got {bounds!r}")


def resolve_num_reflectors(
    num_reflectors: int | Sequence[int] | None, out_features: int, in_features: int
) -> tuple[int, int]:
    """The numbers of reflectors (left, right): None means all, p = min(out, in) on each side.

    No more than p make sense: W only holds the first p columns of U and V, and in triangular
    form reflector i > p leaves those columns alone.
    """
    expected = "None, an int or a pair (left, right)"
    limit = min(out_features, in_features)
    if num_reflectors is None:
        return limit, limit
    if isinstance(num_reflectors, Sequence) and not isinstance(num_reflectors, str):
        if len(num_reflectors) != 2:
            raise ValueError(f"num_reflectors must be {expected}, got {num_reflectors!r}")
        left, right = num_reflectors
    else:
        left = right = num_reflectors
    for value in (left, right):
        if not is_integer(value):
            raise TypeError(f"num_reflectors must be {expected}, got {num_reflectors!r}")
        if not 0 <= value <= limit:
            raise ValueError(
                f"num_reflectors must lie between 0 and min(m, n) = {limit} for a matrix of "
                f"{out_features} x {in_features}, got {num_reflectors!r}"
            )
    return left, right


def broadcast_batch(*shapes: torch.Size) -> torch.Size:
    """``torch.broadcast_shapes``, at once where all shapes are the same."""
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return first
    return torch.broadcast_shapes(*shapes)


def check_factors(
    left: Tensor,
    singular_values: Tensor,
    right: Tensor,
    signs: Tensor | None,
    left_base: Tensor | None = None,
    right_base: Tensor | None = None,
) -> torch.Size:
    """Checks that the factors make up a matrix, and returns its batch dimensions."""
    matrices = {"left": left, "right": right}
    given = {"left_base": (left_base, left), "right_base": (right_base, right)}
    bases = {name: (base, rows) for name, (base, rows) in given.items() if base is not None}
    vectors = {"singular_values": singular_values} | ({} if signs is None else {"signs": signs})
    factors = matrices | vectors | {name: base for name, (base, _) in bases.items()}
    for name, factor in factors.items():
        check_floating(name, factor)
        if factor.dtype is not left.dtype and full_precision(factor.dtype) != full_precision(
            left.dtype
        ):
            raise TypeError(f"{name} must have the dtype of left, {left.dtype}, got {factor.dtype}")
    for name, factor in matrices.items():
        shape = tuple(factor.shape)
        if len(shape) < 2 or not shape[-2] <= shape[-1] or shape[-1] < 1:
            raise ValueError(
                f"{name} must have shape (..., k, n) with k <= n and n >= 1, one reflector per "
                f"row, got {shape}"
            )
    p = min(left.shape[-1], right.shape[-1])
    for name, factor in vectors.items():
        if factor.dim() < 1 or factor.shape[-1] != p:
            raise ValueError(
                f"{name} must have shape (..., p) with p = min(m, n) = {p}, "
                f"got {tuple(factor.shape)}"
            )
    for name, (base, rows) in bases.items():
        if base.dim() < 2 or base.shape[-2:] != (rows.shape[-1], p):
            raise ValueError(
                f"{name} must have shape (..., {rows.shape[-1]}, {p}), orthonormal columns for "
                f"reflectors of shape {tuple(rows.shape)}, got {tuple(base.shape)}"
            )
    try:
        return broadcast_batch(
            *(factor.shape[:-2] for factor in matrices.values()),
            *(base.shape[:-2] for base, _ in bases.values()),
            *(factor.shape[:-1] for factor in vectors.values()),
        )
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(factor.shape)}" for name, factor in factors.items())
        raise ValueError(f"batch dimensions must broadcast, got {shapes}") from None
