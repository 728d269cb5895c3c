"""SVDResidualBlock: its formula, its bounds on distances, its start."""

import pytest
import torch
from torch import nn

from spectral_triton.layers.residual import SVDResidualBlock
from spectral_triton.spectra.spectrum import SigmoidSpectrum, SignedSpectrum


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_reflectors", [None, 2])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3)])
def test_formula(bias, num_reflectors, shape):
    block = SVDResidualBlock(5, bias, activation=nn.Tanh, num_reflectors=num_reflectors)
    h = torch.randn(*shape, 5)
    expected = h + torch.tanh(nn.functional.linear(h, block.linear.weight, block.linear.bias))
    torch.testing.assert_close(block(h), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Identity])
@pytest.mark.parametrize("limit", [0.1, 0.9])
def test_distances_change_by_no_more_than_the_limit(activation, limit):
    block = SVDResidualBlock(6, activation=activation, spectrum=SignedSpectrum(limit))
    with torch.no_grad():
        block.linear.svd.raw_singular_values.normal_(std=5)
    x, y = torch.randn(2, 500, 6)
    stretch = (block(x) - block(y)).norm(dim=-1) / (x - y).norm(dim=-1)
    assert stretch.max() <= 1 + limit + 1e-12
    assert stretch.min() >= 1 - limit - 1e-12
    assert stretch.max() - stretch.min() > 0.2 * limit


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("bias", [False, True])
def test_every_parameter_is_trained_from_the_start(activation, bias):
    block = SVDResidualBlock(6, bias, activation=activation)
    torch.testing.assert_close(block.singular_values, torch.full((6,), 0.25))
    block(torch.randn(20, 6)).pow(3).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in block.parameters())


def test_the_spectrum_of_the_paper():
    block = SVDResidualBlock(4, activation=nn.Tanh, spectrum=SigmoidSpectrum(center=0, margin=0.1))
    h = torch.randn(3, 4)
    torch.testing.assert_close(block(h), h + torch.tanh(block.linear.bias))
    block(h).sum().backward()
    assert block.linear.svd.raw_singular_values.grad.abs().min() > 0


def test_dtype_device_and_activation():
    block = SVDResidualBlock(4, device="meta", dtype=torch.float32)
    assert block.linear.svd.left.is_meta
    assert block.linear.bias.dtype == torch.float32
    with pytest.raises(TypeError, match=r"activation must make a torch.nn.Module, got 1"):
        SVDResidualBlock(4, activation=lambda: 1)
    with pytest.raises(ValueError, match=r"^features must be at least 1"):
        SVDResidualBlock(0)


@pytest.mark.parametrize("activation", [nn.ReLU(), "relu"])
def test_an_activation_that_makes_no_module_is_named(activation):
    with pytest.raises(TypeError, match=r"activation must make a module, such as nn\.ReLU without"):
        SVDResidualBlock(3, activation=activation)
