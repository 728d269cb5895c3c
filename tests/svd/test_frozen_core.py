"""The core of frozen singular values: used, kept, and never out of date."""

import copy
import gc

import pytest
import torch
from torch import nn

from spectral_triton import FixedSpectrum, SoftplusSpectrum, SVDLinear, SVDWeight, rebase_
from spectral_triton.svd import frozen_core


def frozen(spectrum=None, k=(1, 2)):
    layer = SVDLinear.from_linear(
        nn.Linear(6, 4), num_reflectors=k, spectrum=spectrum or SoftplusSpectrum()
    )
    layer.svd.raw_singular_values.requires_grad_(False)
    with torch.no_grad():
        for rows in (layer.svd.left, layer.svd.right):
            rows.add_(torch.randn_like(rows))
    return layer


def check(layer):
    x = torch.randn(3, 6)
    expected = nn.functional.linear(x, layer.svd.factors.to_dense(), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def core(layer):
    return layer.svd.factors._core


def test_it_is_formed_once():
    layer = frozen()
    assert core(layer) is core(layer)
    check(layer)
    check(SVDLinear(6, 4, num_reflectors=1, base="haar", spectrum=FixedSpectrum(2.0)))
    trained = SVDLinear(6, 4, num_reflectors=1, base="haar")
    assert core(trained) is None
    with torch.no_grad():
        assert core(trained) is None
    assert core(SVDLinear(6, 4, num_reflectors=1, spectrum=FixedSpectrum())) is None


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda svd: svd.raw_singular_values.add_(1.0),
        lambda svd: svd.left_base.neg_(),
        lambda svd: svd.signs.neg_(),
        lambda svd: svd.set_dense_(torch.randn(4, 6)),
        rebase_,
        lambda svd: svd.set_spectrum_(SoftplusSpectrum(0.5), "clip"),
        lambda svd: svd.double().float().double(),
        lambda svd: svd.load_state_dict(frozen().svd.state_dict()),
        lambda svd: setattr(svd, "right_base", nn.Parameter(-svd.right_base, False)),
    ],
)
def test_a_change_is_noticed(change):
    layer = frozen()
    check(layer)
    change(layer.svd)
    check(layer)


def test_training_sigma_again_gives_it_up():
    layer = frozen()
    check(layer)
    layer.svd.raw_singular_values.requires_grad_(True)
    assert core(layer) is None
    check(layer)


def test_derivatives_and_transforms():
    layer, x = frozen(), torch.randn(3, 6, requires_grad=True)
    parameters = [layer.svd.left, layer.svd.right]
    own = torch.autograd.grad(layer(x).square().sum(), [x, *parameters])
    plain = nn.functional.linear(x, layer.svd.factors.to_dense(), layer.bias).square().sum()
    for a, b in zip(own, torch.autograd.grad(plain, [x, *parameters]), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
    state = {name: 2 * p.detach() for name, p in layer.named_parameters()}
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    torch.testing.assert_close(torch.func.functional_call(layer, state, (x,)), other(x))
    check(layer)


def test_it_goes_with_its_layer():
    layer = frozen()
    check(layer)
    count = len(frozen_core._kept)
    del layer
    gc.collect()
    assert len(frozen_core._kept) < count


def test_it_computes_what_the_reflection_adapter_of_peft_does():
    """HRA: W₀ H(u₁) ⋯ H(u_r) with the columns of ``hra_u``, W₀ frozen (Yuan et al., 2024)."""
    linear, r = nn.Linear(8, 5), 4
    u = torch.randn(8, r)
    q = torch.eye(8)
    for i in range(r):
        unit = u[:, i : i + 1] / u[:, i].norm()
        q = q @ (torch.eye(8) - 2 * unit @ unit.mT)
    layer = SVDLinear.from_linear(linear, num_reflectors=(0, r), spectrum=SoftplusSpectrum())
    layer.svd.raw_singular_values.requires_grad_(False)
    with torch.no_grad():
        layer.svd.right.copy_(u.mT.flip(0))
    x = torch.randn(7, 8)
    expected = nn.functional.linear(x, linear.weight @ q, linear.bias)
    torch.testing.assert_close(layer(x), expected)


def test_stacked_matrices_and_half_precision():
    weight = SVDWeight(3, 3, num_blocks=2, num_reflectors=2, base="haar", spectrum=FixedSpectrum())
    x = torch.randn(5, 3)
    torch.testing.assert_close(weight(x), x @ weight.to_dense().mT)
    half = SVDLinear(4, 4, num_reflectors=1, base="haar", spectrum=FixedSpectrum()).bfloat16()
    x = torch.randn(2, 4).bfloat16()
    expected = nn.functional.linear(x.float(), half.svd.to_dense(), half.bias.float())
    torch.testing.assert_close(half(x).float(), expected, rtol=0.01, atol=0.01)
