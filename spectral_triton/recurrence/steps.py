"""Which rows of a batch of sequences belong to which step, padded or packed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """The steps of a recurrence over a flat sequence of rows, in the order in which it runs.

    Step t owns the next ``sizes[t]`` rows, one for each sequence still running, longest first, as
    in a PackedSequence; in a padded batch all have the same number. Going forward in time the
    state loses its last rows as sequences end. Going backward it gains the rows of h0 of the
    sequences that start there.

    Attributes:
        sizes: Rows of each step, never rising.
        reverse: Whether the last step comes first.
    """

    sizes: list[int]
    reverse: bool

    @classmethod
    def of(cls, x: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Steps:
        """Those of (..., T, B, features), or of the rows of a PackedSequence."""
        if batch_sizes is not None:
            return cls(batch_sizes.tolist(), reverse)
        return cls([x.shape[-2]] * x.shape[-3], reverse)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def is_even(self) -> bool:
        """Whether all steps have the same number of rows."""
        return not self.sizes or self.sizes[0] == self.sizes[-1]

    def chunks(self, rows: int, backward: bool = False) -> Iterator[Chunk]:
        """Runs of neighboring steps with about so many rows each, in running order or against."""
        offsets = [0, *accumulate(self.sizes)]
        bounds = [0]
        for step in range(1, len(self) + 1):
            if step == len(self) or offsets[step] - offsets[bounds[-1]] >= rows:
                bounds.append(step)
        pairs = list(pairwise(bounds))
        for first, last in reversed(pairs) if self.reverse != backward else pairs:
            yield Chunk(self, first, last, offsets[first], offsets[last])

    def whole(self) -> Chunk:
        """All steps."""
        return Chunk(self, 0, len(self), 0, sum(self.sizes))


@dataclass(frozen=True)
class Chunk:
    """Steps ``first`` to ``last`` (not included) with the rows ``start`` to ``end``.

    Rows are the second last dimension of every tensor, after any batch dimensions.
    """

    steps: Steps
    first: int
    last: int
    start: int
    end: int

    def of(self, rows: Tensor) -> Tensor:
        """The rows of these steps."""
        return rows.narrow(-2, self.start, self.end - self.start)

    def split(self, rows: Tensor, backward: bool = False) -> list[Tensor]:
        """Those rows step by step, in running order or against it."""
        parts = rows.split(self.steps.sizes[self.first : self.last], -2)
        return list(parts[::-1] if self.steps.reverse != backward else parts)

    def before(self, y: Tensor, h0: Tensor) -> list[tuple[Tensor, slice]]:
        """The states before these steps: pairs of states and of rows of the chunk they go with."""
        sizes, reverse = self.steps.sizes, self.steps.reverse
        if not self.steps.is_even:
            # Elsewhere each piece is a call; on a CPU an index takes twice as long as all pieces.
            states = torch.cat(self._pieces(y, h0), -2) if y.is_cpu else self._gathered(y, h0)
            return [(states, slice(0, self.end - self.start))]
        shift = sizes[0] if reverse else -sizes[0]
        start, end, length = self.start + shift, self.end + shift, self.end - self.start
        if reverse and self.last == len(self.steps):
            own = length - shift
            return [(y.narrow(-2, start, own), slice(0, own)), (h0, slice(own, length))]
        if not reverse and self.first == 0:
            return [(h0, slice(0, -shift)), (y.narrow(-2, 0, end), slice(-shift, length))]
        return [(y.narrow(-2, start, length), slice(0, length))]

    def _pieces(self, y: Tensor, h0: Tensor) -> list[Tensor]:
        """The states before, step by step."""
        sizes, start, pieces = self.steps.sizes, self.start, []
        for step in range(self.first, self.last):
            size = sizes[step]
            if self.steps.reverse:
                after = sizes[step + 1] if step + 1 < len(sizes) else 0
                pieces.append(y.narrow(-2, start + size, after))
                pieces.append(h0.narrow(-2, after, size - after))
            elif step == 0:
                pieces.append(h0)
            else:
                pieces.append(y.narrow(-2, start - sizes[step - 1], size))
            start += size
        return pieces

    def _gathered(self, y: Tensor, h0: Tensor) -> Tensor:
        """Those pieces, by one index."""
        sizes, first, last = self.steps.sizes, self.first, self.last
        own = sizes[first:last]
        if self.steps.reverse:
            others = sizes[first + 1 : last + 1]
            states = torch.cat((h0, y.narrow(-2, self.start + own[0], sum(others))), -2)
            others += [0] * (len(own) - len(others))
        elif first:
            others = sizes[first - 1 : last - 1]
            states = y.narrow(-2, self.start - others[0], sum(others))
        else:
            others = sizes[:1] + sizes[: last - 1]
            states = torch.cat((h0, y.narrow(-2, 0, sum(others[1:]))), -2)
        # On the CPU, where the sizes are, whatever the default device is.
        count, other = torch.tensor((own, others), device="cpu")
        total = self.end - self.start
        start, place, next_size = (
            rows.repeat_interleave(count, output_size=total)
            for rows in (count.cumsum(0) - count, other.cumsum(0) - other, other)
        )
        index = torch.arange(total, device="cpu") - start
        if self.steps.reverse:
            # Sequences that start at a step have the state of h0 before it.
            index = torch.where(index < next_size, index + place + h0.shape[-2], index)
        else:
            index += place
        return states.index_select(-2, index.to(y.device, non_blocking=True))


def rows_at_once(n: int, elements: int, device: torch.device) -> int:
    """Rows of n features to take at once: so many elements on a CPU, to stay in its cache.

    Elsewhere launches are what costs, and it is 2^25, which only limits memory.
    """
    return max(1, (elements if device.type == "cpu" else 1 << 25) // max(1, n))


def flat(rows: Tensor, batch_sizes: Tensor | None) -> Tensor:
    """(..., T, B, features) as (..., rows, features), which packed sequences are already."""
    return rows.flatten(-3, -2) if batch_sizes is None else rows


def carry(h: Tensor, h0: Tensor, size: int) -> Tensor:
    """The state for a step of ``size`` rows: without those that ended, with those that start."""
    has = h.shape[-2]
    if has == size:
        return h
    return (
        h.narrow(-2, 0, size) if has > size else torch.cat((h, h0.narrow(-2, has, size - has)), -2)
    )


def last_rows(y: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Tensor:
    """Where among the rows of all states each sequence has its last one."""
    count = h0.shape[0]
    if reverse or batch_sizes is None:
        first = 0 if reverse else (y.shape[0] - 1) * count
        return torch.arange(first, first + count, device=y.device)
    # On the CPU, where those of packed sequences are, whatever the default device is.
    sequences = torch.arange(count, device=batch_sizes.device)
    steps = (batch_sizes.unsqueeze(1) > sequences).sum(0)
    rows = (batch_sizes.cumsum(0) - batch_sizes)[steps - 1] + sequences
    return rows.to(y.device, non_blocking=True)
