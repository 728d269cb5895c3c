"""torch.func.vmap for the registered ops of the recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., tuple[tuple[Tensor, ...], tuple[int, ...]]]


def vmap_rule(op: Any, sequences: dict[int, int], packing: int, outputs: tuple[int, ...]) -> Rule:
    """A rule that makes the mapped dimension more sequences, or runs one recurrence after another.

    Args:
        op: The registered op.
        sequences: Position of each argument with one entry a sequence -> its dimension of those.
        packing: Position of ``batch_sizes``: packed sequences cannot be merged.
        outputs: The dimension of the sequences in each output.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        mapped = {i for i, dim in enumerate(in_dims) if dim is not None}
        if mapped <= sequences.keys() and args[packing] is None:
            merged = list(args)
            for i, axis in sequences.items():
                if args[i] is not None:
                    moved = args[i].movedim(in_dims[i], 0) if i in mapped else args[i]
                    moved = moved if i in mapped else moved.expand(size, *moved.shape)
                    merged[i] = moved.movedim(0, axis).flatten(axis, axis + 1)
            split = [
                out.unflatten(axis, (size, out.shape[axis] // size))
                for out, axis in zip(op(*merged), outputs, strict=True)
            ]
            return tuple(split), outputs
        results = [
            op(
                *(
                    a if dim is None else a.select(dim, i)
                    for a, dim in zip(args, in_dims, strict=True)
                )
            )
            for i in range(size)
        ]
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(outputs)

    return rule
