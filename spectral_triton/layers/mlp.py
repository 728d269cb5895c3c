r"""A multilayer perceptron of layers with bounded singular values."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from spectral_triton.layers.linear import SVDLinear
from spectral_triton.layers.residual import SVDResidualBlock, make_activation
from spectral_triton.runtime.validation import check_flag, check_integer
from spectral_triton.spectra.spectrum import Spectrum


class SVDMLP(nn.Sequential):
    r"""Layers of any widths, residual where two widths are equal, the last one linear.

    Between widths a ≠ b stands :class:`SVDLinear` and φ, between equal ones
    :class:`SVDResidualBlock`, in the end :class:`SVDLinear`. :func:`lipschitz_constant` tells what
    the whole can at most do to a distance: with the default spectra
    :math:`1.01^{c} \cdot 1.5^{d}` for c linear layers and d blocks with a 1-Lipschitz φ.

    Args:
        widths: Sizes of input, hidden layers and output, two at least.
        bias: Whether layers have a bias.
        device: Where the parameters live.
        dtype: Their floating dtype.
        activation: Makes φ, once for each hidden layer.
        residual: False to have no blocks, but linear layers and φ at equal widths, too.
        num_reflectors: At most this many per side and layer; None for all.
        spectrum: Of the linear layers; that of :class:`SVDLinear` if None.
        residual_spectrum: Of the blocks; that of :class:`SVDResidualBlock` if None.
        init: Start of every U and V, as for :class:`SVDLinear`.
        base: None, or "haar", see :class:`SVDWeight`.
        margin: Half-width of the band around 1 of the linear layers, as for :class:`SVDLinear`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if there are fewer than two widths, or one is below 1.

    Example:
        >>> mlp = SVDMLP([784, 128, 128, 10], num_reflectors=16)
        >>> [type(layer).__name__ for layer in mlp]
        ['SVDLinear', 'ReLU', 'SVDResidualBlock', 'SVDLinear']
        >>> mlp(torch.randn(5, 784)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        widths: Sequence[int],
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        residual: bool = True,
        num_reflectors: int | None = None,
        spectrum: Spectrum | None = None,
        residual_spectrum: Spectrum | None = None,
        init: str = "haar",
        base: str | None = None,
        margin: float | None = None,
    ) -> None:
        if not isinstance(widths, Sequence) or isinstance(widths, str) or len(widths) < 2:
            raise ValueError(
                f"widths must be a list or tuple of two sizes or more, as in "
                f"SVDMLP([784, 128, 10]), got {widths!r}"
            )
        for index, width in enumerate(widths):
            check_integer(f"widths[{index}]", width, 1)
        check_flag("residual", residual)
        if num_reflectors is not None:
            check_integer("num_reflectors", num_reflectors, 0)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            limit = min(before, after)
            reflectors = limit if num_reflectors is None else min(num_reflectors, limit)
            options: dict[str, Any] = {
                "device": device,
                "dtype": dtype,
                "num_reflectors": reflectors,
                "init": init,
                "base": base,
            }
            is_last = index == len(widths) - 2
            if residual and before == after and not is_last:
                options |= {"activation": activation, "spectrum": residual_spectrum}
                layers.append(SVDResidualBlock(before, bias, **options))
                continue
            options |= {"spectrum": spectrum, "margin": margin}
            layers.append(SVDLinear(before, after, bias, **options))
            if not is_last:
                layers.append(make_activation(activation, device, dtype))
        super().__init__(*layers)

    def __getitem__(self, idx: slice | int) -> Any:
        """A layer, or a ``nn.Sequential`` of some of them: a part has no widths to be made from."""
        if isinstance(idx, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[idx]))
        return super().__getitem__(idx)
