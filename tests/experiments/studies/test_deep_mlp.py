import math

import pytest
import torch
from torch import nn

from spectral_triton.experiments.studies import deep_mlp, figures
from spectral_triton.experiments.studies.deep_mlp import (
    DEPTHS,
    KINDS,
    MARGINS,
    DeepMLP,
    DeepMLPStudy,
    accuracy,
    gradient_share,
    train,
)
from spectral_triton.experiments.studies.investigation import Surroundings
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.tasks.storage import DataFolder


@pytest.fixture
def surroundings(tiny_mnist, listener):
    torch.set_default_dtype(torch.float32)
    return Surroundings(DataFolder(tiny_mnist.parent), "cpu", listener())


def tiny(kind, depth=3):
    return DeepMLP(kind, depth, inputs=4, width=6, reflectors=2)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_those_of_the_formula(kind):
    model, x = tiny(kind), torch.randn(5, 4)
    h = torch.relu(x @ model.first.weight.mT + model.first.bias)
    for layer in model.hidden:
        change = torch.relu(h @ layer.weight.mT + layer.bias)
        h = h + change if "residual" in kind else change
    torch.testing.assert_close(model(x), h @ model.last.weight.mT + model.last.bias)


@pytest.mark.parametrize("kind", KINDS)
def test_every_hidden_layer_has_a_gradient_at_the_start(kind):
    model = tiny(kind)
    model(torch.randn(50, 4)).square().sum().backward()
    for layer in model.hidden:
        for name, parameter in layer.named_parameters():
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", MARGINS)
def test_bands(kind):
    center, margin = MARGINS[kind]
    for layer in tiny(kind).hidden:
        assert layer.svd.spectrum.bounds == (center - margin, center + margin)
        moved = (layer.singular_values.detach() - center).abs().max() / margin
        assert moved == 0 if kind == "svd" else 0.05 < moved < 1


def test_start_of_dense_layers():
    layer = DeepMLP("plain", 1, 4, 500, 1).hidden[0]
    assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / 500), rel=0.01)
    assert not layer.bias.any()
    layer = DeepMLP("residual", 1, 4, 500, 1).hidden[0]
    assert float(layer.weight.detach().abs().max()) == pytest.approx(1 / math.sqrt(500), rel=0.01)
    assert layer.bias.any()


def test_gradient_share_by_the_chain_rule():
    model, x, labels = tiny("plain", 2), torch.randn(3, 4), torch.tensor([1, 2, 3])
    states = model.states(x)
    last = states[-1].detach().requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(model.last(last), labels), last)
    first = expected
    for layer, state in zip(reversed(model.hidden), reversed(states[1:]), strict=True):
        first = (first * (state > 0)) @ layer.weight
    share = gradient_share(model, x, labels)
    assert share == pytest.approx((first.norm() / expected.norm()).item())


def test_accuracy_counts_all_batches():
    outputs = torch.eye(3).repeat(1000, 1)
    labels = torch.tensor([0, 1, 0]).repeat(1000)
    assert accuracy(nn.Identity(), outputs, labels) == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_training(kind, surroundings):
    result = train(kind, 2, 0, surroundings, steps=4, width=6, reflectors=2)
    losses = [loss for _, loss in surroundings.report.losses]
    assert result["training_loss"] == pytest.approx(sum(losses) / 4)
    assert losses[-1] < losses[0]
    assert result["stopped_at"] is None
    again = train(kind, 2, 0, surroundings, steps=4, width=6, reflectors=2)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    other = train(kind, 2, 1, surroundings, steps=4, width=6, reflectors=2)
    assert other["training_loss"] != result["training_loss"]


def test_a_gradient_that_is_not_finite_ends_training(surroundings, monkeypatch):
    monkeypatch.setitem(deep_mlp.RATES, "plain", 1e30)
    result = train("plain", 3, 0, surroundings, steps=9, width=6, reflectors=2)
    assert 1 < result["stopped_at"] < 9
    assert len(surroundings.report.losses) == result["stopped_at"] - 1


def test_study_covers_the_grid():
    lines = DeepMLPStudy().budget(Selection(seeds=[0]))
    assert [line.what for line in lines] == list(KINDS)
    assert {line.runs for line in lines} == {len(DEPTHS)}


def test_page(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        figures, "accuracy_over_depth", lambda path, curves, chance: drawn.update(curves)
    )
    shares = {"start": 1.0, "end": 0.25}
    results = [
        {
            "kind": kind,
            "depth": depth,
            "seed": seed,
            "accuracy": value + 0.02 * seed,
            "first_over_last_gradient": shares,
        }
        for kind, depth, value in (("plain", 5, 0.9), ("plain", 20, 0.4), ("svd", 5, 0.85))
        for seed in (0, 1)
    ]
    page = "\n\n".join(DeepMLPStudy().text(results, tmp_path))
    assert "| 5 | 91.00 % (90.00 % to 92.00 %) | 86.00 % (85.00 % to 87.00 %) |" in page
    assert "| 20 | 41.00 % (40.00 % to 42.00 %) | - |" in page
    assert "| 90 % | 5 | none |" in page
    assert "| 5 | 1 → 0.25 | 1 → 0.25 |" in page
    assert drawn["plain"] == {5: [0.9, 0.92], 20: [0.4, pytest.approx(0.42)]}
