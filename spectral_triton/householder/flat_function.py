"""What the autograd Functions of reflectors share: how they are mapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spectral_triton.householder.direct_function import DirectFunction


class FlatFunction(DirectFunction):
    """Matrices have one leading batch dimension or none; one that is mapped by vmap joins it."""

    SCALE = -3  # Which argument is a scale, (k, 1) or (M, k, 1)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        is_batched = args[cls.SCALE].dim() - (in_dims[cls.SCALE] is not None) == 3
        moved = []
        for arg, dim in zip(args, in_dims, strict=True):
            if isinstance(arg, Tensor):
                arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
                arg = arg.flatten(0, 1) if is_batched else arg
            moved.append(arg)
        out = cls.apply(*moved)
        outs = out if isinstance(out, tuple) else (out,)
        if is_batched:
            outs = tuple(part.unflatten(0, (size, -1)) for part in outs)
        return (outs, (0,) * len(outs)) if isinstance(out, tuple) else (outs[0], 0)
