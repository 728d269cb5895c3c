"""Layers in place of those of torch.nn: linear, convolutional, and two blocks made of them.

All hold an SVDWeight or its parameters, and bound its singular values.
"""

from spectral_triton.layers.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.layers.conv_transpose import (
    SVDConvTranspose1d,
    SVDConvTranspose2d,
    SVDConvTranspose3d,
)
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.layers.mlp import SVDMLP
from spectral_triton.layers.residual import SVDResidualBlock
from spectral_triton.layers.transposed_linear import SVDTransposedLinear

__all__ = [
    "SVDMLP",
    "SVDConv1d",
    "SVDConv2d",
    "SVDConv3d",
    "SVDConvTranspose1d",
    "SVDConvTranspose2d",
    "SVDConvTranspose3d",
    "SVDLinear",
    "SVDResidualBlock",
    "SVDTransposedLinear",
]
