"""Input and initial states of recurrent layers, in all the shapes torch.nn.RNN takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from spectral_triton.recurrent.padded import padded_batch
from spectral_triton.runtime.onnx_export import exports_to_onnx
from spectral_triton.runtime.validation import check_floating


def check_input(input: Tensor | PackedSequence, input_size: int, batch_first: bool) -> Tensor:
    """The input as (T, B, features), or as the rows of a PackedSequence."""
    if isinstance(input, PackedSequence):
        if exports_to_onnx():
            raise TypeError(
                "input must be a tensor, as ONNX has no packed sequences: give the padded batch, "
                "and the lengths of its sequences as lengths"
            )
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
        _check_batch_sizes(input.batch_sizes, len(x))
        return x
    if x.dim() == 2:
        return x.unsqueeze(1)
    return x.transpose(0, 1) if batch_first else x


def _check_batch_sizes(batch_sizes: Tensor, rows: int) -> None:
    """Raises unless they are those of so many rows, which nn.utils.rnn.pack_* takes care of."""
    # Not of a program that is traced, which may not look at numbers.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if len(batch_sizes) == 0 or (batch_sizes.diff() > 0).any() or batch_sizes[-1] < 1:
        raise ValueError(
            "batch_sizes of a PackedSequence must be positive and never rise, "
            f"got {batch_sizes.tolist()}"
        )
    if int(batch_sizes.sum()) != rows:
        raise ValueError(
            f"input must have a row for each of the {int(batch_sizes.sum())} steps in batch_sizes "
            f"of the PackedSequence, got {rows}"
        )


def initial_state(
    hx: Tensor | None,
    x: Tensor,
    shape: tuple[int, int, int],
    batched: bool,
    order: Tensor | None,
    name: str = "hx",
) -> Tensor:
    """A state as (states, B, n), zero for None, its sequences in the order of a packed batch."""
    if hx is None:
        return x.new_zeros(shape)
    check_floating(name, hx)
    expected = shape if batched else (shape[0], shape[2])
    if tuple(hx.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(hx.shape)}")
    if hx.device != x.device:
        raise ValueError(f"{name} must be on the device of the input, {x.device}, got {hx.device}")
    hx = hx if batched else hx.unsqueeze(1)
    return hx if order is None else torch.index_select(hx, 1, order)


@dataclass(frozen=True)
class Sequences:
    """Input in the one form that layers compute on, and the way back to the form it came in.

    Attributes:
        x: (T, B, features), or the rows of a PackedSequence.
        packed: The PackedSequence, if it was one.
        batched: False for the input of a single sequence, (T, features).
        batch_first: Whether a batch comes as (B, T, features).
        lengths: Of the sequences of a padded batch, (B,), for an ONNX graph alone.
    """

    x: Tensor
    packed: PackedSequence | None
    batched: bool
    batch_first: bool
    lengths: Tensor | None = None

    @property
    def batch_sizes(self) -> Tensor | None:
        """Sequences at each step of a PackedSequence."""
        return None if self.packed is None else self.packed.batch_sizes

    def state(self, hx: Tensor | None, states: int, state_size: int, name: str = "hx") -> Tensor:
        """An initial state as (states, B, state_size), see :func:`initial_state`."""
        packed = self.packed
        size = self.x.shape[1] if packed is None else int(packed.batch_sizes[0])
        order = None if packed is None else packed.sorted_indices
        return initial_state(hx, self.x, (states, size, state_size), self.batched, order, name)

    def output(self, y: Tensor) -> Tensor | PackedSequence:
        """The outputs of all steps in the form of the input."""
        if self.packed is not None:
            return PackedSequence(y, *self.packed[1:])
        if not self.batched:
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    def last(self, states: Tensor) -> Tensor:
        """The last states (states, B, n) in the form and order of the input."""
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return states.index_select(1, self.packed.unsorted_indices)
        return states if self.batched else states.squeeze(1)


def read_sequences(
    input: Tensor | PackedSequence,
    input_size: int,
    batch_first: bool,
    lengths: Tensor | None = None,
) -> Sequences:
    """Checks the input of a layer and brings it into the form of :class:`Sequences`."""
    if lengths is not None:
        input, lengths = padded_batch(input, lengths, batch_first)
    packed = input if isinstance(input, PackedSequence) else None
    x = check_input(input, input_size, batch_first)
    batched = isinstance(input, PackedSequence) or input.dim() == 3
    return Sequences(x, packed, batched, batch_first, lengths)
