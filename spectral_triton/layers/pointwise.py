"""Convolutions of kernel size 1: the inverse and the determinant of one matrix per position."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from spectral_triton.layers.convolution_norms import ConvolutionNorms
from spectral_triton.runtime.sharding import gathered
from spectral_triton.runtime.validation import check_integer, check_precision, full_precision

SIZES = ("L", "H, W", "D, H, W")
"""The dimensions of an input after its channels."""


class PointwiseInverse(ConvolutionNorms):
    """The part of the convolutions that undoes them where the kernel is one square matrix."""

    in_channels: int
    out_channels: int
    bias: nn.Parameter | None

    def inverse(self, y: Tensor) -> Tensor:
        r"""The x that the layer maps to y, where it is one square matrix at every position.

        That is a kernel of size 1 with stride 1, without padding and groups, and as many channels
        out as in: the invertible convolution of normalising flows, at the cost of a forward pass.

        Args:
            y: Shape ``([B,] out_channels, ...)``.

        Returns:
            Shape ``([B,] in_channels, ...)``, dtype of ``y``, differentiable.

        Raises:
            TypeError: if ``y`` is not a real floating point tensor.
            ValueError: if the layer is not of that kind or the shape of ``y`` does not fit.
            torch.linalg.LinAlgError: if a singular value is zero.

        References:
            Kingma, Dhariwal. Glow: generative flow with invertible 1 x 1 convolutions. NeurIPS
            2018. https://arxiv.org/abs/1807.03039
        """
        check_precision("y", y, full_precision(self.svd.left.dtype))
        self._check_pointwise("inverse")
        channel = -self.dimensions - 1
        if y.dim() not in (-channel, 1 - channel) or y.shape[channel] != self.out_channels:
            raise ValueError(
                f"y must have shape ([B,] out_channels, {SIZES[self.dimensions - 1]}) with "
                f"out_channels = {self.out_channels}, got {tuple(y.shape)}"
            )
        moved = y.movedim(channel, -1)
        if self.operator_bound is None:
            return self.svd.inverse(moved, self.bias).movedim(-1, channel)
        wide = moved.to(full_precision(self.svd.left.dtype))
        centered = wide if self.bias is None else wide - gathered(self.bias)
        return (self.svd.inverse(centered) / self._scale()).movedim(-1, channel).to(y.dtype)

    def logabsdet(self, size: Sequence[int]) -> Tensor:
        r""":math:`\log|\det|` of the map of a whole image, the number of positions times that of W.

        Args:
            size: Of the image, as many numbers as the layer has dimensions, ``x.shape[2:]``.

        Raises:
            ValueError: if the layer is not one square matrix at every position, see
                :meth:`inverse`, or ``size`` has another number of entries.
        """
        self._check_pointwise("logabsdet")
        if not isinstance(size, Sequence) or len(size) != self.dimensions:
            raise ValueError(
                f"size must hold {self.dimensions} numbers ({SIZES[self.dimensions - 1]}), "
                f"got {size!r}"
            )
        for number in size:
            check_integer("size", number, 0)
        logabsdet = self.svd.factors.slogdet().logabsdet
        if self.operator_bound is not None:
            logabsdet = logabsdet + self.out_channels * self._scale().log()
        return logabsdet * math.prod(size)

    def _check_pointwise(self, name: str) -> None:
        square = self.in_channels == self.out_channels and self.groups == 1
        plain = all(k == s == 1 for k, s in zip(self.kernel_size, self.stride, strict=True))
        if not (square and plain and not any(map(any, self._pads))):
            raise ValueError(
                f"{name} needs kernel_size = stride = 1, padding = 0, groups = 1 and as many "
                f"channels out as in, got {type(self).__name__}({self.extra_repr()})"
            )
