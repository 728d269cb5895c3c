"""The layers by number of dimensions; what they compute is in test_convolution_transpose.py."""

import inspect

import pytest
from torch import nn

from spectral_triton.layers.conv_transpose import (
    SVDConvTranspose1d,
    SVDConvTranspose2d,
    SVDConvTranspose3d,
)


@pytest.mark.parametrize(
    ("own", "plain"),
    [
        (SVDConvTranspose1d, nn.ConvTranspose1d),
        (SVDConvTranspose2d, nn.ConvTranspose2d),
        (SVDConvTranspose3d, nn.ConvTranspose3d),
    ],
)
def test_arguments_come_in_the_order_of_torch(own, plain):
    theirs = list(inspect.signature(plain).parameters)
    assert list(inspect.signature(own).parameters)[: len(theirs)] == theirs
    layer = own(2, 4, 3)
    assert layer.weight.shape == plain(2, 4, 3).weight.shape
