import copy
import io
import warnings

import pytest
import torch
from torch import nn

from spectral_triton import SVDLinear, parametrizations
from spectral_triton.spectra.spectrum import (
    FixedSpectrum,
    SigmoidSpectrum,
    SignedSpectrum,
    Spectrum,
)
from spectral_triton.svd.weight import SVDWeight


class Exponential(Spectrum):
    """One of a user, whose repr holds an address."""

    bounds, initial = (0.0, float("inf")), 1.0

    def __call__(self, raw):
        return raw.exp()

    def inverse(self, singular_values):
        return singular_values.log()


def model(spectrum):
    with warnings.catch_warnings():
        # Of the weight, which the bounds change.
        warnings.simplefilter("ignore")
        parametrized = parametrizations.svd(
            nn.Linear(3, 3), spectrum=spectrum, out_of_bounds="clip"
        )
    return nn.Sequential(SVDLinear(3, 3, spectrum=spectrum), parametrized)


@pytest.mark.parametrize(
    "spectrum",
    [SigmoidSpectrum(center=0.5, margin=0.1), SignedSpectrum(), FixedSpectrum(0.7), Exponential()],
)
def test_the_same_spectrum_loads_in_silence(spectrum):
    saved = io.BytesIO()
    torch.save(model(spectrum).state_dict(), saved)
    saved.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(copy.deepcopy(spectrum)).load_state_dict(torch.load(saved))
        model(SigmoidSpectrum(center=0.5, margin=0.2)).load_state_dict(
            dict(model(SigmoidSpectrum()).state_dict())
        )


def test_another_spectrum_warns_and_names_both():
    saved = model(SigmoidSpectrum(center=1.0, margin=0.5)).state_dict()
    with pytest.warns(UserWarning, match="which makes another W") as caught:
        model(SigmoidSpectrum(center=1.0, margin=0.01)).load_state_dict(saved)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert messages[0].startswith("0.svd was saved with the spectrum SigmoidSpectrum(center=1.0, m")
    assert messages[1].startswith("1.parametrizations.weight.0 was saved")
    assert all("margin=0.5" in m and "margin=0.01" in m for m in messages)


def test_stacked_spectra_are_compared_too():
    several = [SigmoidSpectrum(), SigmoidSpectrum(center=0.5, margin=0.1)]
    weight = SVDWeight(3, 3, spectrum=several, num_blocks=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SVDWeight(3, 3, spectrum=several, num_blocks=2).load_state_dict(weight.state_dict())
    with pytest.warns(UserWarning, match="the weight was saved with"):
        SVDWeight(3, 3, spectrum=several[::-1], num_blocks=2).load_state_dict(weight.state_dict())
