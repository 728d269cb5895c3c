"""Patches per element: counted by hand, by brute force, and bounded."""

import itertools

import numpy
import pytest

from spectral_triton.layers.patches import bound_patches, count_patches

MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


def brute_force(size, kernel, stride, dilation, pads, mode):
    padded = numpy.pad(numpy.arange(size) + 1, pads, mode=MODES[mode])
    total = [0] * (size + 1)
    start = 0
    while start + dilation * (kernel - 1) < len(padded):
        for tap in range(kernel):
            total[padded[start + dilation * tap]] += 1
        start += stride
    return max(total[1:])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pads", [(0, 0), (1, 1), (0, 2), (2, 3), (5, 5)])
def test_counts_are_exact_and_bounds_hold(mode, pads):
    checked = 0
    shapes = itertools.product((1, 2, 3, 5), (1, 2, 3, 4), (1, 2, 3))
    for kernel, stride, dilation in shapes:
        bound = bound_patches(kernel, stride, dilation, pads, mode)
        largest = 0
        for size in (*range(1, 14), *range(28, 32)):
            limit = {"circular": size, "reflect": size - 1}.get(mode, 99)
            if max(pads) > limit or size + sum(pads) <= dilation * (kernel - 1):
                with pytest.raises(ValueError, match=f"too small .* got {size}"):
                    count_patches(size, kernel, stride, dilation, pads, mode)
                continue
            count = count_patches(size, kernel, stride, dilation, pads, mode)
            assert count == brute_force(size, kernel, stride, dilation, pads, mode)
            assert count <= bound
            largest = max(largest, count)
            checked += 1
        if mode == "zeros":
            assert largest == bound
    assert checked > 200


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((3, 1, 1, (1, 1), "zeros"), 3),
        ((3, 2, 1, (1, 1), "zeros"), 2),
        ((3, 3, 1, (0, 0), "zeros"), 1),
        # All three taps fall on elements of the same parity.
        ((3, 2, 2, (0, 0), "zeros"), 3),
        ((3, 2, 1, (1, 1), "circular"), 3),
        ((3, 1, 1, (1, 1), "circular"), 3),
        ((3, 1, 1, (1, 1), "reflect"), 9),
        ((3, 1, 1, (2, 0), "reflect"), 6),
        ((3, 1, 1, (1, 1), "replicate"), 9),
    ],
)
def test_bounds(arguments, expected):
    assert bound_patches(*arguments) == expected


def test_bad_size_is_named():
    for size, error in ((0, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="input_size"):
            count_patches(size, 1, 1, 1, (0, 0), "zeros")
