"""EvaluatedSVD: when W is formed, and what is computed with it."""

import pytest
import torch

from spectral_triton.layers.linear import SVDLinear
from spectral_triton.svd.evaluated_svd import EvaluatedSVD
from spectral_triton.svd.operator import HouseholderSVD
from spectral_triton.svd.weight import SVDWeight


def test_only_evaluation_makes_one():
    weight = SVDWeight(4, 6).eval()
    assert type(weight.factors) is HouseholderSVD
    with torch.no_grad():
        assert type(weight.factors) is EvaluatedSVD
        assert weight.factors.is_kept
        assert type(weight.factors.mT) is HouseholderSVD
        assert type(weight.train().factors) is HouseholderSVD


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_held_is_right_also_where_nothing_is_kept_any_more(mode):
    weight, x = SVDWeight(4, 6).double().eval(), torch.randn(3, 6).double()
    dense = weight.to_dense().detach()
    with mode():
        factors = weight.factors
        for _ in range(3):
            torch.testing.assert_close(factors.apply(x), x @ dense.mT)
    weight.train()
    assert not factors.is_kept
    torch.testing.assert_close(factors.apply(x), x @ dense.mT)
    torch.testing.assert_close(factors.mT.apply(x @ dense.mT), x @ dense.mT @ dense)


def test_few_vectors_wait_for_the_second_call_and_many_reflectors_too_few_are_applied():
    weight = SVDWeight(64, 64).eval()
    x = torch.randn(2, 64)
    with torch.no_grad():
        ways = [weight.factors._way(x, 2) for _ in range(2)]
        assert ways[0] != "dense"
        assert ways[1] == "dense"
        few = SVDWeight(2048, 2048, num_reflectors=1).eval()
        x = torch.randn(64, 2048)
        assert [few.factors._way(x, 64) for _ in range(2)].count("dense") == 0


def test_a_weight_that_is_formed_at_the_first_call_is_kept():
    layer = SVDLinear(16, 16).eval()
    with torch.no_grad():
        layer(torch.randn(100, 16))
        assert layer.weight is layer.weight
        few = SVDLinear(16, 16, num_reflectors=1).eval()
        few(torch.randn(1, 16))
        few(torch.randn(1, 16))
        assert few.weight is few.weight
