"""The parameters of one direction of one recurrent layer, named as in torch.nn.RNN."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.runtime.validation import autocast_is_on, check_device
from spectral_triton.svd.weight import SVDWeight

BIASES = ("bias_ih", "bias_hh")


def add_plain_parameters(
    module: nn.Module, suffix: str, shapes: dict[str, tuple[int, ...]], options: dict[str, Any]
) -> None:
    """Registers all parameters but those of the transition; not yet initialised."""
    for name, shape in shapes.items():
        tensor = torch.empty(shape, **options)
        module.register_parameter(f"{name}{suffix}", nn.Parameter(tensor))


@torch.no_grad()
def reset_uniform_(module: nn.Module, suffix: str, hidden_size: int) -> None:
    """Weights and biases uniform within 1/√n of zero, the start of torch.nn.LSTM and GRU."""
    bound = 1 / math.sqrt(hidden_size)
    for name in ("weight_ih", *BIASES, "weight_hr"):
        parameter = module._parameters.get(f"{name}{suffix}")
        if parameter is not None:
            nn.init.uniform_(parameter, -bound, bound)


@torch.no_grad()
def reset_cell_parameters_(module: nn.Module, suffix: str) -> None:
    """Small input weights and zero biases, so that what the state holds comes from memory."""
    weight = getattr(module, f"weight_ih{suffix}")
    bound = 0.5 / math.sqrt(weight.shape[1])
    nn.init.uniform_(weight, -bound, bound)
    for name in ("bias_ih", "bias_hh", "bias_modrelu"):
        parameter = module._parameters.get(f"{name}{suffix}")
        if parameter is not None:
            nn.init.zeros_(parameter)


def plain_tensor(module: nn.Module, name: str) -> Tensor | None:
    """A weight or bias, None where there is none.

    Not from ``_parameters`` or by ``get_parameter``: pruning, parametrizations and functional_call
    put plain tensors in the place of parameters.
    """
    return getattr(module, name, None)


def input_weights(module: nn.Module, suffix: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """W_ih and b_ih + b_hh, for an input of their dtype."""
    weight: Tensor = getattr(module, f"weight_ih{suffix}")
    check_input(x, weight)
    first, second = (plain_tensor(module, f"{name}{suffix}") for name in BIASES)
    return weight, None if first is None or second is None else first + second


def check_input(x: Tensor, weight: Tensor) -> None:
    """Raises unless input and weights have one device, and one dtype, which autocast may mix."""
    check_device("input", x, weight.device, "the weights")
    if x.dtype != weight.dtype and not autocast_is_on(x.device.type):
        raise TypeError(f"input must have the dtype of the weights, {weight.dtype}, got {x.dtype}")


def result_dtype(x: Tensor) -> torch.dtype:
    """What a gated layer gives for x: the dtype of x, or that of autocast where it applies."""
    if autocast_is_on(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def modrelu_bias(module: nn.Module, suffix: str) -> Tensor | None:
    """The bias of modrelu, None for other nonlinearities."""
    return plain_tensor(module, f"bias_modrelu{suffix}")


def stack_rows(w: Tensor) -> Tensor:
    """Stacked matrices (gates, m, n) as the rows of one, as torch keeps them; one stays one."""
    return w.flatten(0, -2)


def unstack_rows(w: Tensor, weight: SVDWeight) -> Tensor:
    """The inverse of :func:`stack_rows`, in the shape of ``weight``."""
    if weight.num_blocks is None or not isinstance(w, Tensor):
        return w
    expected = (weight.num_blocks * weight.out_features, weight.in_features)
    if tuple(w.shape) != expected:
        raise ValueError(f"w must have shape {expected}, got {tuple(w.shape)}")
    return w.unflatten(0, (weight.num_blocks, -1))
