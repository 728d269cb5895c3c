"""Layers and directions of LSTM and GRU as nodes of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_triton.recurrence import onnx_nodes
from spectral_triton.recurrent.layer import RecurrentLayer


def run_nodes(
    layer: RecurrentLayer,
    kind: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, ...]:
    """Outputs of all steps and the last states, as torch's "lstm" or "gru" returns them."""
    suffixes = layer._suffixes()
    count = len(weights) // len(suffixes)
    last = []
    for first in range(0, len(suffixes), layer.num_directions):
        outputs = []
        for index in range(first, first + layer.num_directions):
            own: list[Tensor | None] = list(weights[index * count : (index + 1) * count])
            if not layer.bias:
                own[2:2] = [None, None]
            given = [state[index] for state in states]
            reverse = index > first
            if kind == "lstm":
                y, *made = onnx_nodes.lstm(x, given, own, reverse, lengths)
            else:
                y, *made = onnx_nodes.gru(x, given[0], own, reverse, lengths)
            outputs.append(y)
            last.append(made)
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if layer.dropout and layer.training and index + 1 < len(suffixes):
            x = torch.nn.functional.dropout(x, layer.dropout)
    return x, *(torch.stack(each) for each in zip(*last, strict=True))
