"""SpectralLSTMCell: step by step it is SpectralLSTM, and it checks its pair of states."""

import pytest
import torch

from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.lstm_cell import SpectralLSTMCell


def test_steps_of_a_layer():
    cell, layer = SpectralLSTMCell(2, 6, num_reflectors=3), SpectralLSTM(2, 6, num_reflectors=3)
    state = {key.replace("_l0", ""): value for key, value in layer.state_dict().items()}
    cell.load_state_dict(state)
    x, hx = torch.randn(7, 3, 2), None
    output, (h_n, c_n) = layer(x)
    for t in range(7):
        hx = cell(x[t], hx)
        torch.testing.assert_close(hx[0], output[t], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(hx, (h_n[0], c_n[0]), rtol=1e-12, atol=1e-14)


def test_both_states_are_checked():
    cell, h = SpectralLSTMCell(2, 3), torch.zeros(4, 3)
    with pytest.raises(TypeError, match=r"hx must be a pair \(h_0, c_0\), got Tensor"):
        cell(torch.zeros(4, 2), h)
    with pytest.raises(ValueError, match=r"c_0 of hx must have shape \(4, 3\), got \(3, 3\)"):
        cell(torch.zeros(4, 2), (h, h[:3]))


def test_gradcheck():
    cell = SpectralLSTMCell(1, 2)
    names = [key for key, _ in cell.named_parameters()]

    def states(x, h, c, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(cell, given, (x, (h, c)))

    x, h, c = (torch.randn(2, size, requires_grad=True) for size in (1, 2, 2))
    assert torch.autograd.gradcheck(states, (x, h, c, *cell.parameters()))
