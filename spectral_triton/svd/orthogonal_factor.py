"""One side of W: orthonormal columns made of reflectors and, where there is one, a base."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectral_triton.householder.function import resized
from spectral_triton.householder.products import apply_checked, householder_product


class OrthogonalFactor(NamedTuple):
    r"""Columns :math:`H(v_1) \cdots H(v_k) B`, of shape (..., n, p).

    B, of shape (..., n, p), is the base, and without one the first p columns of the identity.
    """

    reflectors: Tensor
    base: Tensor | None
    triangular: bool

    def coordinates(self, x: Tensor, p: int) -> Tensor:
        """Bᵀ Qᵀ x for vectors (..., N, n) -> (..., N, p)."""
        x = apply_checked(x, self.reflectors, True, self.triangular)
        return resized(x, p) if self.base is None else torch.matmul(x, self.base)

    def combination(self, y: Tensor, *, as_in_training: bool = False) -> Tensor:
        """Q B y for vectors (..., N, p) -> (..., N, n)."""
        n = self.reflectors.shape[-1]
        y = resized(y, n) if self.base is None else torch.matmul(y, self.base.mT)
        return apply_checked(
            y, self.reflectors, False, self.triangular, as_in_training=as_in_training
        )

    def scaled_columns(self, scale: Tensor) -> Tensor:
        """Q B diag(scale) as rows, (..., p, n)."""
        if self.base is None:
            q = householder_product(self.reflectors, triangular=self.triangular)
            return (q[..., : scale.shape[-1]] * scale.unsqueeze(-2)).mT
        rows = self.base.mT * scale.unsqueeze(-1)
        return apply_checked(rows, self.reflectors, False, self.triangular, as_in_training=True)

    def columns(self, indices: Tensor) -> Tensor:
        """Those columns by index, (..., r), as rows (..., r, n)."""
        v = self.reflectors
        if self.base is None:
            rows = v.new_zeros(*indices.shape, v.shape[-1])
            rows = rows.scatter(-1, indices.unsqueeze(-1), 1.0)
        else:
            shape = (*indices.shape[:-1], *self.base.shape[-2:])
            where = indices.unsqueeze(-1).expand(*indices.shape, v.shape[-1])
            rows = self.base.expand(shape).mT.gather(-2, where)
        return apply_checked(rows, v, False, self.triangular)

    def completed(self) -> OrthogonalFactor:
        """The same columns, and others after them that make up a square matrix with them."""
        if self.base is None:
            return self
        n, p = self.base.shape[-2:]
        rest = torch.linalg.qr(self.base.detach(), mode="complete").Q[..., p:]
        return self._replace(base=torch.cat((self.base, rest), -1)) if n > p else self

    def determinant_sign(self) -> Tensor:
        """That of a square factor: -1 for every nonzero reflector, and the base's, in O(n³)."""
        rows = self.reflectors.triu() if self.triangular else self.reflectors
        sign = 1 - 2 * ((rows != 0).any(-1).sum(-1) % 2)
        return sign if self.base is None else sign * torch.linalg.slogdet(self.base.detach()).sign
