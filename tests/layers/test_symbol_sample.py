"""The sample that is found is the largest up to the tolerance, against decompositions of all."""

import math

import pytest
import torch

from spectral_triton.layers.symbol_sample import TOLERANCE, largest_sample, squares_at


def all_squares(taps, points):
    """The largest eigenvalues of all samples, (groups, *points)."""
    dims = tuple(range(3, taps.dim()))
    symbol = taps.new_zeros(*taps.shape[:3], *points)
    symbol[(slice(None),) * 3 + tuple(slice(0, n) for n in taps.shape[3:])] = taps
    symbol = torch.fft.fftn(symbol, dim=dims).movedim((1, 2), (-2, -1))
    return torch.linalg.svdvals(symbol)[..., 0].square()


CASES = [
    ((1, 1, 1, 3), (20,)),
    ((2, 3, 2, 2, 3), (7, 9)),
    ((1, 40, 50, 2, 2), (5, 6)),
    ((1, 70, 33, 3), (12,)),
    ((3, 2, 2, 2, 1, 3), (4, 1, 8)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "points"), CASES)
def test_no_sample_is_above_the_one_that_is_found(shape, points, dtype):
    for seed in range(10):
        torch.manual_seed(seed)
        taps = torch.randn(shape, dtype=dtype)
        at = largest_sample(taps, points)
        squares = squares_at(taps, at, points)
        everything = all_squares(taps.double(), points)
        index = tuple(at.tolist())
        assert everything[index] <= squares <= everything[index] * 1.02
        assert everything.max() <= squares * (1 + TOLERANCE)


def test_more_rows_than_float32_serves_for():
    taps = torch.randn(1, 130, 130, 2, dtype=torch.float32)
    at = largest_sample(taps, (10,))
    everything = all_squares(taps.double(), (10,))
    assert everything.max() <= squares_at(taps, at, (10,)) * (1 + TOLERANCE)


def test_a_peak_between_equals_is_found():
    """Flat symbols but one, a little larger at one frequency: a wave of that frequency."""
    points, size = (24,), 24
    taps = torch.zeros(4, 1, 1, size)
    taps[..., 0] = 1.0
    taps[2, 0, 0] += 0.01 * torch.cos(2 * math.pi * 7 * torch.arange(size) / 24)
    assert largest_sample(taps, points).tolist() == [2, 7]


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e-18, 1e18])
def test_scales(factor):
    taps = torch.randn(2, 3, 3, 3, dtype=torch.float32)
    at = largest_sample(taps * factor, (20,))
    expected = largest_sample(taps, (20,)) if factor else torch.zeros(2, dtype=torch.int64)
    assert torch.equal(at, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number(value):
    taps = torch.ones(1, 2, 2, 3)
    taps[0, 0, 0, 0] = value
    at = largest_sample(taps, (20,))
    assert not squares_at(taps, at, (20,)).isfinite()


def test_gradient_and_transforms():
    taps = torch.randn(2, 3, 4, 2, 3, requires_grad=True)
    at = torch.tensor([1, 2, 4])
    assert torch.autograd.gradcheck(lambda t: squares_at(t, at, (7, 8)), taps)
    many = torch.randn(3, 2, 3, 4, 2)
    found = torch.func.vmap(lambda t: largest_sample(t, [10]))(many)
    assert torch.equal(found, torch.stack([largest_sample(t, [10]) for t in many]))
    assert largest_sample(many[0].to("meta"), [10]).shape == (2,)
