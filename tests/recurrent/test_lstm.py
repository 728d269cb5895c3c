"""SpectralLSTM: order of the gates, projection, pairs of states."""

import pytest
import torch

from spectral_triton import reference
from spectral_triton.recurrent.lstm import SpectralLSTM, read_pair
from spectral_triton.spectra.spectrum import FixedSpectrum, SigmoidSpectrum, SoftplusSpectrum


def test_is_what_its_formula_says():
    lstm = SpectralLSTM(2, 3, num_reflectors=2, spectrum=SigmoidSpectrum(center=1.0, margin=0.5))
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.copy_(torch.randn_like(parameter))
    weight = lstm.svd_hh_l0
    gates = [
        reference.svd_to_dense(
            weight.left[gate].triu(),
            lstm.singular_values[0, gate],
            weight.right[gate].triu(),
            weight.signs[gate].sign(),
        )
        for gate in range(4)
    ]
    x, h, c = torch.randn(5, 2), torch.randn(3), torch.randn(3)
    output, (h_n, c_n) = lstm(x, (h.unsqueeze(0), c.unsqueeze(0)))
    for t in range(5):
        of_input = (lstm.weight_ih_l0 @ x[t] + lstm.bias_ih_l0).view(4, 3)
        bias = lstm.bias_hh_l0.view(4, 3)
        i, f, g, o = (of_input[k] + gates[k] @ h + bias[k] for k in range(4))
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(output[t], h, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(h_n[0], h, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(c_n[0], c, rtol=1e-12, atol=1e-14)


def test_each_gate_may_have_its_spectrum():
    spectra = [SigmoidSpectrum(), FixedSpectrum(0.5), SoftplusSpectrum(2.0), FixedSpectrum(3.0)]
    lstm = SpectralLSTM(2, 4, spectrum=spectra)
    with torch.no_grad():
        lstm.svd_hh_l0.raw_singular_values.copy_(5 * torch.randn(4, 4))
    i, f, g, o = torch.linalg.svdvals(lstm.weight_hh_l0.unflatten(0, (4, 4)))
    assert ((i - 1).abs() <= 0.01 + 1e-14).all()
    torch.testing.assert_close(f, torch.full((4,), 0.5))
    assert (g > 2).all()
    torch.testing.assert_close(o, torch.full((4,), 3.0))
    assert torch.equal(lstm.singular_values[0, 1], torch.full((4,), 0.5))


def test_projection_is_plain_and_transitions_are_rectangular():
    lstm = SpectralLSTM(2, 5, 2, proj_size=3, bidirectional=True)
    assert lstm.weight_hr_l1_reverse.shape == (3, 5)
    assert lstm.weight_ih_l1.shape == (20, 6)
    assert lstm.weight_hh_l0.shape == (20, 3)
    assert lstm.singular_values.shape == (4, 4, 3)
    assert "proj_size=3" in repr(lstm)
    output, (h_n, c_n) = lstm(torch.randn(4, 1, 2))
    assert (output.shape, h_n.shape, c_n.shape) == ((4, 1, 6), (4, 1, 3), (4, 1, 5))


@pytest.mark.parametrize("proj_size", [-1, 5])
def test_projection_out_of_range(proj_size):
    with pytest.raises(ValueError, match=f"proj_size must be .* got {proj_size}"):
        SpectralLSTM(2, 5, proj_size=proj_size)


def test_states_that_do_not_fit_are_named():
    lstm, x = SpectralLSTM(2, 5, 2, proj_size=3), torch.randn(4, 7, 2)
    h, c = torch.zeros(2, 7, 3), torch.zeros(2, 7, 5)
    assert lstm(x, (h, c))[0].shape == (4, 7, 3)
    assert torch.equal(lstm(x, [h, c])[0], lstm(x)[0])
    with pytest.raises(ValueError, match=r"h_0 of hx must have shape \(2, 7, 3\), got \(2, 7, 5\)"):
        lstm(x, (c, c))
    with pytest.raises(ValueError, match=r"c_0 of hx must have shape \(2, 7, 5\), got \(2, 7, 3\)"):
        lstm(x, (h, h))
    with pytest.raises(ValueError, match=r"h_0 of hx must have shape \(2, 3\), got \(2, 7, 3\)"):
        lstm(x[:, 0], (h, c))
    with pytest.raises(TypeError, match=r"hx must be a pair \(h_0, c_0\), got Tensor"):
        lstm(x, h)
    with pytest.raises(TypeError, match="c_0 of hx must be a real floating-point tensor"):
        lstm(x, (h, c.long()))


def test_pairs():
    h, c = torch.zeros(1), torch.ones(1)
    assert read_pair(None) == (None, None)
    assert read_pair((h, c)) == (h, c)
    with pytest.raises(TypeError, match="pair"):
        read_pair((h, c, c))
