r"""An upper bound of the Lipschitz constant of a network, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.layers.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.layers.conv_transpose import (
    SVDConvTranspose1d,
    SVDConvTranspose2d,
    SVDConvTranspose3d,
)
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.layers.mlp import SVDMLP
from spectral_triton.layers.patches import bound_patches
from spectral_triton.layers.residual import SVDResidualBlock
from spectral_triton.layers.symbol import norm_bound, symbol_bound
from spectral_triton.layers.transposed_linear import SVDTransposedLinear
from spectral_triton.runtime.computed_tensors import compute_tensors
from spectral_triton.runtime.sharding import gathered, original_type
from spectral_triton.runtime.validation import full_precision, without_autocast
from spectral_triton.svd.weight import SVDWeight

Constant = float | Tensor
Known = Mapping[type[nn.Module], float | Callable[[nn.Module], Constant]]


def lipschitz_constant(module: nn.Module, *, known: Known | None = None) -> Tensor:
    r"""An L with :math:`\|f(x) - f(y)\|_2 \le L \|x - y\|_2` for all inputs of a network f.

    Norms are over all entries of an input. A ``nn.Sequential`` gets the product of its parts,
    :class:`SVDResidualBlock` 1 plus that of its branch. Per layer:

    * **exact**: :class:`SVDLinear`, :class:`SVDWeight` (one matrix) from σ at no cost;
      ``nn.Linear`` by a decomposition of its weight, parametrized or not; ``nn.BatchNorm`` in eval
      mode; elementwise activations; what only moves entries (``nn.Flatten``, ...);
    * **upper bound**: convolutions and transposed ones, see ``SVDConv2d.operator_norm_bound``;
      pooling; dropout in training, whatever is dropped (in eval mode it does nothing);
      every product and sum: they are exact only where the layers stretch the same direction.

    The result is differentiable where σ or a weight is, for use as a penalty. It is computed in
    the precision of the weights, and thus exact or a bound up to its rounding. Weights that hooks
    compute, as pruning does, are computed anew. Other forward hooks, and a ``forward`` assigned to
    one module, are not looked into: what they do to inputs and outputs is not in the bound. To read
    a weight of torch's ``spectral_norm`` in training mode takes a step of its iteration.

    Args:
        module: One layer or a network of layers that are known.
        known: Constants of further types of modules: a number, or a function of the module.

    Returns:
        Scalar tensor.

    Raises:
        TypeError: if ``module`` is no module.
        ValueError: naming the submodule whose constant is not known, or that has none of use:
            layer normalisation, attention, batch normalisation in training mode.

    Example:
        >>> model = nn.Sequential(SVDLinear(8, 8), nn.Tanh(), SVDResidualBlock(8), nn.Linear(8, 1))
        >>> bound = lipschitz_constant(model)
        >>> x, y = torch.randn(2, 8)
        >>> bool((model(x) - model(y)).norm() <= bound * (x - y).norm())
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    for part in module.modules():
        compute_tensors(part)
    if known is not None and not (
        isinstance(known, Mapping) and all(isinstance(kind, type) for kind in known)
    ):
        raise TypeError(
            f"known must be a dict by types of modules, such as {{nn.GLU: 1.0}}, got {known!r}"
        )
    return torch.as_tensor(_constant(module, "", known or {}))


