"""Bounds from the Fourier symbol against the dense matrix of a convolution, in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectral_triton.layers.symbol import (
    circular_singular_values,
    norm_bound,
    symbol_bound,
)

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def dense(conv, size):
    """The matrix of a convolution without bias, for inputs of one size."""
    count = conv.in_channels * torch.Size(size).numel()
    with torch.no_grad():
        return conv(torch.eye(count).reshape(count, conv.in_channels, *size)).flatten(1).mT


def of_groups(conv):
    return conv.weight.detach().unflatten(0, (conv.groups, -1))


def pairs(conv):
    pads = conv._reversed_padding_repeated_twice
    return [(pads[i], pads[i + 1]) for i in range(len(pads) - 2, -1, -2)]


CIRCULAR = [((3,), (7,), 1), ((3,), (7,), 2), ((3, 5), (5, 6), 1), ((3, 1, 3), (3, 2, 4), 2)]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kernel", "size", "dilation"), CIRCULAR)
def test_singular_values_of_a_circular_convolution(kernel, size, dilation, groups):
    options = {"padding": "same", "padding_mode": "circular", "bias": False}
    kind = CONVOLUTIONS[len(size)]
    conv = kind(4, 2, kernel, dilation=dilation, groups=groups, **options)
    found = circular_singular_values(of_groups(conv), size, conv.dilation)
    expected = torch.linalg.svdvals(dense(conv, size))[: len(found)]
    torch.testing.assert_close(found.sort(descending=True).values, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_norm_is_above_its_bound(data):
    draw = data.draw
    d = draw(st.sampled_from([1, 1, 2, 2, 3]))
    most = {1: 12, 2: 6, 3: 3}[d]
    kernel = [draw(st.integers(1, {1: 6, 2: 4, 3: 2}[d])) for _ in range(d)]
    stride = [draw(st.integers(1, 3)) for _ in range(d)]
    dilation = [draw(st.integers(1, 2)) for _ in range(d)]
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    size = [draw(st.integers(1, most)) for _ in range(d)]
    padding = [draw(st.integers(0, 2)) for _ in range(d)]
    groups = draw(st.integers(1, 2))
    limits = {"circular": size, "reflect": [s - 1 for s in size]}.get(mode, [9] * d)
    padding = [min(p, limit) for p, limit in zip(padding, limits, strict=True)]
    extents = [e * (k - 1) + 1 for e, k in zip(dilation, kernel, strict=True)]
    if any(s + 2 * p < e for s, p, e in zip(size, padding, extents, strict=True)):
        return
    torch.manual_seed(draw(st.integers(0, 1000)))
    conv = CONVOLUTIONS[d](
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        False,
        mode,
    )
    if draw(st.booleans()):
        nn.init.constant_(conv.weight, 0.5)
    exact = torch.linalg.matrix_norm(dense(conv, size), 2)
    for dtype, given_size in itertools.product((torch.float64, torch.float32), (None, size)):
        arguments = (conv.stride, conv.dilation, pairs(conv), mode, given_size)
        bound = norm_bound(of_groups(conv).to(dtype), *arguments)
        assert bound.double() >= exact * (1 - 1e-15), (dtype, given_size)


@pytest.mark.parametrize(
    ("kernel", "stride", "most"),
    [(3, 1, 1.06), (5, 1, 1.12), (3, 2, 1.1), (4, 2, 1.1), (2, 2, 1.001)],
)
def test_bounds_are_tight(kernel, stride, most):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, kernel, stride, kernel // 2, bias=False)
    exact = torch.linalg.matrix_norm(dense(conv, (12, 12)), 2)
    bound = symbol_bound(of_groups(conv), conv.stride, conv.dilation)
    assert exact <= bound <= most * exact


@pytest.mark.parametrize("taps", [3, 4, 5])
def test_the_supremum_lies_between_samples(taps):
    omega = torch.linspace(0, torch.pi, 20001)
    waves = torch.exp(-1j * torch.outer(omega, torch.arange(float(taps))))
    for kernel in torch.randn(40, taps):
        exact = (waves @ kernel.to(waves.dtype)).abs().amax()
        assert exact <= symbol_bound(kernel.reshape(1, 1, 1, -1), (1,), (1,)) <= 1.02 * exact


def test_gradients():
    kernel = torch.randn(2, 2, 3, 3, 2, requires_grad=True)
    for stride in ((1, 1), (2, 1)):
        assert torch.autograd.gradcheck(lambda k, s=stride: symbol_bound(k, s, (1, 1)), kernel)
    zero = torch.zeros(1, 2, 2, 3, requires_grad=True)
    bound = symbol_bound(zero, (1,), (1,))
    bound.backward()
    assert bound == 0
    assert zero.grad.isfinite().all()


def test_traced_and_transformed_programs_have_a_bound_too():
    kernel = torch.randn(2, 1, 4, 3, 3, 3)
    alone = torch.stack([symbol_bound(k, (1, 1), (1, 1)) for k in kernel])
    together = torch.vmap(lambda k: symbol_bound(k, (1, 1), (1, 1)))(kernel)
    assert (0.995 * alone <= together).all()
    assert (together <= 1.02 * alone).all()
    grad = torch.func.grad(lambda k: symbol_bound(k, (1, 1), (1, 1)))(kernel[0])
    own = kernel[0].clone().requires_grad_()
    symbol_bound(own, (1, 1), (1, 1)).backward()
    torch.testing.assert_close(grad, own.grad, rtol=0.03, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_any_scale(scale):
    kernel = torch.randn(1, 4, 3, 3, 3, dtype=torch.float32)
    one, scaled = (symbol_bound(k, (1, 1), (1, 1)) for k in (kernel, kernel * scale))
    torch.testing.assert_close(scaled / scale, one, rtol=1e-3, atol=0)
    assert symbol_bound(kernel * float("nan"), (1, 1), (1, 1)).isnan()


def test_half_precision_and_one_tap():
    kernel = torch.randn(1, 4, 3, 1, 1)
    exact = torch.linalg.matrix_norm(kernel[0, ..., 0, 0], 2)
    torch.testing.assert_close(symbol_bound(kernel, (1, 1), (1, 1)), exact, rtol=0.03, atol=0)
    bound = symbol_bound(kernel.bfloat16(), (1, 1), (1, 1))
    assert bound.dtype == torch.float32
