"""Input and initial states of recurrent layers, in all the shapes torch.nn.RNN takes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from spectral_triton.validation import check_floating


def check_input(input: Tensor | PackedSequence, input_size: int, batch_first: bool) -> Tensor:
    """The input as (T, B, features), or as the rows of a PackedSequence."""
    if isinstance(input, PackedSequence):
        x = input.data
        expected = "a PackedSequence of features"
    else:
        x = input
        expected = "(B, T, input_size)" if batch_first else "(T, B, input_size)"
        expected += " or, unbatched, (T, input_size)"
    check_floating("input", x)
    if x.dim() not in ((2,) if isinstance(input, PackedSequence) else (2, 3)):
        raise ValueError(f"input must be {expected}, got shape {tuple(x.shape)}")
    if x.shape[-1] != input_size:
        raise ValueError(
            f"input must be {expected} with input_size = {input_size}, got {tuple(x.shape)}"
        )
    if isinstance(input, PackedSequence):
        return x
    if x.dim() == 2:
        return x.unsqueeze(1)
    return x.transpose(0, 1) if batch_first else x


def initial_state(
    hx: Tensor | None,
    x: Tensor,
    shape: tuple[int, int, int],
    batched: bool,
    order: Tensor | None,
) -> Tensor:
    """h_0 as (states, B, n), zero for None, its sequences in the order of a packed batch."""
    if hx is None:
        return x.new_zeros(shape)
    check_floating("hx", hx)
    expected = shape if batched else (shape[0], shape[2])
    if tuple(hx.shape) != expected:
        raise ValueError(f"hx must have shape {expected}, got {tuple(hx.shape)}")
    if hx.device != x.device:
        raise ValueError(f"hx must be on the device of the input, {x.device}, got {hx.device}")
    hx = hx if batched else hx.unsqueeze(1)
    return hx if order is None else torch.index_select(hx, 1, order)
