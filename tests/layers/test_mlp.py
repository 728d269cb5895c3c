"""SVDMLP: which layers stand where, and that it learns."""

import copy

import pytest
import torch
from torch import nn

from spectral_triton.layers.mlp import SVDMLP
from spectral_triton.spectra.spectrum import FixedSpectrum, SigmoidSpectrum


def kinds(mlp):
    return [type(layer).__name__ for layer in mlp]


def test_layers_by_widths():
    assert kinds(SVDMLP([3, 2])) == ["SVDLinear"]
    assert kinds(SVDMLP([4, 4])) == ["SVDLinear"]
    block = "SVDResidualBlock"
    assert kinds(SVDMLP([4, 4, 4])) == [block, "SVDLinear"]
    mlp = SVDMLP((5, 8, 8, 8, 6, 2), activation=nn.Tanh)
    assert kinds(mlp) == ["SVDLinear", "Tanh", block, block, "SVDLinear", "Tanh", "SVDLinear"]
    assert mlp[2].activation is not mlp[3].activation
    plain = SVDMLP((5, 8, 8, 2), residual=False)
    assert kinds(plain) == ["SVDLinear", "ReLU", "SVDLinear", "ReLU", "SVDLinear"]


def test_options_reach_every_layer():
    options = {
        "spectrum": FixedSpectrum(0.5),
        "residual_spectrum": SigmoidSpectrum(center=0, margin=0.1),
    }
    mlp = SVDMLP([5, 8, 8, 2], False, dtype=torch.float32, num_reflectors=4, **options)
    weights = [mlp[0].svd, mlp[2].linear.svd, mlp[3].svd]
    assert [weight.num_reflectors for weight in weights] == [(4, 4), (4, 4), (2, 2)]
    assert [weight.spectrum for weight in weights] == [
        FixedSpectrum(0.5),
        SigmoidSpectrum(center=0, margin=0.1),
        FixedSpectrum(0.5),
    ]
    assert all(p.dtype == torch.float32 and "bias" not in n for n, p in mlp.named_parameters())


def test_output_and_copies():
    mlp = SVDMLP([3, 4, 4, 2])
    x = torch.randn(5, 3)
    h = torch.relu(nn.functional.linear(x, mlp[0].weight, mlp[0].bias))
    h = h + torch.relu(nn.functional.linear(h, mlp[2].linear.weight, mlp[2].linear.bias))
    expected = nn.functional.linear(h, mlp[3].weight, mlp[3].bias)
    torch.testing.assert_close(mlp(x), expected)
    assert torch.equal(copy.deepcopy(mlp)(x), mlp(x))


def test_learns():
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    target = x[:, :1].sign()
    mlp = SVDMLP([4, 16, 16, 16, 1], num_reflectors=8)
    optimizer = torch.optim.Adam(mlp.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        loss = (mlp(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_parts():
    mlp = SVDMLP([4, 8, 8, 2])
    assert type(mlp[:-1]) is nn.Sequential
    assert list(mlp[1:]) == [mlp[1], mlp[2], mlp[3]]
    x = torch.randn(3, 4)
    assert torch.equal(mlp[-1](mlp[:-1](x)), mlp(x))


def test_activations_live_where_the_layers_do():
    mlp = SVDMLP([4, 8, 8, 2], dtype=torch.float32, activation=nn.PReLU)
    assert mlp(torch.randn(3, 4, dtype=torch.float32)).dtype == torch.float32
    mlp = SVDMLP([4, 8, 8, 2], device="meta", activation=nn.PReLU)
    assert all(p.is_meta for p in mlp.parameters())


@pytest.mark.parametrize(
    ("widths", "options", "error", "message"),
    [
        ([3], {}, ValueError, r"widths must be a list or tuple of two sizes or more, .* got \[3\]"),
        (3, {}, ValueError, "widths must be a list or tuple of two sizes or more, .* got 3"),
        ([3, 0], {}, ValueError, r"widths\[1\] must be at least 1, got 0"),
        ([3, 2.5], {}, TypeError, r"widths\[1\] must be an int"),
        ([3, 4, 2], {"activation": torch.relu_}, TypeError, "must make a module without"),
        ([3, 4, 2], {"activation": dict}, TypeError, r"activation must make .* got \{\}"),
        ([3, 2], {"num_reflectors": -1}, ValueError, "num_reflectors must be at least 0"),
    ],
)
def test_bad_input_is_named(widths, options, error, message):
    with pytest.raises(error, match=message):
        SVDMLP(widths, **options)
