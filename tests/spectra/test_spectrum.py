"""Spectrum maps: formula, bounds at the float level, inverse, slope, refusal of bad arguments."""

import copy
import io
import math
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_triton.spectra.spectrum import (
    FixedSpectrum,
    SigmoidSpectrum,
    SignedSpectrum,
    SoftplusSpectrum,
    Spectrum,
)
from spectral_triton.spectra.stacked import StackedSpectrum

TRAINABLE = [
    SigmoidSpectrum(),
    SigmoidSpectrum(center=0.0, margin=0.3),
    SigmoidSpectrum(center=-2.0, margin=0.7, scale=5.0),
    SignedSpectrum(),
    SignedSpectrum(limit=3.0),
    SoftplusSpectrum(),
    SoftplusSpectrum(minimum=0.25),
]
EVERY = [*TRAINABLE, FixedSpectrum(0.7)]


@pytest.mark.parametrize("center", [1.0, 0.0, -0.5])
@pytest.mark.parametrize("margin", [0.01, 0.4])
def test_sigmoid_is_the_papers_formula(center, margin):
    raw = torch.linspace(-8, 8, 41)
    expected = 2 * margin * (torch.sigmoid(1.5 * raw) - 0.5) + center
    actual = SigmoidSpectrum(center=center, margin=margin, scale=1.5)(raw)
    torch.testing.assert_close(actual, expected, rtol=0, atol=4e-16)


def test_formulas_of_the_others():
    raw = torch.linspace(-40, 40, 81)
    expected = torch.log(1 + torch.exp(raw)) + 0.5
    torch.testing.assert_close(SoftplusSpectrum(0.5)(raw), expected, rtol=1e-15, atol=0)
    expected = 2 * torch.tanh(raw / 2)
    torch.testing.assert_close(SignedSpectrum(2.0)(raw), expected, rtol=1e-15, atol=0)
    assert torch.equal(FixedSpectrum(0.7)(raw), torch.full_like(raw, 0.7))


