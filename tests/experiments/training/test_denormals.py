"""Denormals are zero inside the block, and what they were before outside of it."""

import pytest
import torch

from spectral_triton.experiments.training.denormals import flushed_denormals

pytestmark = pytest.mark.skipif(
    not torch.set_flush_denormal(False), reason="this processor cannot flush denormals"
)


def half_of_the_smallest():
    return (torch.full((3,), torch.finfo(torch.float32).tiny, dtype=torch.float32) / 2).sum().item()


def test_inside_and_outside():
    assert half_of_the_smallest() > 0
    with flushed_denormals():
        assert half_of_the_smallest() == 0
    assert half_of_the_smallest() > 0


def test_after_an_error():
    with pytest.raises(KeyError), flushed_denormals():
        raise KeyError
    assert half_of_the_smallest() > 0


def test_nested():
    with flushed_denormals():
        with flushed_denormals():
            pass
        assert half_of_the_smallest() == 0
    assert half_of_the_smallest() > 0
