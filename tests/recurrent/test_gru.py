"""SpectralGRU: order of the gates, states, and what its bound does not say."""

import pytest
import torch

from spectral_triton import reference
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.spectra.spectrum import FixedSpectrum, SigmoidSpectrum, SoftplusSpectrum


def randomize(module, scale=1.0):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return module


def test_is_what_its_formula_says():
    gru = randomize(
        SpectralGRU(2, 3, num_reflectors=2, spectrum=SigmoidSpectrum(center=1.0, margin=0.5))
    )
    weight = gru.svd_hh_l0
    gates = [
        reference.svd_to_dense(
            weight.left[gate].triu(),
            gru.singular_values[0, gate],
            weight.right[gate].triu(),
            weight.signs[gate].sign(),
        )
        for gate in range(3)
    ]
    x, h = torch.randn(5, 2), torch.randn(3)
    output, h_n = gru(x, h.unsqueeze(0))
    for t in range(5):
        of_input = (gru.weight_ih_l0 @ x[t] + gru.bias_ih_l0).view(3, 3)
        bias = gru.bias_hh_l0.view(3, 3)
        of_state = [gates[k] @ h + bias[k] for k in range(3)]
        r, z = (of_input[0] + of_state[0]).sigmoid(), (of_input[1] + of_state[1]).sigmoid()
        n = (of_input[2] + r * of_state[2]).tanh()
        h = (1 - z) * n + z * h
        torch.testing.assert_close(output[t], h, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(h_n[0], h, rtol=1e-12, atol=1e-14)


def test_each_gate_may_have_its_spectrum():
    spectra = [SigmoidSpectrum(), FixedSpectrum(0.5), SoftplusSpectrum(2.0)]
    gru = randomize(SpectralGRU(2, 4, spectrum=spectra), 5.0)
    r, z, n = torch.linalg.svdvals(gru.weight_hh_l0.unflatten(0, (3, 4)))
    assert ((r - 1).abs() <= 0.01 + 1e-14).all()
    torch.testing.assert_close(z, torch.full((4,), 0.5))
    assert (n > 2).all()


def test_bounded_gates_do_not_bound_the_gradient_over_time():
    # One unit whose recurrent weights are all 1, with z = 1/2 and n = -1 at the state 3: the
    # derivative z + (h - n) z (1 - z) is 1.5 although every singular value is 1.
    gru = SpectralGRU(1, 1, spectrum=FixedSpectrum(1.0), num_reflectors=0)
    with torch.no_grad():
        gru.weight_ih_l0.zero_()
        gru.bias_ih_l0.copy_(torch.tensor([0.0, 0.0, -50.0]))
        gru.bias_hh_l0.copy_(torch.tensor([0.0, -3.0, 0.0]))
    assert torch.equal(gru.weight_hh_l0, torch.ones(3, 1))
    h = torch.full((1, 1), 3.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(gru(torch.zeros(1, 1), h)[1].sum(), h)
    torch.testing.assert_close(gradient.item(), 1.5)


def test_states_that_do_not_fit_are_named():
    gru, x = SpectralGRU(2, 5, 2), torch.randn(4, 7, 2)
    with pytest.raises(ValueError, match=r"hx must have shape \(2, 7, 5\), got \(1, 7, 5\)"):
        gru(x, torch.zeros(1, 7, 5))
    with pytest.raises(ValueError, match=r"hx must have shape \(2, 5\), got \(2, 7, 5\)"):
        gru(x[:, 0], torch.zeros(2, 7, 5))
    with pytest.raises(TypeError, match=r"hx must be a torch\.Tensor, got tuple"):
        gru(x, (torch.zeros(2, 7, 5),) * 2)
