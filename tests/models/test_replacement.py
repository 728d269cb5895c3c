"""Exchanging modules: every place, shared parameters, hooks that can still be removed."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

from spectral_triton import parametrizations
from spectral_triton.models.replacement import carry_over, copy_model, replace_modules


def test_every_place_and_the_root():
    old, new = nn.Tanh(), nn.ReLU()
    model = nn.ModuleDict({"a": old, "b": nn.Sequential(nn.Linear(1, 1), old)})
    assert replace_modules(model, {old: new}) is model
    assert model["a"] is model["b"][1] is new
    assert replace_modules(old, {old: new}) is new
    assert replace_modules(model, {}) is model


def test_parameters_are_shared_by_name():
    old, new = nn.Linear(2, 2).eval(), nn.Linear(2, 2, bias=False)
    carry_over(old, new)
    assert new.weight is old.weight
    assert new.bias is None
    assert not new.training
    rnn, other = nn.RNN(2, 3), nn.RNN(2, 3)
    carry_over(rnn, other)
    x = torch.randn(4, 1, 2)
    assert torch.equal(rnn(x)[0], other(x)[0])


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_follow_and_can_be_removed(kind):
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    calls = []
    handle = getattr(old, f"register_{kind}_hook")(lambda *_: calls.append(kind))
    carry_over(old, new)
    for expected in ([kind], [kind]):
        new(torch.ones(1, 2, requires_grad=True)).sum().backward()
        assert calls == expected
        handle.remove()


def test_hooks_with_keywords_follow():
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)

    def hook(module, args, kwargs):
        return (2 * args[0],), kwargs

    old.register_forward_pre_hook(hook, with_kwargs=True)
    carry_over(old, new)
    assert torch.equal(new(torch.ones(2)), old(torch.ones(2)))


def test_copies_an_rnn_that_keeps_a_graph():
    rnn = parametrizations.svd(
        nn.LSTM(2, 3), "weight_hh_l0", num_blocks=4, out_of_bounds="clip"
    ).double()
    assert any(not w.is_leaf for w in rnn._flat_weights)
    twin = copy_model(rnn)
    x = torch.randn(4, 1, 2)
    for module in (rnn, twin):
        module(x)[0].sum().backward()
    originals = [module.parametrizations.weight_hh_l0.original0 for module in (rnn, twin)]
    assert originals[0] is not originals[1]
    assert originals[0].grad.abs().sum() > 0
    assert torch.equal(originals[0].grad, originals[1].grad)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [False, True])
def test_copies_what_a_hook_computed_and_leaves_it(norm):
    linear = nn.Linear(3, 3)
    linear = weight_norm(linear) if norm else prune.l1_unstructured(linear, "weight", 0.5)
    before = linear.weight
    copied = copy_model(nn.Sequential(linear))[0]
    assert linear.weight is before
    assert not before.is_leaf
    x = torch.randn(2, 3)
    assert torch.equal(copied(x), linear(x))
    copied(x).sum().backward()
    assert all(parameter.grad is None for parameter in linear.parameters())
