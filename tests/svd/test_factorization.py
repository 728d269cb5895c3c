"""Dense matrices to reflectors: exact, triangular, honest about how many it takes."""

import re

import pytest
import torch

from spectral_triton import reference
from spectral_triton.init import usual_length
from spectral_triton.spectra.spectrum import FixedSpectrum
from spectral_triton.svd.factorization import TooFewReflectorsError, factor_dense
from spectral_triton.svd.weight import SVDWeight


def factors_of(*args, **options):
    """Left, σ, right and signs: all there is without a base."""
    return factor_dense(*args, **options)[:4]


def rebuilt(left, sigma, right, signs):
    factors = (f.double() for f in (left, sigma, right, signs))
    return reference.svd_to_dense(*factors)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 7), (7, 3), (1, 5), (64, 65), (2, 3, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rebuilds_the_matrix(shape, dtype):
    w = torch.randn(shape).to(dtype)
    left, sigma, right, signs = factors_of(w)
    eps = torch.finfo(dtype).eps
    error = (rebuilt(left, sigma, right, signs) - w.double()).abs().max()
    assert error <= 10 * eps * torch.linalg.matrix_norm(w, 2).max() * max(shape[-2:]) ** 0.5
    assert torch.equal(left, left.triu())
    assert torch.equal(right, right.triu())
    assert (signs.abs() == 1).all()
    torch.testing.assert_close(sigma, torch.linalg.svdvals(w))


def test_reflectors_are_as_long_as_drawn_ones_within_half_a_power_of_two():
    left, _, right, _ = factors_of(torch.randn(2, 40, 50))
    for side in (left[:, :-1], right):
        ratio = side.norm(dim=-1) / usual_length(side)
        assert ratio.min() > 0.7
        assert ratio.max() < 1.42
        # LAPACK's begin with 1, so what they were multiplied by stands there.
        mantissa, _ = torch.frexp(side.diagonal(dim1=-2, dim2=-1))
        assert ((mantissa == 0.5) | (mantissa == 0)).all()


@pytest.mark.parametrize("w", [torch.zeros(3, 4), torch.eye(4), -torch.eye(3), torch.eye(2, 5)])
def test_special_matrices(w):
    w = w.double()
    torch.testing.assert_close(rebuilt(*factors_of(w)), w, rtol=0, atol=1e-15)
    torch.testing.assert_close(rebuilt(*factors_of(w, 0)), w, rtol=0, atol=1e-15)


@pytest.mark.parametrize("rank", [0, 1, 2, 4])
def test_as_many_reflectors_as_the_rank_suffice(rank):
    w = torch.randn(2, 6, rank) @ torch.randn(2, rank, 5)
    torch.testing.assert_close(rebuilt(*factors_of(w, rank)), w, rtol=0, atol=1e-13)
    if rank:
        with pytest.raises(
            TooFewReflectorsError, match=rf"\({rank - 1}, {rank}\).*needs \({rank}, "
        ):
            factors_of(w, (rank - 1, rank))


@pytest.mark.parametrize("num_left", [1, 3])
def test_the_number_asked_for_is_enough_and_no_less_is(num_left):
    reflectors = torch.randn(num_left, 8).triu()
    w = reference.svd_to_dense(reflectors, torch.linspace(8, 1, 8), torch.zeros(0, 8))
    with pytest.raises(TooFewReflectorsError) as caught:
        factors_of(w, 0)
    needed = int(re.search(r"needs \((\d), 0\)", str(caught.value)).group(1))
    assert num_left <= needed <= 8
    torch.testing.assert_close(rebuilt(*factors_of(w, (needed, 0))), w, rtol=0, atol=1e-13)
    with pytest.raises(TooFewReflectorsError):
        factors_of(w, (needed - 1, 0))


def test_no_gradient_flows():
    w = torch.randn(3, 3, requires_grad=True)
    assert not any(f.requires_grad for f in factors_of(w))


def test_bounds_forgive_rounding_only():
    q = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float32)).Q
    assert (factors_of(q, bounds=(1.0, 1.0))[1] == 1).all()
    with pytest.raises(ValueError, match="outside the bounds"):
        factors_of(1.0001 * q, bounds=(1.0, 1.0))
    clipped = factors_of(3 * q, bounds=(0.5, 2.0), out_of_bounds="clip")
    torch.testing.assert_close(rebuilt(*clipped), 2 * q.double(), rtol=0, atol=3e-6)


def test_the_sign_that_is_nearer_to_the_bounds_is_taken():
    w = torch.diag(torch.tensor([2.0, 0.9, 0.1]))
    left, sigma, right, signs = factors_of(w, bounds=(-2.5, 1.0))
    assert sigma.tolist() == pytest.approx([-2.0, 0.9, 0.1])
    torch.testing.assert_close(rebuilt(left, sigma, right, signs), w.double(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"from 0\.1 to 2, outside the bounds \(-1\.5, 1\.0\)"):
        factors_of(w, bounds=(-1.5, 1.0))
    clipped = factors_of(w, bounds=(-1.5, 1.0), out_of_bounds="clip")
    expected = torch.diag(torch.tensor([1.5, 0.9, 0.1])).double()
    torch.testing.assert_close(rebuilt(*clipped), expected, rtol=0, atol=1e-6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"w must be a matrix.*\(0, 3\)"):
        factors_of(torch.ones(0, 3))
    with pytest.raises(ValueError, match="w must be finite"):
        factors_of(torch.full((2, 2), float("inf")))
    with pytest.raises(TypeError, match=r"w must be .*int64"):
        factors_of(torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 30])
@pytest.mark.parametrize("value", [1.0, 0.1, 1.3])
def test_a_matrix_formed_from_factors_is_within_their_bounds(n, value):
    options = {"spectrum": FixedSpectrum(value), "dtype": torch.float32}
    for _ in range(20):
        w = SVDWeight(n, n, **options).to_dense()
        torch.testing.assert_close(SVDWeight(n, n, **options).set_dense_(w).to_dense(), w)


def test_singular_values_that_cannot_be_held_are_refused():
    with pytest.raises(ValueError, match=r"singular values that torch\.float32 can hold"):
        factors_of(torch.full((3, 3), 3e38, dtype=torch.float32))
