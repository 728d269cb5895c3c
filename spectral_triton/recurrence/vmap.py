"""torch.func.vmap for the registered ops of the recurrence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Rule = Callable[..., tuple[tuple[Tensor, ...], tuple[int | None, ...]]]


def _position(op: Any, name: str) -> int:
    """Where the op takes the argument of that name."""
    return [argument.name for argument in op._schema.arguments].index(name)


def batching_rule(op: Any, plain: Callable[..., Sequence[Tensor | None]]) -> Rule:
    """The rule of an op by a function that computes the same with one more leading dimension.

    torch.vmap of that function would not do: it fails inside the rule of a registered op.

    Args:
        op: The registered op, whose ``batch_sizes`` stay as they are.
        plain: Takes what the op takes; may give None in the place of an output.
    """
    packing = _position(op, "batch_sizes")

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


def merging_rule(op: Any, axes: dict[str, int], otherwise: Rule) -> Rule:
    """A rule that makes the mapped dimension more sequences, of which the op then runs more.

    Args:
        op: The registered op; all its outputs have the sequences in dimension 1. Those that its
            ``batch_sizes`` pack cannot be merged.
        axes: Name of each argument with one entry a sequence -> its dimension of those.
        otherwise: The rule where anything else is mapped.
    """
    sequences = {_position(op, name): axis for name, axis in axes.items()}
    packing = _position(op, "batch_sizes")

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
