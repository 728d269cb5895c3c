"""Rebasing: W stays, the optimizer forgets the reflectors alone, few of them reach everything."""

import copy

import pytest
import torch
from torch import nn

from spectral_triton import (
    RebaseEvery,
    SigmoidSpectrum,
    SoftplusSpectrum,
    SpectralLSTM,
    SVDLinear,
    SVDWeight,
    parametrizations,
    rebase_,
)

WIDE = SoftplusSpectrum()


def trained(steps=3, optimizer=torch.optim.Adam, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        SVDLinear(6, 6, num_reflectors=(2, 3), base="haar", spectrum=WIDE),
        parametrizations.svd(
            nn.Linear(6, 5), num_reflectors=2, spectrum=WIDE, out_of_bounds="clip"
        ),
        SVDLinear(5, 5),
    )
    optimizer = optimizer(model.parameters(), lr=0.05, **options)
    run(model, optimizer, steps)
    return model, optimizer


def run(model, optimizer, steps):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.Adam, {"foreach": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_w_stays_and_the_optimizer_forgets_the_reflectors_alone(optimizer, options):
    model, optimizer = trained(optimizer=optimizer, **options)
    before = [model[0].weight.detach().clone(), model[1].weight.detach().clone()]
    kept = model[0].svd.raw_singular_values, model[2].svd.left, model[0].bias
    states = [copy.deepcopy(optimizer.state[p]) for p in kept]
    rows = [model[0].svd.left, model[0].svd.right, model[1].parametrizations.weight.original0]
    old = [r.detach().clone() for r in rows]
    assert rebase_(model, optimizer) is model
    for layer, w in zip(model, before, strict=False):
        torch.testing.assert_close(layer.weight, w, rtol=0, atol=1e-12)
    for r, was in zip(rows, old, strict=True):
        assert r not in optimizer.state
        assert not torch.equal(r, was)
    for parameter, state in zip(kept, states, strict=True):
        for name, value in state.items():
            assert torch.equal(
                torch.as_tensor(optimizer.state[parameter][name]), torch.as_tensor(value)
            )
    run(model, optimizer, 2)
    assert (model[0].weight - before[0]).norm() > 1e-3


def test_stacked_gates():
    lstm = SpectralLSTM(3, 5, num_reflectors=2, base="haar")
    with torch.no_grad():
        lstm.svd_hh_l0.left.add_(torch.randn_like(lstm.svd_hh_l0.left))
    before = lstm.weight_hh_l0.detach().clone()
    rebase_(lstm)
    torch.testing.assert_close(lstm.weight_hh_l0, before)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_every_n_steps_and_resumed_to_the_bit(set_to_none):
    model, optimizer = trained(steps=0)
    rebase = RebaseEvery(model, optimizer, steps=2, seed=5)
    run(model, optimizer, 3)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rebase.state_dict()))
    run(model, optimizer, 4)
    again, its_optimizer = trained(steps=0)
    resumed = RebaseEvery(again, its_optimizer, steps=2, seed=99)
    for target, saved in zip((again, its_optimizer, resumed), state, strict=True):
        target.load_state_dict(saved)
    run(again, its_optimizer, 4)
    assert resumed.count == rebase.count == 7
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_it_ends():
    model, optimizer = trained(steps=0)
    rebase = RebaseEvery(model, optimizer, steps=1)
    run(model, optimizer, 1)
    rebase.remove()
    run(model, optimizer, 2)
    assert rebase.count == 1


def fit(num_reflectors, every=None, steps=300, **options):
    """Mean square that is left of a 64 x 64 matrix with σ from 0.5 to 1.5."""
    torch.manual_seed(2)
    u, _, vh = torch.linalg.svd(torch.randn(64, 64))
    target = u * torch.linspace(0.5, 1.5, 64) @ vh
    band = SigmoidSpectrum(center=1.0, margin=0.6)
    weight = SVDWeight(64, 64, num_reflectors=num_reflectors, spectrum=band, **options)
    optimizer = torch.optim.Adam(weight.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rebase = RebaseEvery(weight, optimizer, every) if every else None
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (weight.to_dense() - target).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert rebase is None or rebase.count == steps
    return loss.item()


def test_few_rebased_reflectors_reach_what_all_reach_and_few_alone_do_not():
    every, few = fit(None), fit(16, base="haar")
    rebased = fit(16, 20, base="haar")
    assert rebased < 1.5 * every
    assert few > 2 * every


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: rebase_(3), TypeError, "module must be a torch.nn.Module, got int"),
        (lambda: rebase_(SVDLinear(3, 3)), ValueError, "no weight in module has a base"),
        (
            lambda: rebase_(SVDLinear(3, 3, num_reflectors=1, base="haar"), 0.1),
            TypeError,
            "optimizer must be",
        ),
        (lambda: RebaseEvery(*trained(0), steps=0), ValueError, "steps must be"),
        (
            lambda: RebaseEvery(SVDLinear(2, 2), trained(0)[1], steps=1),
            ValueError,
            "has a base",
        ),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_bases_change_at_the_last_step_of_every_n():
    layer = SVDLinear(4, 4, num_reflectors=2, base="haar", spectrum=WIDE)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    RebaseEvery(layer, optimizer, 2)
    changed = []
    for _ in range(4):
        before = layer.svd.left_base.clone()
        optimizer.zero_grad()
        layer(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        changed.append(not torch.equal(before, layer.svd.left_base))
    assert changed == [False, True, False, True]
