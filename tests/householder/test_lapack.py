"""LAPACK's ormqr: the reference's results for any triangular reflectors, asked where it may be."""

import pytest
import torch

from spectral_triton import HouseholderSVD, SVDLinear, apply_reflectors, reference
from spectral_triton.householder import lapack
from spectral_triton.runtime.backend import use_backend

DTYPES = [torch.float32, torch.float64]

# Errors in units of eps: 2.9 was seen in float32, 18 in float64, where the reference, one reflector
# after another in the same precision, errs too.
ROUNDINGS = {torch.float32: 6, torch.float64: 20}


@pytest.fixture
def asked(monkeypatch):
    """How often LAPACK was asked."""
    calls = []
    original = lapack.apply_reflectors
    monkeypatch.setattr(
        lapack, "apply_reflectors", lambda *args: calls.append(args) or original(*args)
    )
    return calls


def expected(x, v, transpose):
    return reference.apply_reflectors(x.double(), v.triu().double(), transpose=transpose)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
@pytest.mark.parametrize(("k", "n", "num"), [(1, 1, 1), (3, 7, 2), (64, 64, 64), (200, 210, 5)])
def test_equals_the_reference(k, n, num, batch, transpose, dtype):
    x, v = torch.randn(*batch, num, n, dtype=dtype), torch.randn(*batch, k, n, dtype=dtype)
    copies = x.clone(), v.clone()
    y = lapack.apply_reflectors(x, v, transpose)
    error = (y.double() - expected(x, v, transpose)).norm() / y.double().norm()
    assert error < ROUNDINGS[dtype] * torch.finfo(dtype).eps
    assert torch.equal(x, copies[0])
    assert torch.equal(v, copies[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0.0, 1e-38, 1e-30, -1e-20, -1e-12, 1e-8, -1e-4])
@pytest.mark.parametrize("length", [1e-30, 1.0, 1e30])
def test_reflectors_that_begin_with_almost_nothing(first, length, dtype):
    v = torch.randn(8, 12, dtype=dtype)
    v.diagonal().mul_(first)
    v[5] = 0
    v[7, 8:] = 0
    x = torch.randn(4, 12, dtype=dtype)
    v = length * v
    for transpose in (False, True):
        y = lapack.apply_reflectors(x, v, transpose)
        error = (y.double() - expected(x, v, transpose)).norm() / x.double().norm()
        assert error < ROUNDINGS[dtype] * torch.finfo(dtype).eps


def test_is_asked_for_few_vectors_without_derivatives(asked):
    x, v = torch.randn(lapack.FEW, 70), torch.randn(9, 70, requires_grad=True)
    wanted = apply_reflectors(x, v, triangular=True)
    assert not asked
    with torch.no_grad():
        actual = apply_reflectors(x, v, triangular=True)
        assert len(asked) == 1
        torch.testing.assert_close(actual, wanted.detach(), rtol=0, atol=1e-13)
        apply_reflectors(x, v)
        apply_reflectors(torch.randn(lapack.FEW + 1, 70), v, triangular=True)
        torch.func.vmap(lambda x: apply_reflectors(x, v, triangular=True))(x)
        with use_backend("triton"):
            apply_reflectors(x, v, triangular=True)
        torch.compile(apply_reflectors, backend="eager", fullgraph=True)(x, v, triangular=True)
    assert len(asked) == 1
    with torch.inference_mode():
        apply_reflectors(x, v, transpose=True, triangular=True)
    apply_reflectors(x, v.detach(), triangular=True)
    assert len(asked) == 3


def test_serves_both_sides_of_large_factors(asked):
    layer = SVDLinear(300, 200, dtype=torch.float64)
    x = torch.randn(3, 5, 300)
    wanted = layer(x).detach()
    assert not asked
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)
        assert len(asked) == 2
        SVDLinear(30, 20, dtype=torch.float64)(x[..., :30])
        assert len(asked) == 2


def test_gradient_of_sigma_alone():
    svd = HouseholderSVD(
        torch.randn(200, 200).triu(), torch.ones(200).requires_grad_(), torch.randn(200, 200).triu()
    )
    (grad,) = torch.autograd.grad((svd.apply(torch.randn(2, 200))).sum(), svd.singular_values)
    assert grad.abs().sum() > 0
