"""Transposed convolutions: torch's outputs, norms that hold, kernels kept, inputs checked."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from spectral_triton import bake, convert, lipschitz_constant
from spectral_triton.layers.conv_transpose import (
    SVDConvTranspose1d,
    SVDConvTranspose2d,
    SVDConvTranspose3d,
)
from spectral_triton.layers.convolution_transpose import SVDTransposedConvolution
from spectral_triton.spectra.spectrum import FixedSpectrum, SigmoidSpectrum, SoftplusSpectrum

KINDS = {
    1: (SVDConvTranspose1d, nn.ConvTranspose1d),
    2: (SVDConvTranspose2d, nn.ConvTranspose2d),
    3: (SVDConvTranspose3d, nn.ConvTranspose3d),
}
SETTINGS = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": 3, "groups": 2, "bias": False},
    {"dilation": 2, "padding": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("d", KINDS)
def test_it_is_torchs_with_a_bounded_kernel(d, settings):
    own_type, plain_type = KINDS[d]
    assert issubclass(own_type, SVDTransposedConvolution)
    plain = plain_type(4, 6, 3, **settings)
    own = own_type.from_conv(plain, spectrum=SoftplusSpectrum())
    for shape in ((2, 4, *(4,) * d), (4, *(4,) * d)):
        x = torch.randn(shape)
        torch.testing.assert_close(own(x), plain(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(own.to_conv().weight, plain.weight, rtol=1e-10, atol=1e-12)
    again = own_type(4, 6, 3, spectrum=SoftplusSpectrum(), **settings)
    again.load_state_dict(plain.state_dict())
    torch.testing.assert_close(again(x), plain(x), rtol=1e-10, atol=1e-12)
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own)), bake(nn.Sequential(own))):
        torch.testing.assert_close(other(x), own(x), rtol=1e-12, atol=1e-12)
    fresh = own_type(4, 6, 3, spectrum=FixedSpectrum(0.5), **settings)
    kernel = fresh.weight.unflatten(0, (fresh.groups, -1)).flatten(2)
    torch.testing.assert_close(
        torch.linalg.svdvals(kernel), torch.full(kernel.shape[:2], 0.5), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_no_norm_is_above_its_bound(settings):
    torch.manual_seed(0)
    conv = SVDConvTranspose2d(4, 2, 3, **{**settings, "bias": False})
    units = torch.eye(4 * 9).reshape(-1, 4, 3, 3)
    with torch.no_grad():
        exact = torch.linalg.matrix_norm(conv(units).flatten(1), 2)
    for bound in (
        conv.operator_norm_bound(),
        conv.operator_norm_bound(method="patches"),
        conv.operator_norm_bound((3, 3)),
        lipschitz_constant(conv),
        lipschitz_constant(bake(conv)),
    ):
        assert exact * (1 - 1e-12) <= bound <= 2 * exact * math.sqrt(9)


def test_output_size_is_that_of_torch():
    own = SVDConvTranspose2d(3, 4, 3, stride=2)
    plain = own.to_conv()
    x = torch.randn(1, 3, 5, 5)
    for size in ((11, 12), [1, 4, 12, 12]):
        torch.testing.assert_close(own(x, output_size=size), plain(x, output_size=size))
    with pytest.raises(ValueError, match="output size"):
        own(x, output_size=(20, 20))


def test_it_is_converted_and_trains_within_its_bounds():
    band = SigmoidSpectrum(center=0.5, margin=0.1)
    model, report = convert(
        nn.Sequential(nn.ConvTranspose1d(3, 3, 4, stride=2)), spectrum=band, out_of_bounds="clip"
    )
    assert report.converted[0].new_type == "SVDConvTranspose1d"
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 6)).square().sum().backward()
        optimizer.step()
    sigma = torch.linalg.svdvals(model[0].weight.flatten(1))
    assert ((sigma > 0.4 - 1e-9) & (sigma < 0.6 + 1e-9)).all()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: SVDConvTranspose2d(3, 4, 3)(torch.randn(1, 4, 5, 5)),
            ValueError,
            "in_channels = 3",
        ),
        (
            lambda: SVDConvTranspose1d(3, 4, 3, output_padding=-1),
            ValueError,
            "output_padding must be",
        ),
        (lambda: SVDConvTranspose2d(3, 4, 3, padding_mode="reflect"), ValueError, "zeros"),
        (lambda: SVDConvTranspose2d(3, 4, 3).operator_singular_values(5), ValueError, "transposed"),
        (
            lambda: SVDConvTranspose2d(3, 3, 1).inverse(torch.randn(3, 2, 2)),
            ValueError,
            "transposed",
        ),
        (lambda: SVDConvTranspose2d.from_conv(nn.Conv2d(2, 2, 2)), TypeError, "ConvTranspose2d"),
        (
            lambda: SVDConvTranspose2d(3, 4, 3, operator_bound=0),
            ValueError,
            "operator_bound must be",
        ),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()