def parts_of(module: nn.Module, known: Known, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers that a constant is made of, with their names: what is not looked into further."""
    kind: Any = original_type(module)
    inner: list[str] = []
    if kind not in known:
        if kind in WRAPPERS:
            inner = ["module"]
        elif kind in (nn.Sequential, SVDMLP):
            inner = list(module._modules)
        elif kind is SVDResidualBlock:
            inner = ["linear", "activation"]
    if not inner and kind not in (nn.Sequential, SVDMLP):
        yield name, module
    for key in inner:
        yield from parts_of(getattr(module, key), known, f"{name}.{key}".lstrip("."))


def _constant(module: Any, name: str, known: Known) -> Constant:
    kind = original_type(module)
    try:
        if kind not in known and kind in WRAPPERS:
            return _constant(module.module, name, known)
        if kind in known:
            rule = known[kind]
            return _given(rule(module) if callable(rule) else rule)
        if kind in (nn.Sequential, SVDMLP):
            parts = [
                _constant(part, f"{name}.{key}".lstrip("."), known)
                # Not named_children, which passes over a module that stands there again.
                for key, part in module._modules.items()
            ]
            return math.prod(parts, start=1.0)
        if kind is SVDResidualBlock:
            activation = _constant(module.activation, f"{name}.activation".lstrip("."), known)
            return 1 + activation * _constant(module.linear, f"{name}.linear".lstrip("."), known)
        if kind in CONSTANTS:
            return CONSTANTS[kind]
        if kind in RULES:
            return RULES[kind](module)
        reason = REFUSED.get(kind, "its constant is not known, give it by known={...}")
        raise _UnknownError(reason)
    except _UnknownError as error:
        where = f"{name} ({kind.__name__})" if name else kind.__name__
        raise ValueError(f"no Lipschitz constant for {where}: {error}") from None


def _given(constant: Any) -> Constant:
    number = isinstance(constant, int | float | Tensor) and torch.as_tensor(constant).numel() == 1
    if not number or not constant >= 0:
        raise _UnknownError(f"known gives {constant!r}, which is no number that is 0 or above")
    return constant


class _UnknownError(Exception):
    """Why a module has no constant; never leaves this file."""


def _matrix_norm(weight: Tensor, blocks: int = 1) -> Tensor:
    """The largest singular value among matrices stacked along dimension 0."""
    with without_autocast(weight.device.type):
        weight = gathered(weight)
        stacked = weight.to(full_precision(weight.dtype)).flatten(1).unflatten(0, (blocks, -1))
        return torch.linalg.matrix_norm(stacked, 2).amax()


def _svd_weight(weight: SVDWeight) -> Tensor:
    if weight.num_blocks is not None:
        raise _UnknownError("several matrices are not one map")
    return weight.singular_values.abs().amax()


def _conv(conv: Any) -> Tensor:
    pads = conv._reversed_padding_repeated_twice
    pairs = [(pads[i], pads[i + 1]) for i in range(len(pads) - 2, -1, -2)]
    settings = zip(conv.kernel_size, conv.stride, conv.dilation, pairs, strict=True)
    patches = math.prod([bound_patches(*along, conv.padding_mode) for along in settings])
    by_patches = _matrix_norm(conv.weight, conv.groups) * math.sqrt(patches)
    kernel = gathered(conv.weight).unflatten(0, (conv.groups, -1))
    with without_autocast(kernel.device.type):
        bound = norm_bound(kernel, conv.stride, conv.dilation, pairs, conv.padding_mode)
    return torch.minimum(bound, by_patches)


def _conv_transpose(conv: Any) -> Tensor:
    # The transpose of the convolution with the same kernel, less what padding cuts off.
    patches = _patches(conv, len(conv.kernel_size))
    by_patches = _matrix_norm(conv.weight, conv.groups) * math.sqrt(patches)
    kernel = gathered(conv.weight).unflatten(0, (conv.groups, -1))
    with without_autocast(kernel.device.type):
        bound = symbol_bound(kernel, conv.stride, conv.dilation)
    return torch.minimum(bound, by_patches)


def _each(setting: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    given = (setting,) if isinstance(setting, int) else tuple(setting)
    return given * dimensions if len(given) == 1 else given


def _patches(pool: Any, dimensions: int) -> int:
    settings = (pool.kernel_size, pool.stride, getattr(pool, "dilation", 1))
    sizes = zip(*(_each(setting, dimensions) for setting in settings), strict=True)
    return math.prod([bound_patches(k, s, d, (0, 0), "zeros") for k, s, d in sizes])


def _max_pool(dimensions: int) -> Callable[[Any], float]:
    return lambda pool: math.sqrt(_patches(pool, dimensions))


def _average_pool(dimensions: int) -> Callable[[Any], float]:
    def rule(pool: Any) -> float:
        area = math.prod(_each(pool.kernel_size, dimensions))
        divisor = getattr(pool, "divisor_override", None)
        if divisor:
            row = math.sqrt(area) / abs(divisor)
        else:
            # Where windows are cut off, fewer entries may be averaged, down to one.
            padded = any(_each(pool.padding, dimensions)) and not pool.count_include_pad
            row = 1.0 if padded or pool.ceil_mode else 1 / math.sqrt(area)
        return row * math.sqrt(_patches(pool, dimensions))

    return rule


def _adaptive_average(pool: Any) -> float:
    size = pool.output_size
    # None leaves a dimension as it is.
    if any(s not in (1, None) for s in (size if isinstance(size, tuple) else (size,))):
        raise _UnknownError("windows depend on the input, except for output_size = 1")
    return 1.0


def _batch_norm(norm: Any) -> Tensor:
    if norm.training or norm.running_var is None:
        raise _UnknownError("statistics of the batch are used; in eval mode it is a linear map")
    scale = (norm.running_var + norm.eps).rsqrt()
    return (scale if norm.weight is None else scale * norm.weight).abs().amax()


def _dropout(dropout: Any) -> float:
    if not dropout.training:
        return 1.0
    return 1 / (1 - dropout.p) if dropout.p < 1 else 0.0


def _alpha_dropout(dropout: Any) -> float:
    if dropout.training and dropout.p > 0:
        raise _UnknownError("known in eval mode only")
    return 1.0


def _softplus(softplus: nn.Softplus) -> float:
    # Beyond it x itself is taken, at the usual threshold less than a rounding of float32 away.
    if softplus.threshold < 20:
        raise _UnknownError("it jumps at its threshold, unless that is 20 at least")
    return 1.0


def _celu(celu: nn.CELU) -> float:
    if celu.alpha <= 0:
        raise _UnknownError("it needs a positive alpha")
    return 1.0


WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
ONE = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU, nn.ReLU6, nn.Tanh, nn.Softsign),
    *(nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardtanh, nn.ChannelShuffle),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
)
CONSTANTS: dict[type[nn.Module], float] = dict.fromkeys(ONE, 1.0) | {
    nn.Sigmoid: 1 / 4,
    nn.Hardsigmoid: 1 / 6,
    nn.Hardswish: 1.5,
    # Its Jacobian diag(p) - p pᵀ has no eigenvalue above 1/2.
    nn.Softmax: 1 / 2,
    nn.Softmin: 1 / 2,
    # Slope on the left of 0.
    nn.SELU: 1.0507009873554805 * 1.6732632423543772,
    # The largest slopes, rounded up.
    nn.SiLU: 1.0998394,
    nn.Mish: 1.0884982,
}
RULES: dict[type[nn.Module], Callable[..., Constant]] = {
    **dict.fromkeys((SVDLinear, SVDTransposedLinear), lambda linear: _svd_weight(linear.svd)),
    SVDWeight: _svd_weight,
    nn.Linear: lambda linear: _matrix_norm(linear.weight),
    **{kind: kind.operator_norm_bound for kind in (SVDConv1d, SVDConv2d, SVDConv3d)},
    **{
        kind: kind.operator_norm_bound
        for kind in (SVDConvTranspose1d, SVDConvTranspose2d, SVDConvTranspose3d)
    },
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transpose),
    **{kind: _max_pool(d) for d, kind in enumerate((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), 1)},
    **{
        kind: _average_pool(d)
        for d, kind in enumerate((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), 1)
    },
    **dict.fromkeys(
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _adaptive_average
    ),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
    **dict.fromkeys((nn.AlphaDropout, nn.FeatureAlphaDropout), _alpha_dropout),
    # At x = sqrt(2); that of the approximation by tanh is rounded up.
    nn.GELU: lambda gelu: (
        1.1289931
        if gelu.approximate == "tanh"
        else 0.5 * (1 + math.erf(1)) + math.exp(-1) / math.sqrt(math.pi)
    ),
    nn.LeakyReLU: lambda relu: float(max(1, abs(relu.negative_slope))),
    nn.RReLU: lambda relu: float(max(1, abs(relu.lower), abs(relu.upper))),
    nn.PReLU: lambda relu: relu.weight.abs().amax().clamp(min=1.0),
    nn.ELU: lambda elu: float(max(1, abs(elu.alpha))),
    nn.CELU: _celu,
    nn.Softplus: _softplus,
}
_NORMALISES = "it divides by the deviation of its input, so only 1 / sqrt(eps) bounds its slope"
REFUSED: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), _NORMALISES),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _NORMALISES),
    nn.MultiheadAttention: "a product of its inputs, which no constant bounds",
    nn.Bilinear: "a product of its inputs, which no constant bounds",
    nn.GLU: "a product of its inputs, which no constant bounds",
    nn.Hardshrink: "it is not continuous",
    nn.Threshold: "it is not continuous",
}
