import copy

import pytest
import torch
from torch import nn

from spectral_triton import SpectralRNN, SVDConv1d, SVDLinear


def plain():
    layers = {"linear": nn.Linear(4, 4), "conv": nn.Conv1d(2, 2, 1), "rnn": nn.RNN(2, 3, 2)}
    for name, weight in nn.ModuleDict(layers).named_parameters():
        if "weight" in name and "ih" not in name:
            nn.init.orthogonal_(weight.data.flatten(1))
    return nn.ModuleDict(layers)


def own(**options):
    layers = {
        "linear": SVDLinear(4, 4, **options),
        "conv": SVDConv1d(2, 2, 1, **options),
        "rnn": SpectralRNN(2, 3, 2, **options),
    }
    return nn.ModuleDict(layers)


def test_each_layer_loads_or_stays_and_all_that_fail_are_named():
    state = plain().state_dict()
    state["linear.weight"] *= 3
    state["rnn.weight_hh_l1"] *= 3
    model = own()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state)
    message = str(caught.value)
    for key in ("linear.weight", "rnn.weight_hh_l1"):
        assert f"cannot load the dense {key}: " in message
    assert "svd" not in message
    torch.testing.assert_close(model["conv"].weight, state["conv.weight"])
    for name, value in model.state_dict().items():
        if not name.startswith("conv"):
            assert torch.equal(value, before[name])


def test_what_is_loaded_stays_as_it_was():
    state = plain().state_dict()
    before = dict(state)
    own().load_state_dict(state)
    assert state.keys() == before.keys()
    assert all(value is before[key] for key, value in state.items())


def test_a_matrix_that_needs_more_reflectors_brings_a_base():
    made = SVDLinear(8, 8, num_reflectors=2)
    model = nn.ModuleDict({"linear": SVDLinear(8, 8, num_reflectors=2)})
    state = {"linear.weight": made.weight.detach(), "linear.bias": made.bias.detach()}
    model.load_state_dict(state)
    torch.testing.assert_close(model["linear"].weight, state["linear.weight"])
    again = nn.ModuleDict({"linear": SVDLinear(8, 8, num_reflectors=2)})
    again.load_state_dict(model.state_dict())
    assert torch.equal(again["linear"].weight, model["linear"].weight)
    # And back: a state without a base means reflectors that act from the diagonal on.
    again["linear"].load_state_dict(made.state_dict())
    assert torch.equal(again["linear"].weight, made.weight)
    assert again["linear"].svd.left_base is None


def test_what_cannot_be_assigned_leaves_the_parameters_themselves():
    rnn = SpectralRNN(3, 4)
    before = dict(rnn.named_parameters())
    with pytest.raises(RuntimeError, match="outside the bounds"):
        rnn.load_state_dict(nn.RNN(3, 4).state_dict(), assign=True)
    after = dict(rnn.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
