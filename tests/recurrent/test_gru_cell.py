"""SpectralGRUCell: step by step it is SpectralGRU, and its gradients are right."""

import torch

from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.gru_cell import SpectralGRUCell


def test_steps_of_a_layer():
    cell, layer = SpectralGRUCell(2, 6, num_reflectors=3), SpectralGRU(2, 6, num_reflectors=3)
    state = {key.replace("_l0", ""): value for key, value in layer.state_dict().items()}
    cell.load_state_dict(state)
    x, h = torch.randn(7, 3, 2), None
    output, h_n = layer(x)
    for t in range(7):
        h = cell(x[t], h)
        torch.testing.assert_close(h, output[t], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(h, h_n[0], rtol=1e-12, atol=1e-14)


def test_gradcheck():
    cell = SpectralGRUCell(1, 2)
    names = [key for key, _ in cell.named_parameters()]

    def state(x, h, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(cell, given, (x, h))

    x, h = (torch.randn(2, size, requires_grad=True) for size in (1, 2))
    assert torch.autograd.gradcheck(state, (x, h, *cell.parameters()))
