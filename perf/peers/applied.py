"""Ways to apply k reflectors to rows without forming their product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from peers.contender import Contender
from peers.orthogonal import OURS, lapack_form, unit_triangular
from peers.reflections import fasth, reflect_in_turn
from spectral_triton import apply_reflectors, reference

Builder = Callable[[int, int, int, torch.dtype], Contender]


def torch_ormqr(x: Tensor, reflectors: Tensor, transpose: bool = False) -> Tensor:
    """Q x (Qᵀ x) for rows x by torch.ormqr."""
    # From the right with the transpose turned round: x Qᵀ needs no copy of x.
    return torch.ormqr(*lapack_form(reflectors), x, left=False, transpose=not transpose)


def _applied(
    apply: Callable[[Tensor, Tensor], Tensor], prepare: Callable[[Tensor], Tensor]
) -> Builder:
    def build(n: int, k: int, batch: int, dtype: torch.dtype) -> Contender:
        x = torch.randn(batch, n, dtype=dtype, requires_grad=True)
        v = torch.randn(k, n, dtype=dtype, requires_grad=True)

        def expected() -> Tensor:
            return reference.apply_reflectors(x.double(), prepare(v.double())).to(dtype)

        return Contender(lambda: apply(x, v), (x, v), expected if n * k <= 2**14 else None)

    return build


APPLIED: dict[str, Builder] = {
    OURS: _applied(lambda x, v: apply_reflectors(x, v, triangular=True), torch.triu),
    f"{OURS}, any rows": _applied(apply_reflectors, lambda v: v),
    "torch ormqr": _applied(torch_ormqr, unit_triangular),
    "FastH's blocks": _applied(fasth, lambda v: v),
    "loop over reflectors": _applied(reflect_in_turn, lambda v: v),
}