@pytest.mark.parametrize("spectrum", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_never_leave_the_bounds(spectrum, dtype):
    raw = torch.cat((torch.linspace(-60, 60, 1001), torch.tensor([-1e4, -90.0, 90.0, 1e4])))
    raw = raw.to(dtype)
    sigma = spectrum(raw)
    assert sigma.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    lower, upper = spectrum.bounds
    if spectrum.trainable:
        assert sigma.isfinite().all()
        assert (sigma.double() >= lower).all()
        assert (sigma.double() <= upper).all()
    else:
        assert (sigma == spectrum.value).all()


@given(
    center=st.floats(-4, 4, allow_subnormal=False),
    margin=st.floats(1e-3, 4),
    raw=st.floats(-1e4, 1e4),
)
def test_any_band_holds_in_float32(center, margin, raw):
    spectrum = SigmoidSpectrum(center=center, margin=margin)
    sigma = spectrum(torch.tensor([raw, -1e4, 1e4], dtype=torch.float32)).double()
    assert (sigma >= spectrum.bounds[0]).all()
    assert (sigma <= spectrum.bounds[1]).all()


def test_softplus_stays_positive_where_the_exponential_underflows():
    for dtype in (torch.float32, torch.float64):
        assert (SoftplusSpectrum()(torch.tensor([-1e4, -800.0], dtype=dtype)) > 0).all()


@pytest.mark.parametrize("spectrum", TRAINABLE, ids=repr)
def test_inverse_undoes_the_map(spectrum):
    raw = torch.linspace(-6, 6, 49)
    # The rounding of sigma, divided by the slope there.
    slope = torch.func.vmap(torch.func.grad(spectrum.__call__))(raw)
    sigma = spectrum(raw)
    error = (spectrum.inverse(sigma) - raw).abs()
    scale = max(abs(b) for b in spectrum.bounds if math.isfinite(b)) + sigma.abs()
    assert (error <= 4e-16 * scale / slope + 4e-15).all()


@pytest.mark.parametrize("spectrum", TRAINABLE, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_up_to_the_last_number_before_a_bound(spectrum, dtype):
    lower, upper = spectrum.bounds
    ends = [torch.tensor(b, dtype=dtype) for b in (lower, upper) if math.isfinite(b)]
    inner = torch.stack(
        [torch.nextafter(end, torch.tensor(spectrum.initial).to(dtype)) for end in ends]
    )
    inner = inner[(inner.double() > lower) & (inner.double() < upper)]
    raw = spectrum.inverse(inner)
    assert raw.dtype == dtype
    assert raw.isfinite().all()
    eps = torch.finfo(dtype).eps * max(abs(b) for b in (lower, upper) if math.isfinite(b))
    torch.testing.assert_close(spectrum(raw), inner, rtol=0, atol=2 * eps + torch.finfo(dtype).tiny)


@pytest.mark.parametrize("spectrum", EVERY, ids=repr)
def test_initial_value_lies_within_and_is_reached(spectrum):
    lower, upper = spectrum.bounds
    initial = torch.tensor([spectrum.initial])
    assert lower <= spectrum.initial <= upper
    torch.testing.assert_close(spectrum(spectrum.inverse(initial)), initial, rtol=1e-15, atol=0)


def test_the_center_is_exactly_raw_zero():
    assert SigmoidSpectrum(center=0.7, margin=0.1).inverse(torch.tensor([0.7])).item() == 0


@pytest.mark.parametrize("spectrum", TRAINABLE, ids=repr)
def test_gradients(spectrum):
    raw = torch.linspace(-3, 3, 7, requires_grad=True)
    assert torch.autograd.gradcheck(spectrum, raw)
    assert torch.autograd.gradgradcheck(spectrum, raw)


def test_slope_is_as_documented():
    raw = torch.zeros(1, requires_grad=True)
    for spectrum, slope in [
        (SigmoidSpectrum(margin=0.01), 0.005),
        (SigmoidSpectrum(margin=0.01, scale=200), 1.0),
        (SignedSpectrum(3.0), 1.0),
    ]:
        (grad,) = torch.autograd.grad(spectrum(raw).sum(), raw)
        assert grad.item() == pytest.approx(slope, rel=1e-14)


@pytest.mark.parametrize(
    ("spectrum", "value"),
    [
        (SigmoidSpectrum(), 1.01),
        (SigmoidSpectrum(), 0.5),
        (SigmoidSpectrum(), math.nan),
        (SignedSpectrum(2.0), -2.0),
        (SoftplusSpectrum(0.5), 0.5),
        (SoftplusSpectrum(), math.inf),
        (FixedSpectrum(1.0), 1.1),
    ],
)
def test_inverse_refuses_what_is_not_within(spectrum, value):
    inside = spectrum.initial
    with pytest.raises(ValueError, match=str(value).replace(".", r"\.")):
        spectrum.inverse(torch.tensor([inside, value]))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SigmoidSpectrum(center=math.nan), "center"),
        (lambda: SigmoidSpectrum(margin=math.nan), "margin"),
        (lambda: SigmoidSpectrum(margin=0), "margin must be positive, got 0"),
        (lambda: SigmoidSpectrum(margin=-0.1), "margin must be positive, got -0.1"),
        (lambda: SigmoidSpectrum(margin=math.inf), "margin"),
        (lambda: SigmoidSpectrum(center=1.0, margin=1e-20), "margin"),
        (lambda: SigmoidSpectrum(scale=0.0), "scale"),
        (lambda: SignedSpectrum(limit=-1), "limit"),
        (lambda: SoftplusSpectrum(minimum=-0.1), "minimum must not be negative, got -0.1"),
        (lambda: SoftplusSpectrum(minimum=math.nan), "minimum"),
        (lambda: FixedSpectrum(0), "value"),
    ],
)
def test_bad_values_are_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_bad_types_are_named():
    with pytest.raises(TypeError, match=r"margin.*'0\.1'"):
        SigmoidSpectrum(margin="0.1")
    with pytest.raises(TypeError, match="raw"):
        SigmoidSpectrum()(torch.arange(3))
    with pytest.raises(TypeError, match="singular_values"):
        SigmoidSpectrum().inverse(torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize("spectrum", EVERY, ids=repr)
def test_a_spectrum_is_a_value(spectrum):
    assert pickle.loads(pickle.dumps(spectrum)) == spectrum
    assert copy.deepcopy(spectrum) == spectrum
    assert hash(copy.copy(spectrum)) == hash(spectrum)
    assert eval(repr(spectrum)) == spectrum
    with pytest.raises(AttributeError):
        spectrum.extra = 1


def test_maps_differ():
    assert SigmoidSpectrum(margin=0.1) != SigmoidSpectrum(margin=0.2)
    with pytest.raises(TypeError, match="abstract"):
        Spectrum()


@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler")
def test_inductor_keeps_values_and_slopes():
    """Where one program serves several spectra their numbers are symbols in it."""
    raw = torch.linspace(-3, 3, 5, dtype=torch.float64, requires_grad=True)

    def run(spectra):
        return [f(raw) for f in spectra]

    results = []
    for f in (run, torch.compile(run, dynamic=True)):
        values = f(EVERY)
        slopes = torch.autograd.grad(sum(v.square().sum() for v in values[:-1]), raw)
        results.append((*values, *slopes))
    for compiled, plain in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spectrum", EVERY, ids=repr)
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_without_a_graph_break(spectrum, dynamic):
    raw = torch.linspace(-3, 3, 5, dtype=torch.float32)
    compiled = torch.compile(spectrum.__call__, backend="eager", fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(compiled(raw), spectrum(raw), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_has_second_derivatives_as_far_as_it_has_values(dtype):
    raw = torch.tensor([-700.0, -100.0, -60.0, -41.0, -39.0, -5.0, 0.0, 9.0], dtype=dtype)
    if dtype is torch.float32:
        raw = raw.clamp_min(-80)
    raw.requires_grad_()
    first = torch.autograd.grad(SoftplusSpectrum()(raw).sum(), raw, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), raw)[0]
    exact = raw.detach().double()
    slope = torch.sigmoid(exact)
    torch.testing.assert_close(first.detach().double(), slope, rtol=1e-6, atol=0)
    expected = slope * torch.sigmoid(-exact)
    torch.testing.assert_close(second.double(), expected, rtol=1e-6, atol=0)
    far = torch.tensor([-1e4], dtype=dtype, requires_grad=True)
    first = torch.autograd.grad(SoftplusSpectrum()(far).sum(), far, create_graph=True)[0]
    assert torch.autograd.grad(first.sum(), far)[0] == 0


def test_a_band_without_a_number_is_refused():
    spectrum = SigmoidSpectrum(center=0.1, margin=1e-10)
    with pytest.raises(ValueError, match=r"no number of torch\.float32 lies within the bounds"):
        spectrum(torch.zeros(1, dtype=torch.float32))
    lower, upper = spectrum.bounds
    assert lower <= spectrum(torch.zeros(1)).item() <= upper


def test_a_band_around_singular_values_holds_them():
    sigma = torch.rand(3, 20) * 5
    spectrum = SigmoidSpectrum.around(sigma, 1.5)
    assert spectrum.bounds == pytest.approx((sigma.min().item() / 1.5, sigma.max().item() * 1.5))
    torch.testing.assert_close(spectrum(spectrum.inverse(sigma)), sigma)
    raw = torch.zeros(1, requires_grad=True)
    (slope,) = torch.autograd.grad(spectrum(raw).sum(), raw)
    torch.testing.assert_close(slope, torch.ones(1))
    lone = SigmoidSpectrum.around(torch.tensor([0.0, 3.0]))
    assert lone.bounds == pytest.approx((0.0, 3.6))


@pytest.mark.parametrize(
    ("sigma", "factor", "error", "match"),
    [
        (torch.zeros(3), 1.2, ValueError, "not all zero"),
        (torch.tensor([-1.0, 2.0]), 1.2, ValueError, "none negative"),
        (torch.tensor([1.0, float("nan")]), 1.2, ValueError, "finite"),
        (torch.ones(0), 1.2, ValueError, "got none"),
        (torch.ones(2), 1.0, ValueError, "factor must be more than 1"),
        (torch.ones(2), "2", TypeError, "factor must be a number"),
        (torch.ones(2).long(), 1.2, TypeError, "floating-point"),
    ],
)
def test_no_band_around_what_is_no_singular_value(sigma, factor, error, match):
    with pytest.raises(error, match=match):
        SigmoidSpectrum.around(sigma, factor)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, np.float16])
