"""StackedSpectrum: each row by its own spectrum, in value, gradient and life cycle."""

import pickle

import pytest
import torch

from spectral_triton.spectra.spectrum import FixedSpectrum, SigmoidSpectrum, SoftplusSpectrum
from spectral_triton.spectra.stacked import StackedSpectrum

SPECTRA = (SigmoidSpectrum(center=0.5, margin=0.1), FixedSpectrum(2.0), SoftplusSpectrum())


def test_each_row_goes_through_its_own():
    raw = torch.randn(3, 4, requires_grad=True)
    sigma = StackedSpectrum(SPECTRA)(raw)
    for row, (spectrum, given) in enumerate(zip(SPECTRA, raw.detach(), strict=True)):
        assert torch.equal(sigma[row], spectrum(given))
    assert torch.autograd.gradcheck(StackedSpectrum(SPECTRA), raw)
    sigma.sum().backward()
    assert (raw.grad[1] == 0).all()
    assert (raw.grad[[0, 2]] > 0).all()


def test_half_precision_gives_single():
    assert StackedSpectrum(SPECTRA)(torch.zeros(3, 2).bfloat16()).dtype == torch.float32


def test_has_a_parameter_where_any_has_one():
    assert StackedSpectrum(SPECTRA).trainable
    assert not StackedSpectrum((FixedSpectrum(), FixedSpectrum(2.0))).trainable


def test_is_a_value():
    stacked = StackedSpectrum(SPECTRA)
    again = pickle.loads(pickle.dumps(stacked))
    assert again == stacked
    assert hash(again) == hash(stacked)
    assert stacked != StackedSpectrum(SPECTRA[::-1])
    assert (len(stacked), tuple(stacked)) == (3, SPECTRA)
    assert repr(StackedSpectrum((FixedSpectrum(), FixedSpectrum(2.0)))) == (
        "[FixedSpectrum(value=1.0), FixedSpectrum(value=2.0)]"
    )


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"spectrum 1 must be a Spectrum, got 0\.1"):
        StackedSpectrum((FixedSpectrum(), 0.1))
    with pytest.raises(ValueError, match="zip"):
        StackedSpectrum(SPECTRA)(torch.zeros(2, 3))
