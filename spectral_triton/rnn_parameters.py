"""The parameters of one direction of one recurrent layer, named as in torch.nn.RNN."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.validation import check_floating


def add_cell_parameters(
    module: nn.Module,
    suffix: str,
    input_size: int,
    hidden_size: int,
    bias: bool,
    nonlinearity: str,
    options: dict[str, Any],
) -> None:
    """Registers weight_ih, bias_ih, bias_hh and, for modrelu, its bias; not yet initialised."""
    shapes = {"weight_ih": (hidden_size, input_size)}
    if bias:
        shapes |= {"bias_ih": (hidden_size,), "bias_hh": (hidden_size,)}
    if nonlinearity == "modrelu":
        shapes["bias_modrelu"] = (hidden_size,)
    for name, shape in shapes.items():
        tensor = torch.empty(shape, **options)
        check_floating("dtype", tensor)
        module.register_parameter(f"{name}{suffix}", nn.Parameter(tensor))


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


def project_input(module: nn.Module, suffix: str, x: Tensor) -> Tensor:
    """W_ih x + b_ih + b_hh for all steps at once."""
    weight = module._parameters[f"weight_ih{suffix}"]
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"input must have the dtype of the weights, {weight.dtype}, got {x.dtype}")
    bias = module._parameters.get(f"bias_ih{suffix}")
    if bias is not None:
        bias = bias + module._parameters[f"bias_hh{suffix}"]
    return nn.functional.linear(x, weight, bias)


def modrelu_bias(module: nn.Module, suffix: str) -> Tensor | None:
    """The bias of modrelu, None for other nonlinearities."""
    return module._parameters.get(f"bias_modrelu{suffix}")


def load_dense_transitions(
    module: nn.Module, suffixes: Iterable[str], state_dict: dict[str, Any], prefix: str
) -> None:
    """Turns the dense weight_hh of an unconstrained checkpoint into factors, in place."""
    for suffix in suffixes:
        key = f"{prefix}weight_hh{suffix}"
        if key not in state_dict:
            continue
        try:
            factors = module.get_submodule(f"svd_hh{suffix}").dense_state(state_dict[key])
        except (TypeError, ValueError) as error:
            raise type(error)(f"cannot load the dense {key}: {error}") from error
        del state_dict[key]
        entries = factors.items()
        state_dict.update((f"{prefix}svd_hh{suffix}.{name}", value) for name, value in entries)
