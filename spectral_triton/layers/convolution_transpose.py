"""What transposed convolutions with a kernel in SVD form have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.layers.convolution import SVDConvolution
from spectral_triton.runtime.validation import (
    check_device,
    check_precision,
    full_precision,
    without_autocast,
)
from spectral_triton.spectra.spectrum import Spectrum

_CONVOLVE: tuple[Any, ...] = (
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)


class SVDTransposedConvolution(SVDConvolution):
    """The base of :class:`SVDConvTranspose1d` and its like, which say how many dimensions."""

    _settings = (*SVDConvolution._settings, "output_padding")
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        init: str = "haar",
        base: str | None = None,
        margin: float | None = None,
        operator_bound: float | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self._take(
            {
                "in_channels": in_channels,
                "out_channels": out_channels,
                "kernel_size": kernel_size,
                "stride": stride,
                "padding": padding,
                "output_padding": output_padding,
                "groups": groups,
                "dilation": dilation,
                "padding_mode": padding_mode,
            }
        )
        # Padding cuts outputs off, which makes no norm larger.
        self._pads = ((0, 0),) * self.dimensions
        svd = {"num_reflectors": num_reflectors, "spectrum": spectrum, "margin": margin}
        self._add(bias, operator_bound, {**svd, "init": init, "base": base}, device, dtype)

    @property
    def _kernel_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def _sizes(self, input_size: int | Sequence[int]) -> None:  # type: ignore[override]
        # The bound for every size; how often inputs meet is counted for convolutions.
        super()._sizes(input_size)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """([B,] in_channels, ...) -> ([B,] out_channels, ...), with an output size as torch's."""
        check_precision("input", input, full_precision(self.svd.left.dtype))
        check_device("input", input, self.svd.left.device, "the layer")
        self._check_channels(input)
        d = self.dimensions
        own: Any = self
        more = self.plain_type._output_padding(
            own,
            input,
            None if output_size is None else list(output_size),
            list(self.stride),
            list(self.padding),
            list(self.kernel_size),
            d,
            list(self.dilation),
        )
        with without_autocast(input.device.type):
            kernel = self._kernel()
            wide = input.to(kernel.dtype) if input.dtype.itemsize == 2 else input
            bias = None if self.bias is None else self.bias.to(kernel.dtype)
            settings = self.stride, self.padding, more, self.groups, self.dilation
            y = _CONVOLVE[d - 1](wide, kernel, bias, *settings)
        return y.to(input.dtype)

    def operator_singular_values(self, input_size: int | Sequence[int]) -> Tensor:
        """Not known in closed form: operator_norm_bound holds for every convolution."""
        raise ValueError(
            "the singular values of a transposed convolution are not known in closed form; "
            "operator_norm_bound is an upper bound of them"
        )

    def _check_pointwise(self, name: str) -> None:
        raise ValueError(f"{name} is for convolutions, not for transposed ones, got {self}")
