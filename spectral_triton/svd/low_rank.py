"""The largest singular values of W = U diag(s ∘ σ) Vᵀ, and what is lost with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from spectral_triton.runtime.validation import check_choice, check_integer
from spectral_triton.svd.algebra import SVDAlgebra

if TYPE_CHECKING:
    from typing_extensions import Self


class ThinSVD(NamedTuple):
    """U (..., m, r), the singular values (..., r) and Vᵀ (..., r, n), named as in torch.linalg."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class LowRankAlgebra(SVDAlgebra):
    """The part of :class:`HouseholderSVD` that keeps some of the singular values."""

    def svd(self, rank: int | None = None) -> ThinSVD:
        r"""U, σ and Vᵀ as dense tensors, σ falling: ``torch.linalg.svd`` without a decomposition.

        :math:`W = U \,\mathrm{diag}(S)\, V^\top`, of which the ``rank`` largest singular values are
        kept. A negative one turns its column of U. It costs :math:`4 r (m k_u + n k_v)` operations.
        Gradients are those of the factors, finite also where singular values are equal, where
        those of ``torch.linalg.svd`` are not.

        Args:
            rank: How many singular values r to keep, from 0 to min(m, n); None for all.

        Returns:
            A named tuple of ``U`` (..., m, r), ``S`` (..., r) and ``Vh`` (..., r, n).

        Raises:
            TypeError: if ``rank`` is not an integer.
            ValueError: if it is not between 0 and min(m, n).

        Example:
            >>> w = torch.randn(4, 3)
            >>> factors = HouseholderSVD.from_dense(w)
            >>> U, S, Vh = factors.svd()
            >>> torch.testing.assert_close(U @ S.diag() @ Vh, w)
            >>> torch.testing.assert_close(S, torch.linalg.svdvals(w))
        """
        signed = self._signed.expand(*self._batch, self.singular_values.shape[-1])
        if rank is not None:
            check_integer("rank", rank, 0, signed.shape[-1])
        largest = signed.detach().abs().sort(dim=-1, descending=True, stable=True).indices
        largest = largest[..., :rank]
        kept = signed.gather(-1, largest)
        u, vh = self._u.columns(largest), self._v.columns(largest)
        below = kept.detach() < 0
        negative = below.unsqueeze(-1)
        return ThinSVD(torch.where(negative, -u, u).mT, torch.where(below, -kept, kept), vh)

    def truncate(self, rank: int) -> Self:
        r"""The best approximation of given rank: all but the largest singular values become zero.

        Reflectors are shared and gradients flow. A matrix of low rank can be rewritten with fewer
        reflectors by ``from_dense(factors.truncate(rank).to_dense(), num_reflectors=rank)``.

        Args:
            rank: How many singular values to keep, from 0 to min(m, n).

        Example:
            >>> factors = HouseholderSVD.from_dense(torch.diag(torch.tensor([3.0, 1.0, 2.0])))
            >>> torch.testing.assert_close(
            ...     factors.truncate(2).to_dense(), torch.diag(torch.tensor([3.0, 0.0, 2.0]))
            ... )
        """
        sigma = self.singular_values
        check_integer("rank", rank, 0, sigma.shape[-1])
        kept = sigma.detach().abs().topk(rank, dim=-1).indices
        mask = torch.zeros_like(sigma).scatter(-1, kept, 1)
        return self._with(self._u, sigma * mask, self._v)

    def truncation_error(self, rank: int, norm: str = "frobenius") -> Tensor:
        r"""The distance of W to the nearest matrix of a rank, which :meth:`truncate` gives.

        The root of the sum of squares of the singular values dropped, or the largest of them.

        Args:
            rank: How many singular values are kept, from 0 to min(m, n).
            norm: "frobenius" or "spectral".

        Returns:
            Shape (...), differentiable.

        Raises:
            ValueError: if ``rank`` is out of range or ``norm`` unknown.

        Example:
            >>> factors = HouseholderSVD.from_dense(torch.diag(torch.tensor([3.0, 9.0, 4.0])))
            >>> factors.truncation_error(1), factors.truncation_error(1, "spectral")
            (tensor(5.), tensor(4.))
        """
        check_integer("rank", rank, 0, self.singular_values.shape[-1])
        check_choice("norm", norm, ("frobenius", "spectral"))
        dropped = self.singular_values.abs().sort(-1, descending=True).values[..., rank:]
        if norm == "spectral":
            error = torch.nn.functional.pad(dropped, (0, 1)).amax(-1)
        else:
            error = torch.linalg.vector_norm(dropped, dim=-1)
        return error.expand(self._batch)
