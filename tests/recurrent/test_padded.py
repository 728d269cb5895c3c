"""Padded batches: what packing gives, without packing; and as inputs of an ONNX graph."""

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from spectral_triton import SpectralGRU, SpectralLSTM, SpectralRNN

LENGTHS = torch.tensor([2, 5, 1])
KINDS = (SpectralRNN, SpectralLSTM, SpectralGRU)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_is_packed_run_and_padded(kind, batch_first):
    layer = kind(2, 3, bidirectional=True, batch_first=batch_first)
    x = torch.randn((3, 6, 2) if batch_first else (6, 3, 2))
    packed = pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False)
    expected, state = layer(packed)
    expected, _ = pad_packed_sequence(expected, batch_first, total_length=6)
    for lengths in (LENGTHS, LENGTHS.tolist(), LENGTHS.int()):
        output, last = layer(x, lengths=lengths)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(last, state)


def test_wrong_lengths_are_named():
    rnn, x = SpectralRNN(2, 3), torch.randn(4, 3, 2)
    with pytest.raises(ValueError, match=r"from 1 to T = 4.*\[2, 5, 1\]"):
        rnn(x, lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"\(B,\) = \(3,\), got \(2,\)"):
        rnn(x, lengths=LENGTHS[:2])
    with pytest.raises(TypeError, match=r"integers, got dtype torch.float64"):
        rnn(x, lengths=LENGTHS.double())
    with pytest.raises(ValueError, match=r"three dimensions, got \(4, 2\)"):
        rnn(x[:, 0], lengths=LENGTHS[:1])
    packed = pack_padded_sequence(x, torch.tensor([4, 3, 1]))
    with pytest.raises(ValueError, match="has its own"):
        rnn(packed, lengths=LENGTHS)


class WithLengths(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, lengths):
        results = [layer(x, lengths=lengths) for layer in self.layers]
        return [(y, *(s if isinstance(s, tuple) else (s,))) for y, s in results]


def test_lengths_are_an_input_of_the_graph(onnx_program):
    torch.set_default_dtype(torch.float32)
    layers = [kind(2, 3, bidirectional=True) for kind in KINDS]
    layers.append(SpectralRNN(2, 3, bidirectional=True, nonlinearity="modrelu"))
    batch, model = Dim("batch"), WithLengths(*layers)
    shapes = {0: Dim("time"), 1: batch}, {0: batch}
    program = onnx_program(model, (torch.randn(5, 3, 2), LENGTHS), shapes)
    assert program.nodes.count("Scan") == 2
    x, lengths = torch.randn(8, 4, 2), torch.tensor([8, 3, 1, 7])
    with torch.no_grad():
        expected = [tensor for each in model(x, lengths) for tensor in each]
    for found, wanted in zip(program(x, lengths), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
