"""CachedSVD: the operator a layer gives inside the scope, there and after it."""

import pytest
import torch

from spectral_triton.layers.linear import SVDLinear
from spectral_triton.runtime.cached import cached
from spectral_triton.svd.cached_svd import CachedSVD
from spectral_triton.svd.operator import HouseholderSVD
from spectral_triton.svd.weight import SVDWeight


@pytest.fixture
def weight():
    weight = SVDWeight(6, 4, num_reflectors=3)
    with torch.no_grad():
        weight.raw_singular_values.normal_()
    return weight


def test_it_multiplies_by_the_w_it_holds(weight):
    x = torch.randn(5, 4)
    expected = weight.factors.apply(x)
    with cached():
        factors = weight.factors
        assert type(factors) is CachedSVD
        assert factors is weight.factors
        assert factors.to_dense() is factors.to_dense()
        assert factors._way(x, 5) == "dense"
        torch.testing.assert_close(factors.apply(x), expected)
        torch.testing.assert_close(factors @ x.mT, expected.mT)


def test_after_the_scope_it_is_like_any_other(weight):
    x = torch.randn(1, 4)
    with cached():
        factors = weight.factors
        expected = factors.apply(x)
    assert factors._way(x, 1) != "dense"
    assert factors.to_dense() is not factors.to_dense()
    torch.testing.assert_close(factors.apply(x), expected)
    with torch.no_grad():
        weight.left.add_(0.1)
    torch.testing.assert_close(factors.apply(x), weight.factors.apply(x))


def test_what_is_derived_from_it_is_plain(weight):
    with cached():
        for derived in (weight.factors.mT, weight.factors.pinv(), weight.factors.truncate(2)):
            assert type(derived) is HouseholderSVD
    assert type(weight.factors) is HouseholderSVD


def test_algebra_inside_is_that_outside():
    layer, y = SVDLinear(4, 4), torch.randn(3, 4)
    expected = layer.inverse(y), layer.logabsdet(), layer.factors.cond(), layer.factors.solve(y)
    with cached():
        layer(y)
        made = layer.inverse(y), layer.logabsdet(), layer.factors.cond(), layer.factors.solve(y)
    torch.testing.assert_close(made, expected)


def test_stacked_matrices_broadcast(weight):
    stacked = SVDWeight(3, 3, num_blocks=4)
    for shape in ((3,), (5, 3), (4, 5, 3), (2, 4, 5, 3)):
        x = torch.randn(shape)
        expected = stacked(x)
        with cached():
            torch.testing.assert_close(stacked(x), expected)
