"""What stands between the steps of a recurrence: φ, differentiable and in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, leaky_relu_

from spectral_triton.runtime.validation import check_choice, check_number

NONLINEARITIES = ("tanh", "relu", "leaky_relu", "identity", "modrelu")
"""Those whose derivative can be told from their output alone."""

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_relu_backward = torch.ops.aten.threshold_backward.grad_input
_leaky_relu_backward = torch.ops.aten.leaky_relu_backward.grad_input


def check_nonlinearity(nonlinearity: str, negative_slope: float) -> None:
    """Raises unless φ is one of those, with a slope of leaky_relu that keeps the sign."""
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    check_number("negative_slope", negative_slope)
    if negative_slope < 0:
        raise ValueError(f"negative_slope must be at least 0, got {negative_slope}")


def activation(z: Tensor, nonlinearity: str, slope: float, bias: Tensor | None) -> Tensor:
    """φ(z), differentiable."""
    if nonlinearity == "tanh":
        return z.tanh()
    if nonlinearity == "relu":
        return z.relu()
    if nonlinearity == "leaky_relu":
        return leaky_relu(z, slope)
    return z.sign() * (z.abs() + bias).relu() if nonlinearity == "modrelu" else z


def derivative(grad: Tensor, y: Tensor, nonlinearity: str, slope: float) -> Tensor:
    """grad φ'(z), told from y = φ(z), differentiable."""
    if nonlinearity == "tanh":
        return grad * (1 - y * y)
    if nonlinearity == "relu":
        # Not a product, which of an infinite gradient would be NaN.
        return torch.where(y > 0, grad, 0)
    if nonlinearity == "leaky_relu":
        return torch.where(y > 0, grad, slope * grad)
    return torch.where(y != 0, grad, 0) if nonlinearity == "modrelu" else grad


def activation_(nonlinearity: str, slope: float, bias: Tensor | None) -> Callable[[Tensor], object]:
    """φ as a function that works in place."""
    if nonlinearity == "tanh":
        return torch.tanh_
    if nonlinearity == "relu":
        return torch.relu_
    if nonlinearity == "leaky_relu":
        return lambda z: leaky_relu_(z, slope)
    if nonlinearity == "modrelu":
        return lambda z: z.copy_(z.sign() * (z.abs() + bias).relu_())
    return lambda z: None


def derivative_(nonlinearity: str, slope: float) -> Callable[[Tensor, Tensor], object]:
    """What multiplies a gradient by φ', told from the output, in place."""
    if nonlinearity == "tanh":
        return lambda grad, y: _tanh_backward(grad, y, grad_input=grad)
    if nonlinearity == "relu":
        return lambda grad, y: _relu_backward(grad, y, 0, grad_input=grad)
    if nonlinearity == "leaky_relu":
        return lambda grad, y: _leaky_relu_backward(grad, y, slope, True, grad_input=grad)
    if nonlinearity == "modrelu":
        return lambda grad, y: grad.masked_fill_(y == 0, 0)
    return lambda grad, y: None
