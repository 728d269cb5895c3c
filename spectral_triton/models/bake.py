"""A model of plain torch layers with the same outputs, for inference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from spectral_triton.layers.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.layers.conv_transpose import (
    SVDConvTranspose1d,
    SVDConvTranspose2d,
    SVDConvTranspose3d,
)
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.layers.transposed_linear import SVDTransposedLinear, conv1d_type
from spectral_triton.models.replacement import (
    altered,
    carry_over,
    compiled,
    copy_model,
    replace_modules,
)
from spectral_triton.parametrizations import remove_svd, svd_names
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.gru_cell import SpectralGRUCell
from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.lstm_cell import SpectralLSTMCell
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.recurrent.rnn_cell import SpectralRNNCell
from spectral_triton.runtime.computed_tensors import compute_tensors, computing_hooks
from spectral_triton.svd.weight import SVDWeight


def _plain_transposed(layer: SVDTransposedLinear) -> nn.Module:
    """The Conv1D it stands for; where transformers is not loaded nothing expects one."""
    if conv1d_type() is None or layer.bias is None:
        return layer.to_linear()
    return layer.to_conv1d()


PLAIN: dict[type[nn.Module], Callable[..., nn.Module]] = {
    SVDLinear: SVDLinear.to_linear,
    SVDTransposedLinear: _plain_transposed,
    **{kind: kind.to_conv for kind in (SVDConv1d, SVDConv2d, SVDConv3d)},
    **{kind: kind.to_conv for kind in (SVDConvTranspose1d, SVDConvTranspose2d, SVDConvTranspose3d)},
    SpectralRNN: SpectralRNN.to_rnn,
    SpectralGRU: SpectralGRU.to_gru,
    SpectralLSTM: SpectralLSTM.to_lstm,
    SpectralRNNCell: SpectralRNNCell.to_rnn_cell,
    SpectralGRUCell: SpectralGRUCell.to_gru_cell,
    SpectralLSTMCell: SpectralLSTMCell.to_lstm_cell,
}
"""How each layer becomes a plain one; ValueError where it cannot."""


def bake(model: nn.Module) -> nn.Module:
    r"""A copy of a model in which every weight in SVD form is a dense one of a plain torch layer.

    :class:`SVDLinear` becomes ``nn.Linear``, :class:`SVDConv1d` to :class:`SVDConv3d` become
    ``nn.Conv1d`` to ``nn.Conv3d``, :class:`SVDTransposedLinear` the ``Conv1D`` of transformers
    (``nn.Linear`` where that is not loaded), :class:`SpectralRNN` (with tanh or relu),
    :class:`SpectralGRU`, :class:`SpectralLSTM` and their cells become ``nn.RNN``, ``nn.GRU``,
    ``nn.LSTM`` and cells, tensors under ``parametrizations.svd`` become plain parameters;
    :class:`SVDResidualBlock` and :class:`SVDMLP` stay, with plain layers inside. Outputs agree up
    to rounding. Modules and
    parameters that were shared stay shared (but two layers that share only their
    :class:`SVDWeight` get a weight each); mode, dtype, ``requires_grad`` and forward and backward
    hooks are kept. The model itself is not changed.

    What has no plain counterpart stays as it is, and one warning names it: recurrent layers with
    other nonlinearities, subclasses of the layers and layers that were given a forward, members or
    inner hooks of their own, an :class:`SVDWeight` used by itself, a tensor with further
    parametrizations, a layer that ``torch.compile`` was given itself. Only registered submodules
    are found, not those in a Python list.

    The plain layers compute in the dtype of their input: where the input has another dtype than
    the layer, or under autocast, the originals convert and keep float32, ``nn.Linear`` does not.

    Args:
        model: Any module; if it is itself one of the layers, a plain layer is returned.

    Returns:
        The copy.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if a part of it is sharded by ``fully_shard``.

    Warns:
        UserWarning: naming what could not be baked and why.

    Example:
        >>> model = nn.Sequential(SVDLinear(4, 4), nn.Tanh(), SVDLinear(4, 2))
        >>> bake(model)
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): Tanh()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )
        >>> x = torch.randn(3, 4)
        >>> torch.testing.assert_close(bake(model)(x), model(x))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    with torch.inference_mode(False):
        baked, kept = _baked(copy_model(model))
    if kept:
        listed = "; ".join(f"{name or 'the model'} ({reason})" for name, reason in kept.items())
        warnings.warn(f"not baked, kept as they are: {listed}", stacklevel=2)
    return baked


def _baked(model: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """The model with plain layers put into it, and why some are not, by name."""
    kept: dict[str, str] = {}
    for prefix, module in model.named_modules():
        for name in svd_names(module):
            try:
                remove_svd(module, name)
            except ValueError as error:
                kept[f"{prefix}.{name}".lstrip(".")] = str(error)
    unreachable = compiled(model)
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if type(module) in PLAIN:
            reason = "compiled by itself" if module in unreachable else _difference(module)
            if reason is not None:
                kept[name] = reason
                continue
            _compute(module)
            try:
                plain = PLAIN[type(module)](module)
            except ValueError as error:
                kept[name] = str(error)
                continue
            _carry_gradients(module, plain)
            carry_over(module, plain)
            replacements[module] = plain
    model = replace_modules(model, replacements)
    layers: tuple[type[nn.Module], ...] = (SVDWeight, *PLAIN)
    for name, module in model.named_modules():
        if isinstance(module, layers) and not _is_below(name, kept):
            kept[name] = _reason(module)
    return model, kept


@torch.enable_grad()
def _compute(module: nn.Module) -> None:
    """Lets pruning and the like use the parameters as they are, not as of the last call."""
    for part in module.modules():
        compute_tensors(part)


@torch.enable_grad()
def _carry_gradients(module: nn.Module, plain: nn.Module) -> None:
    """A dense weight is trained where one of its factors was."""
    for name, parameter in plain.named_parameters(recurse=False):
        parameter.requires_grad_(getattr(module, name).requires_grad)


def _difference(layer: nn.Module) -> str | None:
    """Why a layer computes more than its type does, None if it does not."""
    for part in layer.modules():
        hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
        if part is not layer and any(hook not in computing_hooks(part) for hook in hooks):
            return f"its {type(part).__name__} has hooks"
    return altered(layer)


def _is_below(name: str, others: dict[str, str]) -> bool:
    return any(not other or f"{name}.".startswith(f"{other}.") for other in others)


def _reason(module: Any) -> str:
    if parametrize.is_parametrized(module):
        return f"parametrized: {', '.join(module.parametrizations)}"
    if type(module) is SVDWeight:
        return "an SVDWeight by itself has no plain counterpart"
    return f"{type(module).__name__} is a subclass that may compute something else"
