"""What has to be known of reflectors before they are applied: blocks, their factors and scales."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_triton.householder import compact_wy, wy_block
from spectral_triton.householder import op as householder_op
from spectral_triton.runtime.backend import may_launch, reflector_block_size
from spectral_triton.runtime.flop_count import flops_are_counted

# Entries of one matrix of reflectors up to which two of them are prepared together.
SMALL = 1 << 15

# Reflectors in one block at most, and lengths up to which any number of them is one block. Several
# are better where much of a trapezoid is zero and each call has enough to do.
ONE_BLOCK, SHORT = 128, 192

Prepared = tuple[Tensor, Tensor, Tensor]
"""V, T and scale of blocks, (..., m, b, n) and (..., m, b, b), or V, H and scale of one block in WY
form, which has no block dimension and is for one way of the product. The scale (..., k, 1) is what
rows were multiplied by."""


def prepared_plainly(reflectors: Tensor, triangular: bool) -> Prepared:
    """Blocks of the unit rows, in operations with derivatives of every kind."""
    unit, scale = compact_wy.unit_rows(reflectors, triangular)
    v = compact_wy.blocks(unit, compact_wy.BLOCK_SIZE)
    return v, compact_wy.t_factor(v, triangular), scale


@torch.no_grad()
def prepare(
    reflectors: Tensor, triangular: bool, num_vectors: int, transpose: bool = False
) -> Prepared:
    """What the Functions take beside the reflectors, so that their backward can keep it."""
    launched = may_launch(reflectors)
    if not launched and not _fits_one_block(reflectors):
        return prepared_plainly(reflectors.detach(), triangular)
    unit, scale = compact_wy.unit_rows(reflectors.detach(), triangular)
    if not launched:
        return unit, wy_block.half_w(unit, transpose), scale
    size = reflector_block_size(unit, num_vectors) or compact_wy.BLOCK_SIZE
    v = compact_wy.blocks(unit, size)
    flops_are_counted()  # Lets a counter know the op.
    return v, householder_op.t_factor(v), scale


@torch.no_grad()
def prepare_product(reflectors: Tensor, triangular: bool) -> Prepared:
    """What the Function of the product takes: V, H and scale of any number of blocks.

    On every device, as large products of matrices form Q, and no kernel.
    """
    unit, scale = compact_wy.unit_rows(reflectors.detach(), triangular)
    if _fits_one_block(reflectors):
        return unit, wy_block.half_w(unit, False), scale
    v = compact_wy.blocks(unit, compact_wy.BLOCK_SIZE)
    return v, wy_block.half_w(v, False, compact_wy.double_gram(v, triangular)), scale


@torch.no_grad()
def prepare_pair(
    first: Tensor, second: Tensor, triangular: bool, num_vectors: int
) -> tuple[Prepared, Prepared]:
    """The same for two single matrices, the second transposed; at once where they are small.

    Of small matrices the calls cost more than the arithmetic, of large ones the copy.
    """
    small = first.shape == second.shape and first.numel() <= SMALL and _fits_one_block(first)
    if not small or may_launch(first):
        return (
            prepare(first, triangular, num_vectors),
            prepare(second, triangular, num_vectors, transpose=True),
        )
    both = torch.stack((first.detach(), second.detach()))
    unit, scale = compact_wy.unit_rows(both, triangular)
    gram = compact_wy.double_gram(unit)
    return (
        (unit[0], wy_block.half_w(unit[0], False, gram[0]), scale[0]),
        (unit[1], wy_block.half_w(unit[1], True, gram[1]), scale[1]),
    )


def is_one_block(v: Tensor, rows: Tensor) -> bool:
    """Whether a prepared V is one block in WY form; ``rows`` has the dimensions of reflectors."""
    return v.dim() == rows.dim()


def _fits_one_block(reflectors: Tensor) -> bool:
    k, n = reflectors.shape[-2:]
    return k <= ONE_BLOCK or n <= SHORT
