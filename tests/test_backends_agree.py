"""Both backends give the same values and gradients through the public names."""

import pytest
import torch
from spectral_triton.kernels import compact_wy
from spectral_triton.kernels import recurrence as kernels
from torch import nn

from spectral_triton import (
    HouseholderSVD,
    SpectralRNN,
    SVDLinear,
    apply_reflectors,
    householder_product,
    spectral_recurrence,
    use_backend,
)
from spectral_triton.recurrence.arguments import Arguments
from spectral_triton.recurrence.nonlinearity import NONLINEARITIES
from spectral_triton.recurrence.op import recurrence


@pytest.fixture(autouse=True)
def _on_kernel_device(kernel_device):
    with kernel_device:
        yield


def _both(function, inputs):
    results = []
    for backend in ("triton", "torch"):
        with use_backend(backend):
            outputs = function()
            loss = sum((y**2 * y.detach().cos()).sum() for y in outputs)
            results.append((*outputs, *torch.autograd.grad(loss, inputs)))
    return results


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("n", "k"), [(70, 2), (6, 6)], ids=["folded", "dense"])
def test_recurrence(nonlinearity, reverse, n, k):
    left, right = (torch.randn(k, n, requires_grad=True) for _ in range(2))
    sigma = torch.rand(n, requires_grad=True)
    x, h0 = torch.randn(4, 3, n, requires_grad=True), torch.randn(3, n, requires_grad=True)
    bias = torch.randn(n, requires_grad=True) if nonlinearity == "modrelu" else None
    inputs = [a for a in (x, h0, left, sigma, right, bias) if a is not None]

    def run():
        factors = HouseholderSVD(left, sigma, right)
        options = {"nonlinearity": nonlinearity, "reverse": reverse, "bias": bias}
        return (spectral_recurrence(x, h0, factors, **options),)

    torch.testing.assert_close(*_both(run, inputs))


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize(("n", "k"), [(70, 2), (6, 6)], ids=["folded", "dense"])
def test_recurrence_in_single_precision(nonlinearity, n, k):
    """The kernels' error is at most twice PyTorch's in the same dtype, plus 16 ulp."""
    exact = [torch.randn(k, n), torch.rand(n), torch.randn(k, n)]
    exact += [torch.randn(4, 3, n), torch.randn(3, n), torch.randn(n)]

    def results(dtype):
        inputs = [a.to(dtype).requires_grad_() for a in exact]
        bias = inputs.pop() if nonlinearity == "modrelu" else None

        def run():
            factors = HouseholderSVD(*inputs[:3])
            x, h0 = inputs[3:5]
            return (spectral_recurrence(x, h0, factors, nonlinearity=nonlinearity, bias=bias),)

        return _both(run, inputs[:5] + [bias] * (bias is not None))

    (ours, plain), (_, oracles) = results(torch.float32), results(torch.float64)
    for result, same, oracle in zip(ours, plain, oracles, strict=True):
        ulp = torch.finfo(torch.float32).eps * oracle.abs().max().clamp_min(1.0)
        allowed = 2 * (same - oracle).abs().max() + 16 * ulp
        assert (result - oracle).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transpose", [False, True])
def test_reflectors(transpose, dtype):
    x, v = (torch.randn(5, 9, dtype=dtype, requires_grad=True) for _ in range(2))

    def run():
        return apply_reflectors(x, v, transpose=transpose), householder_product(v)

    torch.testing.assert_close(*_both(run, [x, v]))


@pytest.mark.parametrize("k", [2, None], ids=["folded", "dense"])
def test_packed_bidirectional_rnn(k):
    n = 70 if k else 7
    rnn = SpectralRNN(3, n, 2, bidirectional=True, num_reflectors=k, dtype=torch.float64)
    padded = torch.randn(4, 3, 3, requires_grad=True)

    def run():
        # A list of lengths stays on the CPU, where packing wants it.
        packed = nn.utils.rnn.pack_padded_sequence(padded, [2, 4, 1], enforce_sorted=False)
        output, h_n = rnn(packed)
        return output.data, h_n

    torch.testing.assert_close(*_both(run, [padded, *rnn.parameters()]))


@pytest.mark.parametrize("stride", [2, 0])
def test_bias_of_any_strides(stride):
    rnn = SpectralRNN(3, 70, nonlinearity="modrelu", num_reflectors=2, dtype=torch.float64)
    bias = torch.randn(140).as_strided((70,), (stride,))
    x = torch.randn(5, 2, 3)

    def run():
        return torch.func.functional_call(rnn, {"bias_modrelu_l0": bias}, x)

    torch.testing.assert_close(*_both(run, [*rnn.parameters()][:1]))


def test_only_the_last_state_has_a_gradient():
    rnn = SpectralRNN(3, 70, num_reflectors=2, dtype=torch.float64)
    x = torch.randn(5, 2, 3, requires_grad=True)
    torch.testing.assert_close(*_both(lambda: rnn(x)[1:], [x, *rnn.parameters()]))


def test_linear():
    layer = SVDLinear(9, 6, dtype=torch.float64)
    x = torch.randn(4, 9, requires_grad=True)
    torch.testing.assert_close(*_both(lambda: (layer(x),), [x, *layer.parameters()]))


def test_weight_that_takes_several_programs():
    n = 130
    weight = (torch.randn(n, n) / n**0.5).requires_grad_()
    x, h0 = torch.randn(2, 3, n, requires_grad=True), torch.randn(3, n, requires_grad=True)
    options = (None, "tanh", 0.0, False)
    arguments = Arguments(x, None, None, h0, None, weight, None, None, *options)
    torch.testing.assert_close(*_both(lambda: recurrence(arguments), [x, h0, weight]))


def test_backward_keeps_what_its_forward_was_forced_to(monkeypatch):
    launched = []
    backward = kernels.dense_bwd
    monkeypatch.setattr(kernels, "dense_bwd", lambda *a: launched.append(1) or backward(*a))
    x = torch.randn(2, 1, 3, requires_grad=True)
    factors = HouseholderSVD(torch.randn(2, 3), torch.rand(3), torch.randn(2, 3))
    for name, launches in (("triton", 1), ("torch", 1)):
        with use_backend(name):
            y = spectral_recurrence(x, None, factors)
        y.sum().backward()
        assert len(launched) == launches


def test_backward_of_reflectors_keeps_it_too(monkeypatch):
    launched = []
    backward = compact_wy.apply_bwd
    monkeypatch.setattr(compact_wy, "apply_bwd", lambda *a: launched.append(1) or backward(*a))
    x, v = torch.randn(2, 9, requires_grad=True), torch.randn(2, 9, requires_grad=True)
    for name, launches in (("triton", 1), ("torch", 1)):
        with use_backend(name):
            y = apply_reflectors(x, v)
        y.sum().backward()
        assert len(launched) == launches
