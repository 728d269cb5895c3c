r"""Bases: orthonormal U₀ and V₀ that few reflectors start from, drawn or taken from a matrix.

.. math:: W = Q_u U_0 \,\mathrm{diag}(s \circ \sigma)\, V_0^\top Q_v^\top

A base is not trained and stays in float32 at least. Where it is drawn or taken, Q is the identity
exactly and yet has gradients: reflectors come in equal pairs, H(v) H(v) = I, and the base absorbs
one that is left over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from spectral_triton import init as reflector_init
from spectral_triton.householder.products import apply_reflectors, householder_product
from spectral_triton.runtime.validation import full_precision


@torch.no_grad()
def orthonormalized(base: Tensor) -> Tensor:
    """The orthonormal columns next to nearly orthonormal ones, by QR with a positive diagonal."""
    q, r = torch.linalg.qr(base)
    return q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1, 1).unsqueeze(-2)


@torch.no_grad()
def draw_base(
    shape: Sequence[int], like: Tensor, init: str, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""U₀ (..., m, p) and V₀ (..., n, p) for ``shape`` (..., m, n), in the dtype of ``like``.

    "haar" draws both uniformly. The other starts of ``spectral_triton.init`` turn W to what they
    are named for, between the same uniform directions: :math:`U_0 = D O, V_0 = O`, filled with
    zeros, with O uniform on O(p), and D the identity or plane rotations.
    """
    *batch, m, n = shape
    p = min(m, n)

    def normal(rows: int, columns: int) -> Tensor:
        size = (*batch, rows, columns)
        return torch.randn(size, dtype=like.dtype, device=like.device, generator=generator)

    if init == "haar":
        return orthonormalized(normal(m, p)), orthonormalized(normal(n, p))
    v = orthonormalized(normal(p, p))
    left, right = v.new_empty(*batch, p, p), v.new_empty(*batch, p, p)
    getattr(reflector_init, f"{init}_")(left, right, generator=generator)
    u = apply_reflectors(apply_reflectors(v.mT, right, transpose=True), left).mT
    return (torch.nn.functional.pad(a, (0, 0, 0, size - p)) for a, size in ((u, m), (v, n)))  # type: ignore[return-value]


@torch.no_grad()
def draw_pairs_(reflectors: Tensor, base: Tensor, generator: Generator | None = None) -> None:
    """Draws reflectors (..., k, n) whose product with the base (..., n, p) stays as it is.

    Row 2i + 1 equals row 2i; the base absorbs the last one of an odd number.
    """
    k = reflectors.shape[-2]
    rows = torch.randn(
        reflectors.shape,
        dtype=full_precision(reflectors.dtype),
        device=reflectors.device,
        generator=generator,
    )
    # Whole rows act here, so all are as long as the first of a triangular form.
    rows *= rows.shape[-1] ** 0.5 / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    pairs = k // 2
    rows[..., 1 : 2 * pairs : 2, :] = rows[..., 0 : 2 * pairs : 2, :]
    reflectors.copy_(rows)
    if k % 2:
        last = reflectors[..., -1:, :].to(base.dtype)
        base.copy_(apply_reflectors(base.mT, last).mT)


@torch.no_grad()
def rebased(reflectors: Tensor, base: Tensor, generator: Generator | None = None) -> Tensor:
    """Redraws the reflectors in place, and returns the base that holds what they had made of it.

    In float64 and orthonormal again, so that errors do not add up.
    """
    wide = torch.float64 if base.device.type != "mps" else base.dtype
    folded = householder_product(reflectors.to(wide)) @ base.to(wide)
    folded = orthonormalized(folded)
    draw_pairs_(reflectors, folded, generator)
    return folded.to(base.dtype)
