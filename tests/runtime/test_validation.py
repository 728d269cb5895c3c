"""Shared checks: what passes, what is refused, and that the message names it."""

import math

import numpy as np
import pytest
import torch

from spectral_triton import SVDLinear
from spectral_triton.runtime.validation import (
    broadcast_batch,
    check_bounds,
    check_choice,
    check_factors,
    check_floating,
    check_integer,
    check_number,
    full_precision,
    resolve_num_reflectors,
    without_autocast,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floating_tensors_pass(dtype):
    assert check_floating("x", torch.zeros(1, dtype=dtype)) is None


@pytest.mark.parametrize(
    "value", [torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.complex64)]
)
def test_other_tensors_are_refused_by_dtype(value):
    with pytest.raises(TypeError, match=f"weights must be .*{value.dtype}"):
        check_floating("weights", value)


def test_what_is_no_tensor_is_refused_by_type():
    with pytest.raises(TypeError, match=r"weights must be .*list"):
        check_floating("weights", [1.0])


def test_full_precision_is_single_at_least():
    assert full_precision(torch.bfloat16) == full_precision(torch.float16) == torch.float32
    assert full_precision(torch.bfloat16, torch.float64) == torch.float64


def test_without_autocast_turns_it_off_inside_only():
    x = torch.ones(2, 2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with without_autocast("cpu"):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    with without_autocast("meta"):
        assert (x.to("meta") @ x.to("meta")).dtype == torch.float32


def test_integers():
    assert check_integer("rank", 3, 0, 3) is None
    for value, error in [(4, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)]:
        with pytest.raises(error, match=f"rank must be .*{value}"):
            check_integer("rank", value, 0, 3)


def test_numbers():
    assert check_number("margin", 1) is None
    for value, error in [(math.nan, ValueError), (math.inf, ValueError), ("1", TypeError)]:
        with pytest.raises(error, match=f"margin must be .*{value}"):
            check_number("margin", value)


def test_choices():
    assert check_choice("mode", "a", ("a", "b")) is None
    with pytest.raises(ValueError, match="mode must be one of 'a', 'b', got 'c'"):
        check_choice("mode", "c", ("a", "b"))


def test_bounds():
    assert check_bounds((0.0, math.inf)) is None
    assert check_bounds((1, 1)) is None
    for value, error in [((2, 1), ValueError), ((0, math.nan), ValueError), ((0, 1, 2), TypeError)]:
        with pytest.raises(error, match="bounds"):
            check_bounds(value)


def test_num_reflectors():
    assert resolve_num_reflectors(None, 5, 3) == (3, 3)
    assert resolve_num_reflectors(2, 5, 3) == (2, 2)
    assert resolve_num_reflectors([0, 3], 5, 3) == (0, 3)
    for value, error in [
        (4, ValueError),
        ((1, 4), ValueError),
        (-1, ValueError),
        ((1,), ValueError),
        (2.0, TypeError),
        ("22", TypeError),
        ((1, None), TypeError),
        (True, TypeError),
    ]:
        with pytest.raises(error, match="num_reflectors must"):
            resolve_num_reflectors(value, 5, 3)
    with pytest.raises(ValueError, match=r"min\(m, n\) = 3 .* got 4"):
        resolve_num_reflectors(4, 5, 3)


def test_factors_give_their_batch():
    left, sigma, right = torch.ones(5, 1, 2, 4), torch.ones(3, 3), torch.ones(0, 3)
    assert check_factors(left, sigma, right, None) == (5, 3)
    assert check_factors(left, sigma, right, torch.ones(7, 1, 1, 3)) == (7, 5, 3)
    with pytest.raises(ValueError, match=r"batch dimensions.*left \(5, 1, 2, 4\)"):
        check_factors(left, sigma, right, torch.ones(2, 3))


def test_batches_broadcast():
    size = torch.Size
    assert broadcast_batch(size((2, 3)), size((2, 3))) == (2, 3)
    assert broadcast_batch(size(()), size((4, 1)), size((3,))) == (4, 3)
    with pytest.raises(RuntimeError):
        broadcast_batch(size((2,)), size((3,)))


def test_integers_of_numpy_are_integers():
    product = np.prod((3, 4))
    assert check_integer("size", product, 1) is None
    assert resolve_num_reflectors(product, 12, 20) == (12, 12)
    assert SVDLinear(product, 2, num_reflectors=np.int32(1))(torch.ones(1, 12)).shape == (1, 2)
    with pytest.raises(TypeError, match="size must be an int"):
        check_integer("size", np.float32(3), 1)
    with pytest.raises(TypeError, match="size must be an int"):
        check_integer("size", np.bool_(True), 0)
