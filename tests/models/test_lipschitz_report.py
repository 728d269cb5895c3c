"""The bounds of each layer, and the stretch that a network reaches."""

import math

import pytest
import torch
from torch import nn

from spectral_triton import SVDMLP, SVDConv2d, SVDLinear, lipschitz_constant, lipschitz_report
from spectral_triton.models.lipschitz_report import stretch


def test_the_product_of_the_layers_is_the_constant():
    net = nn.Sequential(
        SVDConv2d(2, 4, 3, padding=1, operator_bound=1.0),
        nn.ReLU(),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten()),
        SVDMLP([16, 8, 8, 3]),
    )
    report = lipschitz_report(net, torch.randn(3, 2, 4, 4))
    names = [layer.name for layer in report.layers]
    assert names == ["0", "1", "2.0", "2.1", "3.0", "3.1", "3.2.linear", "3.2.activation", "3.3"]
    bounds = {layer.name: layer.bound for layer in report.layers}
    block = 1 + bounds.pop("3.2.linear") * bounds.pop("3.2.activation")
    assert math.isclose(math.prod(bounds.values()) * block, report.whole.bound)
    assert math.isclose(report.whole.bound, lipschitz_constant(net).item())
    for layer in (*report.layers, report.whole):
        assert 0 < layer.reached <= layer.bound * (1 + 1e-9)
    assert report.layers[0].reached > 0.5
    lines = str(report).splitlines()
    assert len(lines) == 11
    assert lines[0].split() == ["layer", "type", "at", "most", "reached"]
    assert lines[-1].startswith("all")


def test_without_an_example_and_of_one_layer():
    report = lipschitz_report(SVDLinear(4, 3, margin=0.2))
    assert [layer.name for layer in report.layers] == [""]
    assert report.whole.reached is None
    assert "reached" in str(report)


def test_stretch_is_the_largest_singular_value():
    linear = nn.Linear(5, 4)
    exact = torch.linalg.matrix_norm(linear.weight, 2).item()
    assert math.isclose(stretch(linear, torch.randn(5), steps=300), exact, rel_tol=1e-6)


def test_what_has_no_constant_is_named():
    with pytest.raises(ValueError, match=r"no Lipschitz constant for 1 \(MultiheadAttention\)"):
        lipschitz_report(nn.Sequential(nn.ReLU(), nn.MultiheadAttention(4, 2)))
    with pytest.raises(TypeError, match="example must be a floating point tensor"):
        lipschitz_report(nn.ReLU(), torch.arange(3))
