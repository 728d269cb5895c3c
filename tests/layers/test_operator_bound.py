"""Convolutions whose norm as a linear map stays within a bound that the user names."""

import copy
import math

import pytest
import torch
from torch import nn

from spectral_triton import (
    FixedSpectrum,
    SoftplusSpectrum,
    SVDConv1d,
    SVDConv2d,
    SVDConv3d,
    SVDLinear,
    bake,
    cached,
    lipschitz_constant,
)
from spectral_triton.analysis.spectra import spectra
from spectral_triton.svd.bounds import OutOfBoundsError

CASES = [
    (SVDConv1d, (3, 4, 3), {"padding": 1}, (7,)),
    (SVDConv1d, (4, 4, 4), {"stride": 2, "groups": 2, "dilation": 2}, (12,)),
    (SVDConv2d, (3, 4, 3), {"padding": 1}, (5, 4)),
    (SVDConv2d, (3, 2, 3), {"padding": 1, "padding_mode": "circular"}, (4, 6)),
    (SVDConv2d, (2, 3, 3), {"padding": 1, "padding_mode": "reflect"}, (4, 5)),
    (SVDConv2d, (2, 5, 2), {"stride": 2}, (6, 6)),
    (SVDConv3d, (2, 2, 2), {"padding": 1}, (2, 3, 2)),
]


def exact_norm(conv, size):
    shape = (conv.in_channels, *size)
    units = torch.eye(math.prod(shape)).reshape(-1, *shape)
    with torch.no_grad():
        return torch.linalg.svdvals(conv(units).flatten(1))[0]


def wild(kind, sizes, options, bound, **more):
    conv = kind(
        *sizes, bias=False, spectrum=SoftplusSpectrum(), operator_bound=bound, **options, **more
    )
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_(std=2)
        conv.svd.raw_singular_values.add_(9)
    return conv


@pytest.mark.parametrize(("kind", "sizes", "options", "size"), CASES)
@pytest.mark.parametrize("bound", [0.3, 2.0])
def test_the_norm_stays_within_the_bound(kind, sizes, options, size, bound):
    for seed in range(3):
        torch.manual_seed(seed)
        conv = wild(kind, sizes, options, bound)
        assert exact_norm(conv, size) <= bound
        assert exact_norm(conv, size) <= conv.operator_norm_bound() * (1 + 1e-12)
        assert conv.operator_norm_bound() <= bound
        assert lipschitz_constant(conv) <= bound * (1 + 1e-12)
        plain = conv.to_conv()
        torch.testing.assert_close(plain.weight.detach(), conv.weight.detach())
        twin = copy.deepcopy(conv)
        twin.operator_bound = None
        assert exact_norm(twin, size) > bound  # It was needed.


def test_a_kernel_within_the_bound_stays():
    free = SVDConv2d(3, 4, 3, padding=1, spectrum=FixedSpectrum(0.1))
    bound = SVDConv2d(3, 4, 3, padding=1, spectrum=FixedSpectrum(0.1), operator_bound=1.0)
    bound.load_state_dict(free.state_dict())
    assert torch.equal(free.weight, bound.weight)
    assert "operator_bound=1.0" in repr(bound)
    assert set(free.state_dict()) == set(bound.state_dict())


def test_training_stays_inside_and_gradients_are_exact():
    torch.manual_seed(0)
    conv = SVDConv2d(
        2, 3, 3, padding=1, bias=False, spectrum=SoftplusSpectrum(), operator_bound=1.0
    )
    x = torch.randn(2, 2, 5, 5)
    names, values = zip(*conv.named_parameters(), strict=True)

    def output(*given):
        return torch.func.functional_call(conv, dict(zip(names, given, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, values)
    optimizer = torch.optim.SGD(conv.parameters(), lr=10.0)
    for _ in range(5):
        optimizer.zero_grad()
        (-conv(x).square().sum()).backward()
        optimizer.step()
        assert exact_norm(conv, (5, 5)) <= 1


def test_dense_kernels():
    plain = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    with torch.no_grad():
        plain.weight.mul_(5)
    options = {"spectrum": SoftplusSpectrum(), "operator_bound": 1.0}
    with pytest.raises(OutOfBoundsError, match=r"norm as an operator .* operator_bound=1\.0"):
        SVDConv2d.from_conv(plain, **options)
    conv = SVDConv2d.from_conv(plain, out_of_bounds="clip", **options)
    ratio = conv.weight / plain.weight
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    assert 0.8 < exact_norm(conv, (6, 6)) <= 1
    before = conv.weight.detach().clone()
    with pytest.raises(ValueError, match="cannot set weight: the kernel's norm"):
        conv.weight = plain.weight
    conv.weight = before
    torch.testing.assert_close(conv.weight.detach(), before, rtol=3e-3, atol=1e-6)


def test_what_shows_it():
    conv = wild(SVDConv2d, (4, 4, 3), {"padding": 1}, 1.0)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), SVDLinear(4 * 25, 2))
    expected = torch.linalg.svdvals(conv.weight.detach().flatten(1))
    torch.testing.assert_close(spectra(model)["0.svd"], expected)
    torch.testing.assert_close(conv.singular_values.sort(descending=True).values, expected)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(bake(model)(x), model(x))


def test_a_pointwise_one_has_an_inverse():
    conv = wild(SVDConv2d, (3, 3, 1), {}, 0.5)
    conv = SVDConv2d(3, 3, 1, spectrum=FixedSpectrum(2.0), operator_bound=0.5)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(conv.inverse(conv(x)), x)
    expected = 16 * torch.linalg.slogdet(conv.weight[..., 0, 0]).logabsdet
    torch.testing.assert_close(conv.logabsdet((4, 4)), expected)


def test_it_is_formed_once_inside_cached(monkeypatch):
    from spectral_triton.layers import convolution_norms

    calls = []
    original = convolution_norms.norm_bound
    monkeypatch.setattr(convolution_norms, "norm_bound", lambda *a: calls.append(1) or original(*a))
    conv, x = wild(SVDConv1d, (2, 2, 3), {}, 1.0), torch.randn(1, 2, 6)
    with torch.no_grad(), cached():
        first = conv(x)
        assert torch.equal(first, conv(x))
        assert len(calls) == 1
        conv.svd.left.normal_()
        assert not torch.equal(first, conv(x))
        assert len(calls) == 2


def test_autocast_and_compile():
    conv, x = wild(SVDConv2d, (3, 3, 3), {}, 1.0).float(), torch.randn(1, 3, 6, 6).float()
    expected = conv(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv(x), expected)
        assert torch.equal(conv.operator_norm_bound(), conv.operator_norm_bound().float())
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("bad", [0, -1.0, math.inf, math.nan])
def test_bad_bounds(bad):
    with pytest.raises(ValueError, match="operator_bound must be positive and finite"):
        SVDConv1d(2, 2, 3, operator_bound=bad)


def test_no_number():
    with pytest.raises(TypeError, match="operator_bound must be a number or None"):
        SVDConv1d(2, 2, 3, operator_bound="1")
