import math

import pytest
import torch

from spectral_triton import HouseholderSVD
from spectral_triton.analysis.expressivity import factoring_error, factoring_errors, matrix_of

SHAPES = [(1, 1), (7, 7), (33, 12), (5, 40)]
CONDITIONS = [1.0, 1e4, 1e12, math.inf]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_matrices_have_the_condition_asked_for(m, n, condition):
    sigma = torch.linalg.svdvals(matrix_of(m, n, condition))
    p = min(m, n)
    assert float(sigma[0]) == pytest.approx(1)
    if math.isinf(condition):
        assert int((sigma > 1e-12).sum()) == p - p // 2
    elif p > 1:
        assert float(sigma[-1]) == pytest.approx(1 / condition, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_matrix_is_reached_to_rounding(dtype):
    errors = factoring_errors(SHAPES, CONDITIONS, [dtype])
    assert len(errors) == len(SHAPES) * len(CONDITIONS)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for error in errors:
        assert error.num_reflectors == (min(error.shape),) * 2
        size = max(error.shape)
        assert error.reconstruction <= 4 * size**0.5 * eps
        assert error.singular_values <= 4 * size**0.5 * eps


def test_error_is_that_of_the_factors(monkeypatch):
    honest = HouseholderSVD.from_dense

    def wrong(w):
        factors = honest(w)
        factors.singular_values = factors.singular_values * 1.5
        return factors

    monkeypatch.setattr(HouseholderSVD, "from_dense", staticmethod(wrong))
    error = factoring_error(torch.randn(4, 6))
    assert (error.reconstruction, error.singular_values) == pytest.approx((0.5, 0.5))


def test_seeds_differ_and_repeat():
    assert torch.equal(matrix_of(4, 3, 10.0, seed=1), matrix_of(4, 3, 10.0, seed=1))
    assert not torch.allclose(matrix_of(4, 3, 10.0, seed=1), matrix_of(4, 3, 10.0, seed=2))


def test_condition_below_one_is_refused():
    with pytest.raises(ValueError, match=r"condition must be at least 1, got 0\.5"):
        matrix_of(2, 2, 0.5)
