"""Starts of a weight: each initialiser, reproducible, one matrix or several."""

import copy

import pytest
import torch

from spectral_triton.spectra.spectrum import FixedSpectrum
from spectral_triton.svd.weight import INITIALIZERS, SVDWeight


@pytest.mark.parametrize("init", INITIALIZERS)
def test_every_start(init):
    weight = SVDWeight(6, 5, init=init, spectrum=FixedSpectrum())
    w = weight.to_dense()
    torch.testing.assert_close(w.mT @ w, torch.eye(5), rtol=0, atol=1e-14)
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 1))
    outside = w.masked_select(~blocks.bool())
    if init == "identity":
        torch.testing.assert_close(w, torch.eye(6, 5), rtol=0, atol=1e-14)
    elif init == "haar":
        assert outside.abs().max() > 0.1
    else:
        assert outside.abs().max() < 1e-14
        assert (w[0, 1] + w[1, 0]).abs() < 1e-14 < w[0, 1].abs()


def test_reset_is_reproducible_and_clears_everything():
    weight = SVDWeight(4, 4, init="haar")
    weight.reset_parameters(torch.Generator().manual_seed(5))
    expected = copy.deepcopy(weight.state_dict())
    with torch.no_grad():
        for tensor in weight.state_dict().values():
            tensor.fill_(float("nan"))
    weight.reset_parameters(torch.Generator().manual_seed(5))
    for name, tensor in weight.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("init", INITIALIZERS)
def test_blocks_start_as_one_matrix_does(init):
    options = {"num_blocks": 3, "init": init, "spectrum": FixedSpectrum()}
    weight = SVDWeight(6, 5, **options)
    w = weight.to_dense()
    torch.testing.assert_close(w.mT @ w, torch.eye(5).expand(3, 5, 5), rtol=0, atol=1e-14)
    if init == "identity":
        torch.testing.assert_close(w, torch.eye(6, 5).expand(3, 6, 5), rtol=0, atol=1e-14)
    else:
        assert (w[0] - w[1]).abs().max() > 0.1
        assert (w[1] - w[2]).abs().max() > 0.1
    assert (weight.left[0] != weight.left[1]).any()
    few = SVDWeight(6, 5, num_reflectors=(1, 2), **options).to_dense()
    torch.testing.assert_close(few.mT @ few, torch.eye(5).expand(3, 5, 5), rtol=0, atol=1e-14)


@pytest.mark.parametrize("init", INITIALIZERS)
def test_no_reflector_begins_as_a_row_of_zeros(init):
    """Such a row would be the identity for good: its gradient is zero."""
    for size in (1, 2, 3):
        weight = SVDWeight(size, size, init=init, num_blocks=20, spectrum=FixedSpectrum())
        for rows in (weight.left, weight.right):
            assert (rows.triu() != 0).any(-1).all()
        w = weight.to_dense()
        torch.testing.assert_close(w.mT @ w, torch.eye(size).expand(20, size, size))
        if init == "identity":
            torch.testing.assert_close(w, torch.eye(size).expand(20, size, size))
