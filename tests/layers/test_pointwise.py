"""Inverse and determinant of convolutions that are one square matrix at every position."""

import pytest
import torch

from spectral_triton.layers.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.spectra.spectrum import SoftplusSpectrum


def randomize(conv):
    with torch.no_grad():
        conv.svd.raw_singular_values.normal_()
    return conv


@pytest.mark.parametrize(
    ("kind", "size"), [(SVDConv1d, (5,)), (SVDConv2d, (3, 4)), (SVDConv3d, (2, 3, 2))]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_of_single_positions_is_inverted(kind, size, bias):
    conv = randomize(kind(4, 4, 1, bias=bias, spectrum=SoftplusSpectrum(0.2)))
    for shape in ((2, 4, *size), (4, *size), (0, 4, *size)):
        x = torch.randn(shape)
        torch.testing.assert_close(conv.inverse(conv(x)), x, rtol=1e-10, atol=1e-10)
    x = torch.randn(4, *size)
    jacobian = torch.autograd.functional.jacobian(conv, x).reshape(x.numel(), x.numel())
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(conv.logabsdet(x.shape[1:]), expected)
    conv.logabsdet(size).backward()
    assert (conv.svd.raw_singular_values.grad != 0).all()


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((4, 3, 1), {}),
        ((4, 4, (1, 2)), {}),
        ((4, 4, 1), {"stride": 2}),
        ((4, 4, 1), {"padding": 1}),
        ((4, 4, 1), {"groups": 2}),
    ],
)
def test_other_convolutions_have_no_inverse(sizes, options):
    conv = SVDConv2d(*sizes, **options)
    with pytest.raises(ValueError, match="inverse needs kernel_size = stride = 1"):
        conv.inverse(torch.randn(1, conv.out_channels, 4, 4))
    with pytest.raises(ValueError, match="logabsdet needs"):
        conv.logabsdet((4, 4))


def test_shapes_of_the_inverse_are_checked():
    conv = SVDConv2d(4, 4, 1)
    with pytest.raises(ValueError, match=r"y must have shape .*out_channels = 4, got"):
        conv.inverse(torch.randn(3, 5, 5))
    with pytest.raises(ValueError, match="size must hold 2 numbers"):
        conv.logabsdet((3,))


def test_a_scaled_kernel_is_inverted_as_it_is_used():
    conv = randomize(SVDConv2d(4, 4, 1, spectrum=SoftplusSpectrum(2.0), operator_bound=0.5))
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(conv.inverse(conv(x)), x)
    expected = torch.linalg.slogdet(conv.weight.flatten(1)).logabsdet * 9
    torch.testing.assert_close(conv.logabsdet((3, 3)), expected)
