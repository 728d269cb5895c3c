"""Nothing is lost: every matrix has a factored form, shown by making it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from spectral_triton.householder.products import householder_product
from spectral_triton.init import haar_
from spectral_triton.svd.operator import HouseholderSVD


@dataclass(frozen=True)
class FactoringError:
    """What ``HouseholderSVD.from_dense`` made of one matrix.

    Attributes:
        shape: (m, n) of the matrix.
        condition: Its condition number; infinite where half of its singular values are 0.
        dtype: Of the matrix.
        num_reflectors: (left, right) that were used.
        reconstruction: ‖Ŵ − W‖_F / ‖W‖_F, with Ŵ the product of the factors.
        singular_values: The largest error of a σ, relative to the largest σ.
    """

    shape: tuple[int, int]
    condition: float
    dtype: torch.dtype
    num_reflectors: tuple[int, int]
    reconstruction: float
    singular_values: float


def factoring_errors(
    shapes: Iterable[tuple[int, int]],
    conditions: Iterable[float],
    dtypes: Iterable[torch.dtype],
    *,
    seed: int = 0,
) -> list[FactoringError]:
    r"""Factors random matrices of given shapes and condition numbers, and multiplies them out.

    Proved in the paper (theorems 2 to 4; here with p = min(m, n) reflectors a side in place of
    n): every m × n matrix is :math:`U \,\mathrm{diag}(s \circ \sigma)\, V^\top` with products of
    reflectors U and V and signs s. The errors show that the construction is also stable: they are
    of the order of rounding, whatever the condition number. It is a statement about all p
    reflectors and singular values without bounds; with fewer, or with bounds, a layer reaches
    fewer matrices, which is its purpose.

    Args:
        shapes: Pairs (m, n).
        conditions: From 1 to infinity; singular values fall from 1 to its inverse geometrically,
            and for infinity half of them, rounded down, are 0.
        dtypes: float64, float32, bfloat16, ...
        seed: Of the singular vectors, which are uniform.

    Example:
        >>> (error,) = factoring_errors([(5, 3)], [10.0], [torch.float64])
        >>> error.num_reflectors, error.reconstruction < 1e-14
        ((3, 3), True)
    """
    shapes, conditions, dtypes = list(shapes), list(conditions), list(dtypes)
    return [
        factoring_error(matrix_of(m, n, condition, seed=seed).to(dtype), condition)
        for m, n in shapes
        for condition in conditions
        for dtype in dtypes
    ]


def factoring_error(w: Tensor, condition: float = math.nan) -> FactoringError:
    """The error of factoring one matrix (m, n), judged in float64."""
    factors = HouseholderSVD.from_dense(w)
    exact = w.double()
    wide = HouseholderSVD(
        factors.left.double(),
        factors.singular_values.double(),
        factors.right.double(),
        signs=None if factors.signs is None else factors.signs.double(),
        triangular=True,
    )
    sigma = torch.linalg.svdvals(exact)
    found = factors.singular_values.double().sort(descending=True).values
    return FactoringError(
        shape=(w.shape[0], w.shape[1]),
        condition=condition,
        dtype=w.dtype,
        num_reflectors=factors.num_reflectors,
        reconstruction=float((wide.to_dense() - exact).norm() / exact.norm()),
        singular_values=float((found - sigma).abs().max() / sigma.max()),
    )


def matrix_of(m: int, n: int, condition: float, *, seed: int = 0) -> Tensor:
    """A random float64 matrix (m, n) with norm 1 and a given condition number."""
    if not condition >= 1:
        raise ValueError(f"condition must be at least 1, got {condition}")
    p = min(m, n)
    generator = Generator().manual_seed(seed)
    options: dict[str, Any] = {"dtype": torch.float64}
    if math.isinf(condition):
        sigma = (torch.arange(p) < p - p // 2).to(torch.float64)
    else:
        sigma = torch.logspace(0, -math.log10(condition), p, **options)
    u, v = (
        householder_product(haar_(torch.zeros(p, size, **options), generator=generator), p)
        for size in (m, n)
    )
    return u * sigma @ v.mT
