"""Optimizer groups: which parameter goes where, and what an optimizer then does."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from spectral_triton import parametrizations
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.models.parameter_groups import parameter_groups
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.recurrent.rnn_cell import SpectralRNNCell
from spectral_triton.spectra.spectrum import FixedSpectrum
from spectral_triton.svd.weight import SVDWeight


class Network(nn.Module):
    """Every place where reflectors can be, and a `left` that is none."""

    def __init__(self):
        super().__init__()
        self.bare = SVDWeight(3, 4)
        self.linear = SVDLinear(3, 4, spectrum=FixedSpectrum())
        self.rnn = SpectralRNN(2, 3, num_layers=2, bidirectional=True)
        self.cell = SpectralRNNCell(2, 3)
        self.conv = parametrizations.svd(nn.Conv2d(2, 3, 2), out_of_bounds="clip")
        self.lstm = parametrizations.svd(
            nn.LSTM(2, 3), "weight_hh_l0", num_blocks=4, out_of_bounds="clip"
        )
        self.fixed = parametrizations.svd(
            nn.Linear(3, 3), spectrum=FixedSpectrum(), out_of_bounds="clip"
        )
        self.other = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
        self.norm = nn.LayerNorm(3)
        self.left = nn.Parameter(torch.ones(2, 2))


def names(model, groups):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: [by_id[id(p)] for p in group["params"]] for group in groups}


def test_every_parameter_is_in_its_group_once():
    model = Network()
    groups = names(model, parameter_groups(model, 0.1, weight_decay=0.2))
    everything = [name for name, _ in model.named_parameters()]
    assert sorted(itertools.chain(*groups.values())) == sorted(everything)
    endings = (".original0", ".original1")
    svd = [name for name in everything if name.startswith(("conv", "lstm", "fixed"))]
    expected = [n for n in everything if n.endswith((".left", ".right"))]
    assert set(groups["reflectors"]) == {*expected, *(n for n in svd if n.endswith(endings))}
    raw = [n for n in everything if n.endswith(("raw_singular_values", "original2"))]
    assert groups["singular_values"] == raw
    assert len(raw) == 1 + 4 + 1 + 1 + 1
    vectors = {n for n, p in model.named_parameters() if p.dim() < 2} - set(raw)
    assert set(groups["rest_without_decay"]) == vectors
    assert {"left", "rnn.weight_ih_l0", "other.parametrizations.weight.original1"} <= set(
        groups["rest"]
    )


def test_rates_and_decays():
    model = nn.Sequential(SVDLinear(2, 2), nn.Linear(2, 2))

    def settings(**options):
        groups = parameter_groups(model, 0.1, **options)
        return {g["name"]: (g["lr"], g["weight_decay"]) for g in groups}

    assert settings(weight_decay=0.3) == {
        "reflectors": (0.1, 0.0),
        "singular_values": (0.5, 0.0),
        "rest": (0.1, 0.3),
        "rest_without_decay": (0.1, 0.0),
    }
    options = {"singular_values_lr": 0.0, "reflectors_lr": 0.4, "decay_vectors": True}
    assert settings(**options) == {
        "reflectors": (0.4, 0.0),
        "singular_values": (0.0, 0.0),
        "rest": (0.1, 0.0),
    }


def test_shared_and_frozen_parameters():
    shared = SVDLinear(3, 3, bias=False)
    model = nn.Sequential(shared, nn.Linear(3, 3), shared, nn.Linear(3, 3))
    model[3].weight = model[1].weight
    model[3].bias.requires_grad_(False)
    groups = names(model, parameter_groups(model, 0.1))
    assert groups == {
        "reflectors": ["0.svd.left", "0.svd.right"],
        "singular_values": ["0.svd.raw_singular_values"],
        "rest": ["1.weight"],
        "rest_without_decay": ["1.bias"],
    }
    # A tensor that is a reflector somewhere is one everywhere, found first or last.
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), copy.deepcopy(shared))
    tied[0].weight = tied[1].svd.left
    assert names(tied, parameter_groups(tied, 0.1))["reflectors"] == ["0.weight", "1.svd.right"]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_a_step_decays_the_rest_only(optimizer):
    model = nn.Sequential(SVDLinear(3, 3), nn.Linear(3, 3))
    before = copy.deepcopy(model)
    steps = optimizer(parameter_groups(model, 0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    steps.step()
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[0].bias, before[0].bias)
    assert torch.equal(model[1].bias, before[1].bias)
    torch.testing.assert_close(model[1].weight, before[1].weight * (1 - 0.1 * 0.5))


def test_a_scheduler_keeps_the_ratio_of_the_rates():
    optimizer = torch.optim.SGD(parameter_groups(SVDLinear(2, 2), 0.1))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.05, 0.25, 0.05]


def test_gains_of_any_shape_do_not_decay():
    groups = parameter_groups(nn.Sequential(nn.LayerNorm((2, 3)), nn.RMSNorm((2, 3))), 0.1)
    assert [group["name"] for group in groups] == ["rest_without_decay"]


def test_pruned_factors_stay_factors():
    layer = SVDLinear(3, 3, bias=False)
    for name in ("left", "right", "raw_singular_values"):
        prune.identity(layer.svd, name)
    groups = {group["name"]: group["params"] for group in parameter_groups(layer, 0.1)}
    assert [len(groups[name]) for name in ("reflectors", "singular_values")] == [2, 1]
    assert len(groups) == 2


def test_nothing_to_train():
    assert parameter_groups(nn.ReLU(), 0.1) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 0.1), TypeError, "model must be .* got list"),
        ((nn.ReLU(), "fast"), TypeError, "lr must be a number"),
        ((nn.ReLU(), None), TypeError, "lr must be a number"),
        ((nn.ReLU(), -0.1), ValueError, "lr must not be negative"),
        ((nn.ReLU(), float("nan")), ValueError, "lr must be finite"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        parameter_groups(*arguments)


def test_bad_options_are_named():
    for name in ("singular_values_lr", "reflectors_lr", "weight_decay"):
        with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
            parameter_groups(nn.ReLU(), 0.1, **{name: -1})
