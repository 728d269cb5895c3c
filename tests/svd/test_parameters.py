"""Bounds that change while U and V stay."""

import copy

import pytest
import torch
from torch import nn

from spectral_triton.spectra.spectrum import (
    FixedSpectrum,
    SigmoidSpectrum,
    SignedSpectrum,
    SoftplusSpectrum,
)
from spectral_triton.svd.weight import SVDWeight


def trained(spectrum, **options):
    weight = SVDWeight(5, 4, spectrum=spectrum, **options)
    with torch.no_grad():
        weight.raw_singular_values.normal_()
    return weight


WIDER = [
    SigmoidSpectrum(center=1.0, margin=0.9),
    SigmoidSpectrum(center=0.7, margin=1.5),
    SoftplusSpectrum(),
    SignedSpectrum(3),
]


@pytest.mark.parametrize("num_reflectors", [0, 2, None])
@pytest.mark.parametrize("spectrum", WIDER, ids=repr)
def test_other_bounds_keep_a_matrix_within_them(spectrum, num_reflectors):
    weight = trained(SigmoidSpectrum(center=1.0, margin=0.5), num_reflectors=num_reflectors)
    before, parameters = weight.to_dense().detach(), list(weight.parameters())
    assert weight.set_spectrum_(spectrum) is weight
    assert weight.spectrum == spectrum
    torch.testing.assert_close(weight.to_dense(), before, rtol=0, atol=1e-12)
    assert all(a is b for a, b in zip(weight.parameters(), parameters, strict=True))


def test_narrower_bounds_clip_or_refuse():
    weight = trained(SigmoidSpectrum(center=1.0, margin=0.5), num_reflectors=2)
    before, sigma = copy.deepcopy(weight.state_dict()), weight.singular_values.detach()
    narrow = SigmoidSpectrum(center=1.0, margin=0.1)
    with pytest.raises(ValueError, match="outside the bounds"):
        weight.set_spectrum_(narrow)
    assert weight.spectrum == SigmoidSpectrum(center=1.0, margin=0.5)
    assert all(torch.equal(value, before[key]) for key, value in weight.state_dict().items())
    weight.set_spectrum_(narrow, out_of_bounds="clip")
    # Clipped values stand a thousandth of the width inside.
    torch.testing.assert_close(weight.singular_values, sigma.clamp(0.9, 1.1), rtol=0, atol=2.1e-4)
    weight.singular_values.sum().backward()
    assert (weight.raw_singular_values.grad > 0).all()
    assert torch.equal(weight.left, before["left"])


def test_negative_singular_values_become_signs():
    weight = trained(SignedSpectrum(2.0))
    with torch.no_grad():
        weight.raw_singular_values.copy_(torch.tensor([-1.0, 1.0, -0.5, 0.5]))
    before = weight.to_dense().detach()
    weight.set_spectrum_(SoftplusSpectrum())
    assert (weight.singular_values > 0).all()
    torch.testing.assert_close(weight.to_dense(), before, rtol=0, atol=1e-12)


def test_parameters_come_and_go():
    weight = trained(SigmoidSpectrum(center=1.0, margin=0.5))
    weight.set_spectrum_(FixedSpectrum(1.0), out_of_bounds="clip")
    assert weight.raw_singular_values is None
    assert "raw_singular_values" not in weight.state_dict()
    close = weight.to_dense()
    weight.requires_grad_(False).set_spectrum_(SigmoidSpectrum(center=1.2, margin=0.5))
    assert not weight.raw_singular_values.requires_grad
    assert isinstance(weight.raw_singular_values, nn.Parameter)
    torch.testing.assert_close(weight.to_dense(), close, rtol=0, atol=1e-12)


def test_stacked_matrices_get_one_spectrum_or_several():
    weight = trained([FixedSpectrum(0.5), SigmoidSpectrum(center=1.0, margin=0.5)], num_blocks=2)
    before = weight.to_dense().detach()
    weight.set_spectrum_(
        [SigmoidSpectrum(center=0.5, margin=0.1), FixedSpectrum(1.0)], out_of_bounds="clip"
    )
    torch.testing.assert_close(weight.to_dense()[0], before[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.linalg.svdvals(weight.to_dense()[1]), torch.ones(4), rtol=0, atol=1e-12
    )
    weight.set_spectrum_(SoftplusSpectrum())
    torch.testing.assert_close(torch.linalg.svdvals(weight.to_dense()[1]), torch.ones(4))
    with pytest.raises(ValueError, match=r"^matrix 1: the matrix has singular values"):
        weight.set_spectrum_([SoftplusSpectrum(), FixedSpectrum(3.0)])
    with pytest.raises(ValueError, match="2, one per matrix"):
        weight.set_spectrum_([FixedSpectrum(1.0)])
    with pytest.raises(TypeError, match="spectrum must be a Spectrum"):
        trained(SigmoidSpectrum()).set_spectrum_(1.0)
    with pytest.raises(ValueError, match="out_of_bounds"):
        weight.set_spectrum_(SoftplusSpectrum(), out_of_bounds="wrap")
