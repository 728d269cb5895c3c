"""LSTM and GRU in ONNX Runtime, at other batches and lengths than exported."""

import torch
from torch import nn
from torch.export import Dim

from spectral_triton import SpectralGRU, SpectralLSTM

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
TIME, BATCH = Dim("time"), Dim("batch")


class Several(nn.Module):
    """Layers that are given the same input, exported at once."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return [layer(x) for layer in self.layers]


def flat(results):
    if isinstance(results, torch.Tensor):
        return [results.detach()]
    return [tensor for result in results for tensor in flat(result)]


def compare(program, model, *arguments, **tolerance):
    for found, wanted in zip(program(*flat(arguments)), flat(model(*arguments)), strict=True):
        torch.testing.assert_close(found, wanted, **(tolerance or TOLERANCE))


def test_nodes_in_single_precision(onnx_program):
    torch.set_default_dtype(torch.float32)
    both = {"num_layers": 2, "bidirectional": True, "num_reflectors": 2}
    model = Several(
        SpectralLSTM(3, 4, **both),
        SpectralLSTM(3, 4, bias=False),
        SpectralGRU(3, 4, **both),
        SpectralGRU(3, 4, bias=False),
        SpectralLSTM(3, 4, proj_size=2, bidirectional=True),
    )
    program = onnx_program(model, (torch.randn(5, 3, 3),), ({0: TIME, 1: BATCH},))
    # ONNX has no projection of the state.
    assert [program.nodes.count(kind) for kind in ("LSTM", "GRU", "Scan")] == [5, 5, 2]
    for shape in ((9, 2, 3), (1, 1, 3), (40, 3, 3)):
        compare(program, model, torch.randn(shape))
    plain = sum(w.numel() for layer in model.layers for each in layer.all_weights for w in each)
    assert program.size <= plain + 64


def test_scans_in_double_precision(onnx_program):
    model = Several(SpectralLSTM(3, 4, batch_first=True), SpectralGRU(3, 4, batch_first=True))
    program = onnx_program(model, (torch.randn(3, 5, 3),), ({0: BATCH, 1: TIME},))
    assert program.nodes.count("Scan") == 2
    compare(program, model, torch.randn(2, 30, 3))


def test_states_are_inputs(onnx_program):
    torch.set_default_dtype(torch.float32)
    model = SpectralLSTM(3, 4, bidirectional=True)
    state = {1: BATCH}
    example = torch.randn(5, 3, 3), (torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    program = onnx_program(model, example, ({0: TIME, 1: BATCH}, (state, state)))
    compare(program, model, torch.randn(9, 2, 3), (torch.randn(2, 2, 4), torch.randn(2, 2, 4)))


def test_one_sequence_in_half_precision(onnx_program):
    """Without a batch; computed in float32 as by the layer."""
    torch.set_default_dtype(torch.float32)
    model = SpectralGRU(3, 4).half()
    program = onnx_program(model, (torch.randn(5, 3).half(),), ({0: TIME},))
    compare(program, model, torch.randn(9, 3).half(), rtol=1e-3, atol=1e-3)
