"""Recurrences in ONNX Runtime, for every nonlinearity, at other lengths than exported."""

import torch
from torch import nn
from torch.export import Dim

from spectral_triton import SpectralRNN, spectral_recurrence
from spectral_triton.recurrence.nonlinearity import NONLINEARITIES
from spectral_triton.svd.weight import SVDWeight

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SHAPE = {0: Dim("time"), 1: Dim("batch")}


class Each(nn.Module):
    """One layer for every nonlinearity."""

    def __init__(self, options, nonlinearities=NONLINEARITIES):
        super().__init__()
        self.layers = nn.ModuleList(
            SpectralRNN(3, 4, nonlinearity=name, negative_slope=0.3, init="haar", **options)
            for name in nonlinearities
        )
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, x, *state):
        return [tensor for layer in self.layers for tensor in layer(x, *state)]


@torch.no_grad()
def compare(program, model, *arguments):
    for found, expected in zip(program(*arguments), model(*arguments), strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_rnn_nodes_in_both_directions(onnx_program):
    torch.set_default_dtype(torch.float32)
    model = Each({"bidirectional": True, "num_reflectors": 2}, NONLINEARITIES[:4])
    model.layers.append(SpectralRNN(3, 4, 2, bias=False))
    program = onnx_program(model, (torch.randn(5, 3, 3),), (SHAPE,))
    assert program.nodes.count("RNN") == 4 * 2 + 2
    assert "Scan" not in program.nodes
    for shape in ((9, 2, 3), (1, 1, 3), (60, 3, 3)):
        compare(program, model, torch.randn(shape))
    plain = sum(w.numel() for layer in model.layers for each in layer.all_weights for w in each)
    assert program.size <= plain + 64


def test_modrelu_is_a_scan_from_given_states(onnx_program):
    torch.set_default_dtype(torch.float32)
    model = Each({"bidirectional": True}, ("modrelu",))
    shapes = SHAPE, ({1: SHAPE[1]},)
    program = onnx_program(model, (torch.randn(5, 3, 3), torch.randn(2, 3, 4)), shapes)
    assert program.nodes.count("Scan") == 2
    for time, batch in ((9, 2), (1, 1)):
        compare(program, model, torch.randn(time, batch, 3), torch.randn(2, batch, 4))


class ByItself(Each):
    """And the recurrence without a layer."""

    def __init__(self, *options):
        super().__init__(*options)
        self.weight = SVDWeight(3, 3, num_reflectors=2)

    def forward(self, x):
        y = spectral_recurrence(x, None, self.weight.factors, reverse=True)
        return [y, *super().forward(x)]


def test_double_precision_is_a_scan(onnx_program):
    model = ByItself({}, ("tanh", "leaky_relu"))
    program = onnx_program(model, (torch.randn(5, 3, 3),), (SHAPE,))
    assert program.nodes.count("Scan") == 3
    compare(program, model, torch.randn(30, 2, 3))
