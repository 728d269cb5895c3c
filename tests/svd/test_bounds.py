"""Bounds that have no room for given singular values: errors, warnings and what they propose."""

import copy
import math
import pickle
import warnings

import pytest
import torch

from spectral_triton.spectra.spectrum import SigmoidSpectrum, SignedSpectrum, SoftplusSpectrum
from spectral_triton.svd.bounds import (
    OutOfBoundsError,
    WeightChangedWarning,
    fitting_spectrum,
    into_bounds,
)
from spectral_triton.svd.weight import SVDWeight

SPECTRA = {
    "SigmoidSpectrum": SigmoidSpectrum,
    "SignedSpectrum": SignedSpectrum,
    "SoftplusSpectrum": SoftplusSpectrum,
}


def moved(values, bounds, out_of_bounds, **options):
    sigma = torch.tensor(values)
    signs, slack = torch.ones_like(sigma), torch.tensor(1e-9)
    return into_bounds(sigma, signs, bounds, out_of_bounds, slack, **options)


@pytest.mark.parametrize("ratio", [0.0, 1e-12, 1e-5, 3e-3, 0.04, 0.051, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("most", [1e-20, 3.3e-4, 1.016, 9.997, 123456.7, 1e35])
def test_what_is_proposed_holds_the_weight(ratio, most):
    spectrum = eval(fitting_spectrum(ratio * most, most), SPECTRA)
    sigma = torch.linspace(ratio * most, most, 4, dtype=torch.float64)
    w = torch.diag(sigma)
    weight = SVDWeight(4, 4, spectrum=spectrum, dtype=torch.float64).set_dense_(w)
    torch.testing.assert_close(weight.to_dense(), w, rtol=1e-9, atol=1e-9 * most)


def test_what_is_proposed_for_zero_holds_it():
    spectrum = eval(fitting_spectrum(0.0, 0.0), SPECTRA)
    weight = SVDWeight(3, 2, spectrum=spectrum).set_dense_(torch.zeros(3, 2))
    assert torch.equal(weight.to_dense(), torch.zeros(3, 2))


def test_an_error_says_which_values_and_what_clipping_would_change():
    match = (
        r"^weight has singular values from 0\.6 to 1\.8, outside the bounds \(1\.0, 2\.0\); "
        r"SigmoidSpectrum\(center=1\.33, margin=0\.83\) would hold them, "
        r"out_of_bounds='clip' moves them inside, which changes it by 21\.1%$"
    )
    with pytest.raises(OutOfBoundsError, match=match) as caught:
        moved([1.8, 0.6], (1.0, 2.0), "raise", name="weight")
    error = caught.value
    assert str(error) == error.problem + error.advice
    named = error.of("encoder")
    assert str(named) == f"encoder: {error}"
    for again in (pickle.loads(pickle.dumps(named)), copy.copy(named)):
        assert str(again) == str(named)
        assert again.problem == named.problem


def test_clipping_warns_by_how_much_the_weight_changed():
    with pytest.warns(WeightChangedWarning, match=r"^w has .* changed it by 21\.1%$") as told:
        sigma, signs = moved([1.8, 0.6], (1.0, 2.0), "clip", name="w")
    assert sigma.tolist() == [1.8, 1.0]
    assert signs.tolist() == [1.0, 1.0]
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("values", "bounds"), [([1.8, 1.2], (1.0, 2.0)), ([1.0, 2.0005], (1.0, 2.0)), ([1.5], (-2, -1))]
)
def test_what_rounding_may_change_is_no_warning(values, bounds):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved(values, bounds, "clip")


def test_zero_that_has_to_grow_changes_without_measure():
    with pytest.warns(WeightChangedWarning, match="by inf%"):
        assert moved([0.0, 0.0], (1.0, math.inf), "clip")[0].tolist() == [1.0, 1.0]
