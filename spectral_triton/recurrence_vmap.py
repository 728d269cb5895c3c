"""torch.func.vmap for the registered ops of the recurrence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Rule = Callable[..., tuple[tuple[Tensor, ...], tuple[int | None, ...]]]


def batching_rule(plain: Callable[..., Sequence[Tensor | None]], packing: int) -> Rule:
    """The rule of an op by a function that computes the same with one more leading dimension.

    torch.vmap of that function would not do: it fails inside the rule of a registered op.

    Args:
        plain: May give None in the place of an output.
        packing: Position of ``batch_sizes``, which stays as it is.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size, batched = info.batch_size, list(args)
        for i, (arg, dim) in enumerate(zip(args, in_dims, strict=True)):
            if isinstance(arg, Tensor) and i != packing:
                batched[i] = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        outputs = plain(*batched)
        empty = next(a for a in batched if isinstance(a, Tensor)).new_empty(0)
        dims = tuple(None if out is None else 0 for out in outputs)
        return tuple(empty.clone() if out is None else out for out in outputs), dims

    return rule


def merging_rule(op: Any, sequences: dict[int, int], packing: int, otherwise: Rule) -> Rule:
    """A rule that makes the mapped dimension more sequences, of which the op then runs more.

    Args:
        op: The registered op; all its outputs have the sequences in dimension 1.
        sequences: Position of each argument with one entry a sequence -> its dimension of those.
        packing: Position of ``batch_sizes``: packed sequences cannot be merged.
        otherwise: The rule where anything else is mapped.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        mapped = {i for i, dim in enumerate(in_dims) if dim is not None}
        if not mapped <= sequences.keys() or args[packing] is not None:
            return otherwise(info, in_dims, *args)
        merged = list(args)
        for i, axis in sequences.items():
            moved = args[i].movedim(in_dims[i], 0) if i in mapped else args[i]
            moved = moved if i in mapped else moved.expand(size, *moved.shape)
            merged[i] = moved.movedim(0, axis).flatten(axis, axis + 1)
        outputs = tuple(out.unflatten(1, (size, out.shape[1] // size)) for out in op(*merged))
        return outputs, (1,) * len(outputs)

    return rule