def test_numbers_of_numpy_are_numbers(number):
    made = SigmoidSpectrum(center=number(2), margin=number(1)), FixedSpectrum(number(2))
    assert made == (SigmoidSpectrum(center=2, margin=1), FixedSpectrum(2))
    assert "np" not in repr(made)
    assert SoftplusSpectrum(number(1)).bounds == SoftplusSpectrum(1).bounds
    assert SignedSpectrum(number(2)).bounds == (-2, 2)
    with pytest.raises(ValueError, match="margin must be finite"):
        SigmoidSpectrum(margin=np.float32("nan"))
    with pytest.raises(TypeError, match="margin must be a number"):
        SigmoidSpectrum(margin=np.bool_(True))


def test_checkpoints_with_spectra_load_by_default():
    spectra = [SigmoidSpectrum(margin=np.float32(0.5)), SoftplusSpectrum(), SignedSpectrum()]
    hyperparameters = {"spectrum": [*spectra, FixedSpectrum(), StackedSpectrum(tuple(spectra))]}
    saved = io.BytesIO()
    torch.save({"hyper_parameters": hyperparameters}, saved)
    saved.seek(0)
    read = torch.load(saved, weights_only=True)
    assert read["hyper_parameters"] == hyperparameters


def test_spectra_saved_under_their_former_module_load_by_default():
    saved = io.BytesIO()
    # By pickle's protocol of torch.save, with the name that the class had.
    torch.save({"spectrum": SigmoidSpectrum(margin=0.5)}, saved)
    now, before = b"spectral_triton.spectra.spectrum", b"spectral_triton.spectrum"
    with zipfile.ZipFile(saved) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    old = io.BytesIO()
    with zipfile.ZipFile(old, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(now, before))
    old.seek(0)
    assert torch.load(old, weights_only=True) == {"spectrum": SigmoidSpectrum(margin=0.5)}
