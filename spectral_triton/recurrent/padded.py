"""Padded batches with the lengths of their sequences, without a PackedSequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from spectral_triton.runtime.onnx_export import exports_to_onnx
from spectral_triton.runtime.validation import check_floating


def run_padded(layer: Any, input: Tensor | PackedSequence, hx: Any, lengths: Any) -> Any:
    """What the layer gives for a padded batch: packed, run, and padded again with zeros."""
    first = layer.batch_first
    input, lengths = padded_batch(input, lengths, first)
    # Sorting and packing need to know them on the host.
    packed = pack_padded_sequence(input, lengths.cpu(), first, enforce_sorted=False)
    output, last = layer.forward(packed, hx)
    padded, _ = pad_packed_sequence(output, first, total_length=input.shape[1 if first else 0])
    return padded, last


def padded_batch(
    input: Tensor | PackedSequence, lengths: Any, batch_first: bool
) -> tuple[Tensor, Tensor]:
    """The input, which has to be a batch, and the lengths of its sequences as a tensor."""
    if isinstance(input, PackedSequence):
        raise ValueError("lengths belong to a padded batch; a PackedSequence has its own")
    check_floating("input", input)
    if input.dim() != 3:
        raise ValueError(
            f"lengths belong to a batch, input of three dimensions, got {tuple(input.shape)}"
        )
    time, batch = (input.shape[index] for index in ((1, 0) if batch_first else (0, 1)))
    given = torch.as_tensor(lengths)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got dtype {given.dtype}")
    if tuple(given.shape) != (batch,):
        raise ValueError(f"lengths must have shape (B,) = {(batch,)}, got {tuple(given.shape)}")
    if not exports_to_onnx() and bool(((given < 1) | (given > time)).any()):
        raise ValueError(
            f"lengths must be from 1 to T = {time}, the steps of the input, got {given.tolist()}"
        )
    return input, given
