"""Every kind of layer through torch.onnx.export and ONNX Runtime, at other sizes than exported."""

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils import prune

from spectral_triton import (
    SVDMLP,
    SpectralGRU,
    SpectralGRUCell,
    SpectralLSTM,
    SpectralLSTMCell,
    SpectralRNN,
    SpectralRNNCell,
    SVDConv1d,
    SVDConv2d,
    SVDConv3d,
    SVDLinear,
    SVDResidualBlock,
    parametrizations,
)

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
DTYPES = (torch.float32, torch.float64)
TIME, BATCH = Dim("time"), Dim("batch")


class Several(nn.Module):
    """Modules that are given the same input, exported at once."""

    def __init__(self, *modules):
        super().__init__()
        self.members = nn.ModuleList(modules)

    def forward(self, *arguments):
        return [member(*arguments) for member in self.members]


def flat(results):
    if isinstance(results, torch.Tensor):
        return [results.detach()]
    return [tensor for result in results for tensor in flat(result)]


def compare(program, model, *arguments):
    expected, found = flat(model(*arguments)), program(*flat(arguments))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def randomized(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.uniform_(-0.5, 0.5)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_layers_are_plain_products(onnx_program, dtype):
    torch.set_default_dtype(dtype)
    # 6 features, of which few reflectors with a base, and all, and a factored weight of torch.
    model = nn.Sequential(
        SVDLinear(6, 5, num_reflectors=2, base="haar"),
        SVDMLP([5, 7, 4]),
        SVDResidualBlock(4),
        parametrizations.svd(nn.Linear(4, 3, bias=False), out_of_bounds="clip"),
    )
    program = onnx_program(model, (torch.randn(3, 6),), ({0: BATCH},))
    assert program.nodes.count("Gemm") + program.nodes.count("MatMul") == 5
    compare(program, model, torch.randn(11, 6))
    compare(program, model, torch.randn(1, 6))
    # Dense weights and biases, nothing of the factors.
    assert program.size == 5 * 7 + 7 * 6 + 4 * 8 + 4 * 5 + 3 * 4


def test_convolutions(onnx_program):
    torch.set_default_dtype(torch.float32)
    model = nn.Sequential(
        SVDConv1d(2, 4, 3, padding=1, groups=2),
        nn.Unflatten(1, (2, 2)),
        SVDConv2d(2, 3, 2, padding_mode="circular", padding=1, operator_bound=1.0),
        nn.Unflatten(1, (1, 3)),
        SVDConv3d(1, 2, 2, stride=2, bias=False),
        parametrizations.svd(nn.Conv3d(2, 3, 1), num_reflectors=1, out_of_bounds="clip"),
    )
    program = onnx_program(model, (torch.randn(3, 2, 9),), ({0: BATCH},))
    assert program.nodes.count("Conv") == 4
    compare(program, model, torch.randn(5, 2, 9))


def test_cells(onnx_program):
    cells = SpectralRNNCell(3, 4, nonlinearity="modrelu"), SpectralGRUCell(3, 4)
    model = randomized(Several(*cells, SpectralLSTMCell(3, 4)))
    program = onnx_program(model, (torch.randn(2, 3),), (({0: BATCH},),))
    compare(program, model, torch.randn(5, 3))


def test_sequences_and_layers_of_a_model(onnx_program):
    """What stands before and after a recurrent layer, in half precision and with dropout."""
    torch.set_default_dtype(torch.float32)

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 6)
            self.lstm = SpectralLSTM(6, 5, 2, dropout=0.5, batch_first=True, bidirectional=True)
            self.gru = SpectralGRU(10, 4, batch_first=True)
            self.rnn = SpectralRNN(4, 4, batch_first=True, nonlinearity="relu")
            self.head = SVDLinear(4, 3)
            prune.l1_unstructured(self.head.svd, "left", 2)

        def forward(self, tokens):
            y, state = self.gru(self.lstm(self.embed(tokens))[0])
            return self.head(self.rnn(y, state)[0])

    model = Tagger()
    tokens = torch.randint(10, (3, 4))
    program = onnx_program(model, (tokens,), ({0: BATCH, 1: TIME},))
    assert [program.nodes.count(kind) for kind in ("LSTM", "GRU", "RNN")] == [4, 1, 1]
    for shape in ((1, 1), (5, 30)):
        compare(program, model, torch.randint(10, shape))
