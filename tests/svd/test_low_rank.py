"""Singular triplets, truncation and its error, against torch.linalg of the dense matrix."""

import pytest
import torch
from torch.func import vmap

from spectral_triton.layers.linear import SVDLinear
from spectral_triton.spectra.spectrum import SignedSpectrum
from spectral_triton.svd.operator import HouseholderSVD

SHAPES = [(1, 1), (4, 4), (5, 3), (3, 5)]
norm = torch.linalg.matrix_norm


def factored(m, n, batch=(), k=None):
    """Random factors, σ of either sign, those of U without batch dimensions."""
    k = min(m, n) if k is None else k
    sizes = (k, m), (*batch, min(m, n)), (*batch, k, n)
    return HouseholderSVD(*(torch.randn(size) for size in sizes), triangular=True)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [(), (2,), (0,), (2, 3)])
@pytest.mark.parametrize("k", [None, 1, 0])
def test_svd_is_that_of_the_dense_matrix(shape, batch, k):
    factors = factored(*shape, batch, k)
    w = factors.to_dense()
    for rank in (None, *range(min(shape) + 1)):
        u, s, vh = factors.svd(rank)
        p = min(shape) if rank is None else rank
        assert u.shape == (*batch, shape[0], p)
        assert vh.shape == (*batch, p, shape[1])
        close(s, torch.linalg.svdvals(w)[..., :p])
        close(u.mT @ u, torch.eye(p).expand(*batch, p, p))
        close(vh @ vh.mT, torch.eye(p).expand(*batch, p, p))
        close(u * s.unsqueeze(-2) @ vh, factors.truncate(p).to_dense())


def test_svd_has_named_fields_as_torch_has():
    result = factored(4, 3).svd()
    assert result._fields == ("U", "S", "Vh")
    assert result.S is result[1]


def test_svd_broadcasts_factors():
    factors = HouseholderSVD(torch.randn(2, 4), torch.randn(5, 1, 3), torch.randn(6, 1, 3))
    u, s, vh = factors.svd(2)
    assert u.shape == (5, 6, 4, 2)
    close(u * s.unsqueeze(-2) @ vh, factors.truncate(2).to_dense())


@pytest.mark.parametrize("sigma", [[1.0, 1.0, 1.0], [2.0, -2.0, 0.5]])
def test_svd_has_finite_gradients_where_singular_values_are_equal(sigma):
    leaves = [torch.randn(3, 4), torch.tensor(sigma), torch.randn(3, 3)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    u, s, vh = HouseholderSVD(*leaves).svd()
    weights = torch.randn(4, 3)
    ours = torch.autograd.grad((weights * (u * s @ vh)).sum(), leaves)
    dense = torch.autograd.grad((weights * HouseholderSVD(*leaves).to_dense()).sum(), leaves)
    close(ours, dense)


def test_svd_gradcheck():
    def triplets(left, sigma, right):
        return tuple(HouseholderSVD(left, sigma, right).svd(2))

    leaves = [torch.randn(2, 4), torch.tensor([0.5, -2.0, 1.0]), torch.randn(3, 3)]
    assert torch.autograd.gradcheck(triplets, [leaf.requires_grad_() for leaf in leaves])


def test_a_zero_singular_value_can_grow():
    sigma = torch.tensor([1.0, 0.0], requires_grad=True)
    HouseholderSVD(torch.randn(2, 3), sigma, torch.randn(2, 2)).svd().S.sum().backward()
    close(sigma.grad, torch.ones(2))


def test_svd_under_vmap():
    left, sigma, right = torch.randn(5, 2, 4), torch.randn(5, 3), torch.randn(2, 3)
    mapped = vmap(lambda a, s: tuple(HouseholderSVD(a, s, right).svd(2)))(left, sigma)
    close(mapped, tuple(HouseholderSVD(left, sigma, right).svd(2)))


@pytest.mark.parametrize("shape", SHAPES)
def test_truncation_error_is_the_distance(shape):
    factors = factored(*shape, (2,))
    w = factors.to_dense()
    for rank in range(min(shape) + 1):
        rest = w - factors.truncate(rank).to_dense()
        close(factors.truncation_error(rank), norm(rest, "fro"))
        close(factors.truncation_error(rank, "spectral"), norm(rest, 2))
        sigma = torch.linalg.svdvals(w)
        close(factors.truncation_error(rank), sigma[..., rank:].square().sum(-1).sqrt())


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("kind", ["frobenius", "spectral"])
def test_gradients_are_finite_at_zero(rank, kind):
    sigma = torch.zeros(3, requires_grad=True)
    factors = HouseholderSVD(torch.randn(3, 4), sigma, torch.randn(2, 3))
    (factors.truncation_error(rank, kind) + factors.frobenius_norm()).backward()
    assert sigma.grad.isfinite().all()


def test_low_rank_layers_are_the_nearest():
    layer = SVDLinear(5, 4, spectrum=SignedSpectrum(2.0), dtype=torch.float64)
    torch.nn.init.normal_(layer.svd.raw_singular_values)
    x = torch.randn(7, 5)
    for rank in range(1, 5):
        small = layer.to_low_rank(rank)
        assert [tuple(p.shape) for p in small.parameters()] == [(rank, 5), (4, rank), (4,)]
        close(small(x), layer.factors.truncate(rank).apply(x, layer.bias))
        w = small[1].weight @ small[0].weight
        close(norm(layer.weight - w, "fro"), layer.factors.truncation_error(rank))
        # Both halves are of the same scale, as training them further needs.
        close(norm(small[0].weight, "fro"), norm(small[1].weight, "fro"))
    assert small.training


def test_low_rank_layers_keep_dtype_mode_and_no_bias():
    small = SVDLinear(5, 4, bias=False, dtype=torch.bfloat16).eval().to_low_rank(2)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert not small.training
    assert small[1].bias is None
    assert all(p.requires_grad for p in small.parameters())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f.svd(4), ValueError, "rank must be at most 3, got 4"),
        (lambda f: f.svd(1.0), TypeError, "rank must be an int"),
        (lambda f: f.truncation_error(4), ValueError, "rank must be at most 3, got 4"),
        (lambda f: f.truncation_error(1, "max"), ValueError, "norm must be one of 'frobenius'"),
        (lambda f: SVDLinear(4, 3).to_low_rank(0), ValueError, "rank must be at least 1, got 0"),
        (lambda f: SVDLinear(4, 3).to_low_rank(4), ValueError, "rank must be at most 3, got 4"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(factored(4, 3))
