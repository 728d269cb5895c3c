"""Cells in a loop against the layer with the same weights, in every precision."""

import contextlib
import copy

import pytest
import torch

from spectral_triton import (
    FixedSpectrum,
    SpectralGRU,
    SpectralGRUCell,
    SpectralLSTM,
    SpectralLSTMCell,
    SpectralRNN,
    SpectralRNNCell,
    cached,
)

CELLS = {
    "rnn": (SpectralRNN, SpectralRNNCell, {"nonlinearity": "relu", "spectrum": FixedSpectrum()}),
    "lstm": (SpectralLSTM, SpectralLSTMCell, {}),
    "gru": (SpectralGRU, SpectralGRUCell, {}),
}


def layer_and_cell(kind, dtype=torch.float32):
    """A layer, and a cell with its weights, whose state moves slowly: rounding would stop it."""
    torch.manual_seed(0)
    layer_type, cell_type, options = CELLS[kind]
    layer = layer_type(3, 8, dtype=torch.float32, **options)
    with torch.no_grad():
        layer.weight_ih_l0.mul_(0.2)
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
        if kind == "lstm":
            layer.bias_ih_l0[8:16] = 6.0
        if kind == "gru":
            layer.bias_ih_l0[8:16] = 4.0
    cell = cell_type(3, 8, dtype=torch.float32, **options)
    cell.load_state_dict({key.replace("_l0", ""): v for key, v in layer.state_dict().items()})
    return layer.to(dtype), cell.to(dtype)


def looped(cell, x, hx=None):
    for step in x:
        hx = cell(step, hx)
    return hx[0] if isinstance(hx, tuple) else hx


@pytest.mark.parametrize("inside", [contextlib.nullcontext, cached])
@pytest.mark.parametrize("kind", CELLS)
def test_a_loop_under_autocast_gives_what_the_layer_gives(kind, inside):
    layer, cell = layer_and_cell(kind)
    x = torch.full((300, 2, 3), 0.1, dtype=torch.float32)
    with torch.no_grad():
        exact = layer(x)[1]
        exact = (exact[0] if kind == "lstm" else exact)[0]
        with torch.autocast("cpu", torch.bfloat16), inside():
            last = looped(cell, x)
    assert last.dtype == torch.float32
    torch.testing.assert_close(last, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CELLS)
def test_a_state_that_is_given_wider_than_the_input_stays_wide(kind, dtype):
    _, cell = layer_and_cell(kind, dtype)
    wide = copy.deepcopy(cell).float()
    x = torch.full((300, 2, 3), 0.1, dtype=dtype)
    h = torch.zeros(2, 8, dtype=torch.float32)
    hx = (h, h) if kind == "lstm" else h
    with torch.no_grad():
        last, exact = looped(cell, x, hx), looped(wide, x.float(), hx)
        assert last.dtype == torch.float32
        torch.testing.assert_close(last, exact, rtol=1e-4, atol=1e-5)
        # Without one it has the dtype of the input, as torch's cells do.
        assert looped(cell, x[:1]).dtype == dtype
        assert looped(cell, x[:2], None).dtype == dtype


@pytest.mark.parametrize("kind", CELLS)
def test_a_float64_module_under_autocast_keeps_its_precision(kind):
    _, cell = layer_and_cell(kind, torch.float64)
    x = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        h = looped(cell, x[None])
    assert h.dtype == torch.float64
    torch.testing.assert_close(h, looped(cell, x[None]))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_hook_on_the_weight_is_called_at_each_step(kind):
    _, cell = layer_and_cell(kind)
    calls = []
    cell.svd_hh.register_forward_hook(lambda *given: calls.append(given))
    with torch.no_grad(), cached():
        state = None
        for x in torch.randn(4, 2, 3, dtype=torch.float32):
            state = cell(x, state)
    assert len(calls) == 4
