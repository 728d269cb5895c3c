"""vmap over inputs, over weights, over gradients, against a loop."""

import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from spectral_triton import HouseholderSVD, SpectralRNN, SpectralRNNCell, spectral_recurrence


def _factors(n, k, dtype=torch.float64):
    return HouseholderSVD(
        torch.randn(k, n, dtype=dtype),
        torch.rand(n, dtype=dtype),
        torch.randn(k, n, dtype=dtype),
    )


@pytest.mark.parametrize(("n", "k"), [(70, 1), (5, 5)], ids=["folded", "dense"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_h0", [False, True])
def test_over_inputs(n, k, reverse, with_h0):
    factors = _factors(n, k)
    x, h0 = torch.randn(4, 3, 2, n), torch.randn(2, n)

    def run(x, h0):
        return spectral_recurrence(x, h0, factors, reverse=reverse)

    mapped = vmap(run, in_dims=(1, None))(x, h0 if with_h0 else torch.zeros(2, n))
    loop = [run(x_i, h0 if with_h0 else None) for x_i in x.unbind(1)]
    torch.testing.assert_close(mapped, torch.stack(loop))


@pytest.mark.parametrize(("n", "k"), [(70, 1), (5, 5)], ids=["folded", "dense"])
def test_gradients_of_each_sample(n, k):
    factors = _factors(n, k)
    x = torch.randn(6, 4, n)

    def loss(left, sample):
        own = HouseholderSVD(left, factors.singular_values, factors.right)
        return spectral_recurrence(sample.unsqueeze(1), None, own).square().sum()

    mapped = vmap(grad(loss), in_dims=(None, 1))(factors.left, x)
    loop = [grad(loss)(factors.left, sample) for sample in x.unbind(1)]
    torch.testing.assert_close(mapped, torch.stack(loop))


@pytest.mark.parametrize(("n", "k"), [(70, 1), (5, 5)], ids=["folded", "dense"])
def test_an_ensemble_of_weights(n, k):
    models = [SpectralRNN(3, n, num_reflectors=k, dtype=torch.float64) for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    x = torch.randn(4, 2, 3)
    mapped, last = vmap(
        lambda p, b: functional_call(models[0], (p, b), (x,)), randomness="different"
    )(parameters, buffers)
    outputs = [model(x) for model in models]
    torch.testing.assert_close(mapped, torch.stack([output for output, _ in outputs]))
    torch.testing.assert_close(last, torch.stack([h_n for _, h_n in outputs]))


@pytest.mark.parametrize("kind", [SpectralRNN, SpectralRNNCell])
def test_ensembles_without_reflectors(kind):
    modules = [kind(2, 65, num_reflectors=0) for _ in range(2)]
    stacked = stack_module_state(modules)
    x = torch.randn(3, 2, 2) if kind is SpectralRNN else torch.randn(3, 2)
    y = vmap(lambda *state: functional_call(modules[0], state, (x,)))(*stacked)
    expected = [module(x) for module in modules]
    for mine, theirs in zip(
        (y if isinstance(y, tuple) else (y,)),
        zip(*[e if isinstance(e, tuple) else (e,) for e in expected], strict=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, torch.stack(theirs), rtol=0, atol=1e-12)
