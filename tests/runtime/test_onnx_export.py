"""What parameters are inside torch.onnx.export, and what a graph keeps of them."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from spectral_triton import SpectralRNN, SVDLinear
from spectral_triton.runtime.onnx_export import evaluated, exports_to_onnx, outside_trace


def test_nothing_is_exported_outside():
    assert not exports_to_onnx()
    layer = nn.Linear(2, 3)
    made = evaluated(layer, lambda w: w + layer.weight, layer.weight)
    torch.testing.assert_close(made, 2 * layer.weight.detach())
    assert not made.requires_grad
    assert isinstance(layer.weight, nn.Parameter)


def test_parameters_come_back_after_an_error():
    layer = nn.Linear(2, 3)
    before = layer.weight
    with pytest.raises(ZeroDivisionError):
        evaluated(layer, lambda: 1 / 0)
    assert layer.weight is before


SEEN = []


class Inside(nn.Module):
    """A layer that is used twice, and what is seen while it is exported."""

    def __init__(self):
        super().__init__()
        self.layer = SVDLinear(4, 4)

    def forward(self, x):
        with outside_trace():
            SEEN.append((exports_to_onnx(), (torch.ones(2) + 1).tolist()))
        return self.layer(self.layer(x))


def test_a_layer_that_is_used_twice_is_kept_once(onnx_program):
    model = Inside()
    program = onnx_program(model, (torch.randn(2, 4),), None)
    assert SEEN == [(True, [2.0, 2.0])]
    assert program.size == 4 * 4 + 4
    x = torch.randn(2, 4)
    torch.testing.assert_close(program(x)[0], model(x).detach())
    # And the layer trains on.
    model(x).sum().backward()
    assert model.layer.svd.left.grad is not None


class Computed(nn.Module):
    """Parameters that the model computes, as hypernetworks do."""

    def __init__(self):
        super().__init__()
        self.layer = SVDLinear(4, 4)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        given = {name: self.scale * each for name, each in self.layer.named_parameters()}
        return torch.func.functional_call(self.layer, given, (x,))


def message(model, *arguments):
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as raised:
        torch.onnx.export(model, arguments, dynamo=True, verbose=False)
    return str(raised.value)


def test_what_no_graph_can_hold_is_named():
    pytest.importorskip("onnxscript")
    assert "dense matrix of SVDWeight" in message(Computed(), torch.randn(2, 4))

    class Packs(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = SpectralRNN(2, 3)

        def forward(self, x, y):
            return self.rnn(pack_sequence([x, y]))[1]

    assert "ONNX has no packed sequences" in message(Packs(), torch.ones(3, 2), torch.ones(2, 2))
