"""SVDWeight: bounds whatever happens to the parameters, dense round trips, module life cycle."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from spectral_triton import reference
from spectral_triton.spectra.spectrum import (
    FixedSpectrum,
    SigmoidSpectrum,
    SignedSpectrum,
    SoftplusSpectrum,
    Spectrum,
)
from spectral_triton.svd.weight import SVDWeight

SPECTRA = [SigmoidSpectrum(), FixedSpectrum(2.0), SoftplusSpectrum(), SignedSpectrum(1.5)]
# out_features, in_features, num_reflectors
SIZES = [(4, 4, None), (5, 3, (2, 3)), (3, 5, 0), (1, 1, 1), (65, 64, 7)]


def dense(weight):
    """W of the parameters by the oracle, in float64."""
    left, right = weight.left.detach().double().triu(), weight.right.detach().double().triu()
    sigma = weight.singular_values.detach().double()
    return reference.svd_to_dense(left, sigma, right, weight.signs.sign().double())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spectrum", SPECTRA, ids=repr)
def test_weight_is_what_the_parameters_say(size, spectrum):
    m, n, num_reflectors = size
    weight = SVDWeight(m, n, num_reflectors=num_reflectors, spectrum=spectrum)
    w = weight.to_dense()
    torch.testing.assert_close(w, dense(weight), rtol=0, atol=1e-13)
    torch.testing.assert_close(
        torch.linalg.svdvals(w), torch.full((min(m, n),), spectrum.initial), rtol=1e-13, atol=0
    )
    x = torch.randn(3, n)
    torch.testing.assert_close(weight(x), x @ w.mT, rtol=0, atol=1e-12)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.3)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0, weight_decay=0.1)


# Adam in float16 divides by an underflown square, in any module: it is left out.
@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        (adamw, torch.float32),
        (adamw, torch.bfloat16),
        (sgd, torch.float32),
        (sgd, torch.bfloat16),
        (sgd, torch.float16),
    ],
)
def test_bounds_hold_through_training(optimizer, dtype):
    weight = SVDWeight(6, 4, spectrum=SigmoidSpectrum(center=1.0, margin=0.01, scale=200.0)).to(
        dtype
    )
    optimizer = optimizer(weight.parameters())
    target = torch.randn(6, 4, dtype=torch.float32)
    for _ in range(200):
        optimizer.zero_grad()
        (weight.to_dense() - target).square().sum().backward()
        optimizer.step()
        w = dense(weight)
        assert w.isfinite().all()
        sigma = weight.singular_values
        assert sigma.dtype == torch.float32
        assert (sigma.double() - 1).abs().max() <= 0.01
    torch.testing.assert_close(
        torch.linalg.svdvals(w), sigma.double().sort(descending=True).values, rtol=1e-13, atol=0
    )
    torch.testing.assert_close(weight.to_dense().double(), w, rtol=0, atol=2e-6)


def test_strong_weight_decay_ends_at_the_identity_not_at_nan():
    weight = SVDWeight(4, 4, dtype=torch.float32)
    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0, weight_decay=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        (weight.to_dense() * 0).sum().backward()
        optimizer.step()
    assert (weight.left == 0).all()
    assert torch.equal(weight.to_dense(), torch.eye(4, dtype=torch.float32))


def test_training_moves_every_parameter():
    weight = SVDWeight(6, 5, num_reflectors=(3, 4))
    before = {name: p.detach().clone() for name, p in weight.named_parameters()}
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.1)
    target = torch.randn(6, 5)
    for _ in range(5):
        optimizer.zero_grad()
        (weight.to_dense() - target).square().sum().backward()
        optimizer.step()
    for name, p in weight.named_parameters():
        used = torch.ones_like(p).triu().bool() if p.dim() == 2 else torch.ones_like(p).bool()
        assert (p != before[name])[used].all()
        assert torch.equal(p[~used], before[name][~used])


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dense_round_trip(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    sigma = 1 + 0.0099 * (2 * torch.rand(min(shape), generator=generator) - 1)
    w = ((u * sigma) @ vh).to(dtype)
    weight = SVDWeight(*shape, dtype=dtype)
    assert weight.set_dense_(w) is weight
    torch.testing.assert_close(weight.to_dense(), w, rtol=0, atol=64 * torch.finfo(dtype).eps)
    assert weight.left.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_weight_on_its_bounds_comes_back(dtype):
    weight = SVDWeight(5, 5, dtype=dtype)
    weight.raw_singular_values.data = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], dtype=dtype)
    w = weight.to_dense().detach()
    again = SVDWeight(5, 5, dtype=dtype).set_dense_(w)
    torch.testing.assert_close(again.to_dense(), w, rtol=0, atol=64 * torch.finfo(dtype).eps)
    assert again.raw_singular_values.isfinite().all()


def test_fixed_spectrum_takes_an_orthogonal_matrix_of_either_determinant():
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float32)).Q
    for w in (q, q * torch.tensor([-1, 1, 1, 1, 1, 1], dtype=torch.float32)):
        weight = SVDWeight(6, 6, spectrum=FixedSpectrum(), dtype=torch.float32).set_dense_(w)
        torch.testing.assert_close(weight.to_dense(), w, rtol=0, atol=1e-6)
        assert (weight.singular_values == 1).all()
    assert "raw_singular_values" not in weight.state_dict()
    assert len(list(weight.parameters())) == 2


def test_out_of_bounds_raises_and_changes_nothing():
    weight = SVDWeight(3, 3)
    before = copy.deepcopy(weight.state_dict())
    with pytest.raises(ValueError, match=r"from 0\.5 to 2, outside the bounds \(0\.99, 1\.01\)"):
        weight.set_dense_(torch.diag(torch.tensor([0.5, 1.0, 2.0])))
    assert all(torch.equal(before[name], value) for name, value in weight.state_dict().items())


def test_clipping_keeps_the_singular_vectors_and_a_slope():
    w = torch.randn(4, 6)
    weight = SVDWeight(4, 6).set_dense_(w, out_of_bounds="clip")
    u, sigma, vh = torch.linalg.svd(w, full_matrices=False)
    nearest = (u * sigma.clamp(0.99, 1.01)) @ vh
    # Inside by a thousandth of the width of 0.02.
    assert torch.linalg.matrix_norm(weight.to_dense() - nearest, 2) <= 2.0001e-5
    weight.singular_values.sum().backward()
    assert (weight.raw_singular_values.grad > 1e-6).all()


def test_clipping_into_half_infinite_bounds():
    weight = SVDWeight(3, 3, spectrum=SoftplusSpectrum()).set_dense_(torch.zeros(3, 3), "clip")
    torch.testing.assert_close(weight.singular_values, torch.full((3,), 1e-3))


def test_a_matrix_that_needs_more_reflectors_gets_a_base():
    weight = SVDWeight(6, 6, num_reflectors=2, spectrum=SoftplusSpectrum())
    assert weight.left_base is None
    w = torch.randn(6, 6)
    weight.set_dense_(w)
    torch.testing.assert_close(weight.to_dense(), w)
    assert weight.left_base.shape == (6, 6)
    assert not weight.left_base.requires_grad


@pytest.mark.parametrize("spectrum", SPECTRA, ids=repr)
def test_copies_pickles_and_state_dicts(spectrum):
    weight = SVDWeight(4, 3, num_reflectors=2, spectrum=spectrum)
    weight.signs[0] = -1
    buffer = io.BytesIO()
    torch.save(weight.state_dict(), buffer)
    buffer.seek(0)
    loaded = SVDWeight(4, 3, num_reflectors=2, spectrum=spectrum)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (loaded, copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert other is not weight
        assert torch.equal(other.to_dense(), weight.to_dense())
    assert list(weight.state_dict()) == [
        "left",
        *(["raw_singular_values"] if spectrum.trainable else []),
        "right",
        "signs",
    ]


@pytest.mark.parametrize("spectrum", SPECTRA, ids=repr)
def test_meta_device(spectrum):
    weight = SVDWeight(4, 3, spectrum=spectrum, device="meta")
    assert weight.left.is_meta
    assert weight.to_dense().shape == (4, 3)
    weight = weight.to_empty(device="cpu")
    weight.reset_parameters()
    expected = torch.full((3,), spectrum.initial)
    torch.testing.assert_close(torch.linalg.svdvals(weight.to_dense()), expected)
    skipped = nn.utils.skip_init(SVDWeight, 4, 3, spectrum=spectrum)
    skipped.load_state_dict(weight.state_dict())
    assert torch.equal(skipped.to_dense(), weight.to_dense())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_module_keeps_the_bounds(dtype):
    weight = SVDWeight(20, 20, dtype=dtype)
    assert {t.dtype for t in weight.state_dict().values()} == {dtype}
    w = weight.to_dense()
    assert w.dtype == torch.float32
    torch.testing.assert_close(w.double(), dense(weight), rtol=0, atol=2e-6)
    sigma = torch.linalg.svdvals(w.double())
    # W is rounded to float32: up to 1.2e-6 over 40 seeds.
    assert (sigma - 1).abs().max() < 2e-6
    x = torch.randn(5, 20).to(dtype)
    y = weight(x)
    assert y.dtype == dtype
    error = (y.double() - x.double() @ dense(weight).mT).abs().max()
    assert error <= 0.5 * torch.finfo(dtype).eps * 4 + 1e-5


def test_double_moves_everything():
    weight = SVDWeight(3, 3, dtype=torch.float32).double()
    assert weight.to_dense().dtype == weight.singular_values.dtype == torch.float64


def test_spectrum_of_ones_own():
    class Exponential(Spectrum):
        bounds = (0.0, float("inf"))
        initial = 1.0

        def __call__(self, raw):
            return raw.exp()

        def inverse(self, singular_values):
            return singular_values.log()

    weight = SVDWeight(3, 4, spectrum=Exponential())
    assert (weight.raw_singular_values == 0).all()
    w = torch.randn(3, 4)
    torch.testing.assert_close(weight.set_dense_(w).to_dense(), w, rtol=0, atol=1e-14)


@pytest.mark.parametrize("out_of_bounds", ["raise", "clip"])
def test_spectrum_without_bounds(out_of_bounds):
    class Free(Spectrum):
        bounds = (-float("inf"), float("inf"))
        initial = 1.0

        def __call__(self, raw):
            return raw * 1

        def inverse(self, singular_values):
            return singular_values * 1

    w = torch.randn(3, 4)
    weight = SVDWeight(3, 4, spectrum=Free()).set_dense_(w, out_of_bounds)
    torch.testing.assert_close(weight.to_dense(), w, rtol=0, atol=1e-14)


def test_negative_bounds_take_a_matrix_by_the_other_sign():
    weight = SVDWeight(3, 3, spectrum=SigmoidSpectrum(center=-1.0, margin=0.1)).set_dense_(
        torch.eye(3)
    )
    torch.testing.assert_close(weight.singular_values, -torch.ones(3))
    torch.testing.assert_close(weight.to_dense(), torch.eye(3), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SVDWeight(0, 3), ValueError, "out_features must be at least 1, got 0"),
        (lambda: SVDWeight(3, -1), ValueError, "in_features must be at least 1, got -1"),
        (lambda: SVDWeight(3.0, 3), TypeError, r"out_features must be an int, got 3\.0"),
        (lambda: SVDWeight(3, 5, num_reflectors=4), ValueError, "num_reflectors .* = 3 .* got 4"),
        (lambda: SVDWeight(3, 5, num_reflectors=-1), ValueError, "num_reflectors .* got -1"),
        (lambda: SVDWeight(3, 3, spectrum=0.1), TypeError, r"spectrum must be .* got 0\.1"),
        (lambda: SVDWeight(3, 3, dtype=torch.complex64), TypeError, r"dtype must be .*complex64"),
        (lambda: SVDWeight(3, 3, spectrum=[FixedSpectrum()]), TypeError, "spectrum must be a Spec"),
        (
            lambda: SVDWeight(3, 3, spectrum=[FixedSpectrum()] * 3, num_blocks=2),
            ValueError,
            "spectrum must be one Spectrum or 2, one per matrix, got 3",
        ),
        (lambda: SVDWeight(3, 3, num_blocks=0), ValueError, "num_blocks must be at least 1, got 0"),
        (
            lambda: SVDWeight(3, 3, num_blocks=2.0),
            TypeError,
            r"num_blocks must be an int, got 2\.0",
        ),
        (
            lambda: SVDWeight(3, 3, num_blocks=2).set_dense_(torch.eye(3)),
            ValueError,
            r"w must have shape \(2, 3, 3\), got \(3, 3\)",
        ),
        (lambda: SVDWeight(3, 3, init="orthogonal"), ValueError, "init must .* got 'orthogonal'"),
        (lambda: SVDWeight(3, 3).set_dense_(torch.ones(3, 2)), ValueError, r"w .*\(3, 2\)"),
        (lambda: SVDWeight(3, 3).set_dense_(torch.ones(3, 3).long()), TypeError, r"w .*int64"),
        (lambda: SVDWeight(3, 3).set_dense_(torch.eye(3), "x"), ValueError, "out_of_bounds.*'x'"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spectrum", SPECTRA, ids=repr)
def test_blocks_have_factors_of_their_own(size, spectrum):
    m, n, num_reflectors = size
    options = {"num_reflectors": num_reflectors, "spectrum": spectrum}
    stacked = SVDWeight(m, n, num_blocks=3, **options)
    with torch.no_grad():
        for parameter in stacked.parameters():
            parameter.copy_(torch.randn_like(parameter))
        stacked.signs[1] = -1
    state = stacked.state_dict()
    alone = []
    for block in range(3):
        weight = SVDWeight(m, n, **options)
        weight.load_state_dict({name: tensor[block] for name, tensor in state.items()})
        alone.append(weight)
    w = stacked.to_dense()
    assert w.shape == stacked.shape == (3, m, n)
    expected = torch.stack([weight.to_dense() for weight in alone])
    torch.testing.assert_close(w, expected, rtol=0, atol=1e-13)
    sigma = torch.stack([weight.singular_values for weight in alone])
    assert torch.equal(stacked.singular_values, sigma)
    x = torch.randn(4, n)
    torch.testing.assert_close(stacked(x), x @ w.mT, rtol=0, atol=1e-12)
    of_stacked = torch.autograd.grad(w.pow(3).sum(), list(stacked.parameters()))
    for (name, _), actual in zip(stacked.named_parameters(), of_stacked, strict=True):
        for block, weight in enumerate(alone):
            (expected,) = torch.autograd.grad(
                weight.to_dense().pow(3).sum(), weight.get_parameter(name)
            )
            torch.testing.assert_close(actual[block], expected, rtol=1e-11, atol=1e-12)


def test_blocks_take_dense_matrices():
    w = torch.randn(2, 4, 6)
    wide = SVDWeight(4, 6, spectrum=SoftplusSpectrum(), num_blocks=2)
    torch.testing.assert_close(wide.set_dense_(w).to_dense(), w, rtol=0, atol=1e-13)
    clipped = SVDWeight(4, 6, num_blocks=2).set_dense_(w, "clip")
    u, sigma, vh = torch.linalg.svd(w, full_matrices=False)
    nearest = (u * sigma.clamp(0.99, 1.01).unsqueeze(-2)) @ vh
    assert (torch.linalg.matrix_norm(clipped.to_dense() - nearest, 2) <= 2.0001e-5).all()
    before = copy.deepcopy(clipped.state_dict())
    one_outside = torch.stack((torch.eye(4, 6), 2 * torch.eye(4, 6)))
    with pytest.raises(ValueError, match=r"from 1 to 2, outside the bounds"):
        clipped.set_dense_(one_outside)
    assert all(torch.equal(before[name], value) for name, value in clipped.state_dict().items())


def test_every_block_may_have_its_spectrum():
    spectra = [SigmoidSpectrum(center=0.5, margin=0.1), FixedSpectrum(2.0), SoftplusSpectrum(0.5)]
    weight = SVDWeight(4, 3, spectrum=spectra, num_blocks=3)
    starts = torch.tensor([0.5, 2.0, 1.5])
    norms = torch.linalg.svdvals(weight.to_dense())
    torch.testing.assert_close(norms, starts.unsqueeze(-1).expand(3, 3))
    with torch.no_grad():
        weight.raw_singular_values.copy_(10 * torch.randn(3, 3))
    sigma = torch.linalg.svdvals(weight.to_dense())
    assert ((sigma[0] - 0.5).abs() <= 0.1 + 1e-14).all()
    torch.testing.assert_close(sigma[1], torch.full((3,), 2.0))
    assert (sigma[2] >= 0.5 - 1e-14).all()
    w = weight.to_dense().detach()
    again = SVDWeight(4, 3, spectrum=spectra, num_blocks=3).set_dense_(w)
    torch.testing.assert_close(again.to_dense(), w, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"matrix 1: .* outside the bounds \(2\.0, 2\.0\)"):
        weight.set_dense_(w[[0, 2, 2]])
    clipped = weight.set_dense_(torch.randn(3, 4, 3), "clip").to_dense()
    torch.testing.assert_close(torch.linalg.svdvals(clipped[1]), torch.full((3,), 2.0))
    assert "spectrum=[SigmoidSpectrum(center=0.5, margin=0.1, scale=1.0), Fixed" in repr(weight)
    fixed = SVDWeight(3, 3, spectrum=[FixedSpectrum(1.0), FixedSpectrum(3.0)], num_blocks=2)
    assert fixed.raw_singular_values is None
    norms = torch.linalg.matrix_norm(fixed.set_dense_(torch.randn(2, 3, 3), "clip").to_dense(), 2)
    torch.testing.assert_close(norms, torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize("spectrum", SPECTRA, ids=repr)
def test_blocks_live_as_one_matrix_does(spectrum):
    weight = SVDWeight(4, 3, spectrum=spectrum, num_blocks=2, device="meta")
    assert weight.to_dense().shape == (2, 4, 3)
    weight = weight.to_empty(device="cpu")
    weight.reset_parameters(torch.Generator().manual_seed(5))
    expected = torch.full((2, 3), spectrum.initial)
    torch.testing.assert_close(torch.linalg.svdvals(weight.to_dense()), expected)
    same = SVDWeight(4, 3, spectrum=spectrum, num_blocks=2)
    same.reset_parameters(torch.Generator().manual_seed(5))
    for other in (same, copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert torch.equal(other.to_dense(), weight.to_dense())
    half = weight.bfloat16()
    w = half.to_dense()
    assert w.dtype == torch.float32
    error = (torch.linalg.svdvals(w.double()) - half.singular_values.double()).abs()
    assert error.max() <= 2e-6


def test_says_what_it_is():
    text = repr(SVDWeight(3, 5, num_reflectors=(1, 2)))
    assert text == (
        "SVDWeight(out_features=3, in_features=5, num_reflectors=(1, 2), "
        "spectrum=SigmoidSpectrum(center=1.0, margin=0.01, scale=1.0))"
    )
    text = repr(SVDWeight(3, 5, spectrum=FixedSpectrum(), num_blocks=2))
    assert text.endswith("spectrum=FixedSpectrum(value=1.0), num_blocks=2)")


def test_a_band_narrower_than_rounding_takes_its_center():
    weight = SVDWeight(3, 3, spectrum=SigmoidSpectrum(center=1.0, margin=5e-8), dtype=torch.float32)
    weight.set_dense_(torch.eye(3, dtype=torch.float32))
    torch.testing.assert_close(weight.to_dense(), torch.eye(3, dtype=torch.float32))
