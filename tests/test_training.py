"""Every layer through what training does to it: the bounds hold, and the weights do change."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from spectral_triton import (
    SVDMLP,
    SigmoidSpectrum,
    SpectralGRU,
    SpectralLSTM,
    SpectralRNN,
    SVDConv1d,
    SVDConv2d,
    SVDConv3d,
    SVDLinear,
    SVDResidualBlock,
    SVDWeight,
    parametrizations,
)
from spectral_triton.models import parameter_groups

BAND = SigmoidSpectrum(center=1.0, margin=0.1)
SVD = {"spectrum": BAND, "num_reflectors": 2}


class Outputs(nn.Module):
    """The outputs of a recurrent layer, without its states."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


MODELS = {
    "SVDLinear": (lambda: SVDLinear(6, 4, **SVD), (5, 6)),
    "SVDConv1d": (lambda: SVDConv1d(4, 6, 3, groups=2, **SVD), (2, 4, 7)),
    "SVDConv2d": (lambda: SVDConv2d(2, 4, 3, **SVD), (2, 2, 5, 5)),
    "SVDConv3d": (lambda: SVDConv3d(2, 3, 2, **SVD), (2, 2, 3, 3, 3)),
    "SVDMLP": (lambda: SVDMLP([5, 4, 4], **SVD), (3, 5)),
    "SVDResidualBlock": (lambda: SVDResidualBlock(4, **SVD), (3, 4)),
    "SpectralRNN": (lambda: Outputs(SpectralRNN(3, 4, 2, init="haar", **SVD)), (6, 2, 3)),
    "SpectralGRU": (lambda: Outputs(SpectralGRU(3, 4, **SVD)), (6, 2, 3)),
    "SpectralLSTM": (lambda: Outputs(SpectralLSTM(3, 4, bidirectional=True, **SVD)), (6, 2, 3)),
    "parametrized nn.Linear": (
        lambda: parametrizations.svd(nn.Linear(6, 4), **SVD, out_of_bounds="clip"),
        (5, 6),
    ),
    "parametrized nn.LSTM": (
        lambda: Outputs(
            parametrizations.svd(
                nn.LSTM(3, 4), "weight_hh_l0", num_blocks=4, spectrum=BAND, out_of_bounds="clip"
            )
        ),
        (6, 2, 3),
    ),
}

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.5, momentum=0.9, nesterov=True, weight_decay=0.3),
    "AdamW, one by one": partial(torch.optim.AdamW, lr=0.3, weight_decay=0.3, foreach=False),
    "AdamW, foreach": partial(torch.optim.AdamW, lr=0.3, weight_decay=0.3, foreach=True),
    "AdamW, fused": partial(torch.optim.AdamW, lr=0.3, weight_decay=0.3, fused=True),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.3, weight_decay=0.3),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.5, weight_decay=0.3),
    "Rprop": partial(torch.optim.Rprop, lr=0.3),
}


def models():
    return pytest.mark.parametrize("name", MODELS)


def build(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    return make(), torch.randn(shape)


def bounded_matrices(model):
    """What must keep its singular values: (matrix, bounds) of every layer of the library."""
    found = []
    for module in model.modules():
        if isinstance(module, SVDWeight):
            found.append((module.to_dense(), module.spectrum.bounds))
        elif "parametrizations" in dict(module.named_children()):
            for name in module.parametrizations:
                weight = getattr(module, name)
                found.append((weight.flatten(1).unflatten(0, (-1, 4)), BAND.bounds))
    assert found
    return found


def check_bounds(model):
    for matrix, (lower, upper) in bounded_matrices(model):
        sigma = torch.linalg.svdvals(matrix.detach().double())
        # A residual block's σ has either sign: svdvals are their absolute values.
        assert (sigma > (lower if lower > 0 else 0) - 1e-5).all()
        assert (sigma < upper + 1e-5).all()


def step(model, optimizer, x):
    optimizer.zero_grad(set_to_none=True)
    loss = (model(x) - 3).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def trained(model):
    """Its parameters without bases, which have no gradient."""
    return [p for p in model.parameters() if p.requires_grad]


@models()
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers(name, optimizer):
    model, x = build(name)
    optimizer = optimizer(model.parameters())
    before = [matrix.detach().clone() for matrix, _ in bounded_matrices(model)]
    output = model(x)
    for _ in range(6):
        assert step(model, optimizer, x).isfinite()
    check_bounds(model)
    for old, (new, _) in zip(before, bounded_matrices(model), strict=True):
        assert (new - old).abs().max() > 1e-3
    assert (model(x) - output).abs().max() > 1e-3


@models()
def test_groups_of_parameters_with_a_schedule(name):
    model, x = build(name)
    groups = parameter_groups(model, lr=0.1, weight_decay=0.5)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    rates = [group["lr"] for group in optimizer.param_groups]
    for _ in range(4):
        step(model, optimizer, x)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] != rates
    check_bounds(model)


@models()
def test_moving_averages(name):
    model, x = build(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(4):
        step(model, optimizer, x)
        averaged.update_parameters(model)
    check_bounds(averaged.module)
    assert (averaged(x) - model(x)).abs().max() > 1e-4


@models()
def test_state_of_model_and_optimizer_goes_on_as_before(name):
    model, x = build(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer, x)
    saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    expected = [step(model, optimizer, x).item() for _ in range(3)]
    other, _ = build(name)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    assert [step(other, other_optimizer, x).item() for _ in range(3)] == expected


@models()
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_activations(name, use_reentrant):
    model, x = build(name)
    results = []
    for run in (model, partial(checkpoint, model, use_reentrant=use_reentrant)):
        leaf = x.clone().requires_grad_()
        model.zero_grad()
        y = run(leaf)
        (y - 3).square().sum().backward()
        results.append([y, leaf.grad, *[p.grad for p in trained(model)]])
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


@models()
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("gradients", [True, False])
def test_traces(name, gradients):
    model, x = build(name)
    with torch.set_grad_enabled(gradients):
        # The check, which records without gradients, compares names of classes too, and those of
        # parametrized modules differ.
        check = not name.startswith("parametrized")
        traced = torch.jit.trace(model.double(), x.double(), check_trace=check)
    # A program knows no numbers, so that a reflector may vanish later.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[:1].zero_()
    other = torch.randn_like(x).double()
    torch.testing.assert_close(traced(other), model(other), rtol=0, atol=1e-12)


@models()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_scaled_gradient(name, dtype):
    model, x = build(name)
    reference = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype):
        loss = (model(x).float() - 3).square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    (reference(x) - 3).square().mean().backward()
    for ours, exact in zip(trained(model), trained(reference), strict=True):
        # Half precision rounds to 0.4 %, a few times on the way, and cancels in short sums.
        assert (ours.grad - exact.grad).norm() <= 0.05 * exact.grad.norm() + 1e-3
    scaler.step(optimizer)
    scaler.update()
    check_bounds(model)
    optimizer.zero_grad()
    scaler.scale(model(x).sum() * float("inf")).backward()
    before = copy.deepcopy(model.state_dict())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 2.0**10
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
