"""What follows from the factors of W = U diag(s ∘ σ) Vᵀ without forming W."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from spectral_triton.runtime.validation import (
    check_floating,
    check_number,
    is_integer,
)
from spectral_triton.svd.orthogonal_factor import OrthogonalFactor

if TYPE_CHECKING:
    from typing_extensions import Self


class SLogDet(NamedTuple):
    """Sign and logarithm of the absolute value of a determinant."""

    sign: Tensor
    logabsdet: Tensor


class SVDAlgebra(ABC):
    """The part of :class:`HouseholderSVD` that is linear algebra: nothing here forms W."""

    singular_values: Tensor
    signs: Tensor | None
    _batch: torch.Size

    @property
    @abstractmethod
    def _u(self) -> OrthogonalFactor: ...

    @property
    @abstractmethod
    def _v(self) -> OrthogonalFactor: ...

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(..., m, n)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """That of the factors."""

    @property
    @abstractmethod
    def _signed(self) -> Tensor: ...

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """W x for every vector along the last dimension."""

    @abstractmethod
    def _vectors(self, x: Tensor, name: str = "x") -> tuple[Tensor, torch.Size]: ...

    @abstractmethod
    def __matmul__(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _make(
        self,
        u: OrthogonalFactor,
        singular_values: Tensor,
        v: OrthogonalFactor,
        signs: Tensor | None,
    ) -> Self:
        """The matrix of these factors."""

    def _with(self, u: OrthogonalFactor, singular_values: Tensor, v: OrthogonalFactor) -> Self:
        return self._make(u, singular_values, v, self.signs)

    def solve(self, y: Tensor, *, check_errors: bool = True) -> Tensor:
        r"""The x with W x = y for every vector along the last dimension: undoes :meth:`apply`.

        Exact where W is square, else by least squares of minimum norm. Costs as much as a product
        with W. For columns, as ``torch.linalg.solve`` has them: ``factors.inverse() @ columns``.

        Args:
            y: Shape ``(..., m)``, as :meth:`apply` returns it.
            check_errors: As in :meth:`inverse`; a rectangular W goes through :meth:`pinv`.

        Returns:
            Shape ``(..., n)``, dtype of ``y``.

        Raises:
            TypeError, ValueError: as :meth:`apply`, naming ``y``.
            torch.linalg.LinAlgError: if W is square and a singular value is zero.

        Example:
            >>> factors = HouseholderSVD.from_dense(torch.diag(torch.tensor([1.0, 2.0, 4.0])))
            >>> x = factors.solve(torch.ones(3))
            >>> torch.testing.assert_close(x, torch.tensor([1.0, 0.5, 0.25]))
        """
        is_square = self.shape[-2] == self.shape[-1]
        inverse = self.inverse(check_errors=check_errors) if is_square else self.pinv()
        check_floating("y", y)
        m = self.shape[-2]
        if y.dim() < 1 or y.shape[-1] != m:
            raise ValueError(
                f"y must hold vectors of length {m} along its last dimension, as W of shape "
                f"{tuple(self.shape)} gives them, got y of shape {tuple(y.shape)}"
            )
        inverse._vectors(y, "y")
        return inverse.apply(y)

    def inverse(self, *, check_errors: bool = True) -> Self:
        r"""The inverse :math:`V \mathrm{diag}(s/\sigma) U^\top`, with the same reflectors, at once.

        Args:
            check_errors: Raises where a singular value is zero, which waits for the device; without
                it the inverse has infinite singular values.

        Raises:
            ValueError: if W is not square.
            torch.linalg.LinAlgError: if a singular value is zero.
        """
        self._check_square("inverse")
        if check_errors and (self.singular_values == 0).any():
            raise torch.linalg.LinAlgError("inverse: the matrix has a zero singular value")
        return self._with(self._v, self.singular_values.reciprocal(), self._u)

    def pinv(self, *, rtol: float | None = None) -> Self:
        r"""The pseudoinverse: singular values up to ``rtol`` times the largest count as zero.

        ``rtol`` is max(m, n) times the machine epsilon by default, as in ``torch.linalg.pinv``.
        """
        if rtol is not None:
            check_number("rtol", rtol)
            if rtol < 0:
                raise ValueError(f"rtol must not be negative, got {rtol}")
        else:
            rtol = max(self.shape[-2:]) * torch.finfo(self.dtype).eps
        magnitude = self.singular_values.detach().abs()
        keep = magnitude > rtol * magnitude.amax(-1, keepdim=True)
        inverse = self.singular_values.masked_fill(~keep, 1).reciprocal().masked_fill(~keep, 0)
        return self._with(self._v, inverse, self._u)

    def slogdet(self) -> SLogDet:
        r"""Sign and logarithm of :math:`|\det W| = \prod_i |\sigma_i|`, differentiable, in O(n).

        The sign is that of the signs and singular values, times -1 for every nonzero reflector,
        times that of the bases, where there are any, in O(n³).

        Raises:
            ValueError: if W is not square.

        Example:
            >>> HouseholderSVD.from_dense(torch.diag(torch.tensor([1.0, -2.0]))).slogdet()
            SLogDet(sign=tensor(-1.), logabsdet=tensor(0.6931))
        """
        self._check_square("slogdet")
        sign = self._signed.detach().sign().prod(-1)
        for factor in (self._u, self._v):
            sign = sign * factor.determinant_sign()
        logabsdet = self.singular_values.abs().log().sum(-1)
        return SLogDet(sign.expand(self._batch), logabsdet.expand(self._batch))

    def spectral_norm(self) -> Tensor:
        """The largest absolute singular value, shape (...)."""
        return self.singular_values.abs().amax(-1).expand(self._batch)

    def cond(self) -> Tensor:
        """The largest over the smallest absolute singular value, shape (...); infinite for zero."""
        least = self.singular_values.abs().amin(-1)
        return (self.spectral_norm() / least).masked_fill(least == 0, torch.inf)

    def gram(self, power: float = 1.0) -> Self:
        r"""A power of :math:`W^\top W = V \,\mathrm{diag}(\sigma^2)\, V^\top`, exactly.

        :math:`(W^\top W)^a = V \,\mathrm{diag}(|\sigma|^{2a})\, V^\top`: of shape (n, n), with the
        reflectors of V on both sides, at once. ``W.mT.gram()`` is :math:`W W^\top`; ``gram(0.5)``
        is :math:`|W|`, the symmetric part of :meth:`polar`. W itself has no such shortcut, since U
        and V differ: see :meth:`apply_power`.

        Args:
            power: The exponent a, any number; not below zero where m < n, as :math:`W^\top W` is
                singular then. A negative power of a singular W has infinite singular values.

        Raises:
            TypeError: if ``power`` is not a number.
            ValueError: if it is negative or zero and m < n.

        Example:
            >>> w = torch.randn(4, 3)
            >>> gram = HouseholderSVD.from_dense(w).gram()
            >>> torch.testing.assert_close(gram.to_dense(), w.mT @ w)
        """
        check_number("power", power)
        m, n = self.shape[-2:]
        if power <= 0 and m < n:
            raise ValueError(
                f"power must be positive for a matrix with m < n, shape {tuple(self.shape)}, whose "
                f"WᵀW is singular, got {power}"
            )
        # Of an even power no absolute value, which has no second derivative at zero.
        sigma = self.singular_values if float(power).is_integer() else self.singular_values.abs()
        sigma = sigma.pow(2 * power)
        sigma = torch.nn.functional.pad(sigma, (0, n - sigma.shape[-1])).expand(*self._batch, n)
        v = self._v.completed()
        return self._make(v, sigma, v, None)

    def polar(self) -> tuple[Self, Self]:
        r"""The polar decomposition W = Q P of m ≥ n: orthonormal columns times :math:`|W|`.

        .. math:: Q = U \,\mathrm{diag}(\mathrm{sign}(s \circ \sigma))\, V^\top, \qquad
            P = V \,\mathrm{diag}(|\sigma|)\, V^\top

        Q is the matrix with orthonormal columns nearest to W. A σ of zero counts as positive.

        Raises:
            ValueError: if m < n; decompose ``W.mT`` then.

        Example:
            >>> w = torch.randn(4, 3)
            >>> q, p = HouseholderSVD.from_dense(w).polar()
            >>> torch.testing.assert_close(q @ p.to_dense(), w)
        """
        if self.shape[-2] < self.shape[-1]:
            raise ValueError(f"polar needs m >= n, got shape {tuple(self.shape)}; use W.mT.polar()")
        signs = torch.where(self.singular_values < 0, -1, 1).to(self.dtype)
        return self._with(self._u, signs, self._v), self.gram(0.5)

    def apply_power(self, x: Tensor, exponent: int, *, check_errors: bool = True) -> Tensor:
        r""":math:`W^p x` for a square W, by p products, or by p with the inverse where p < 0.

        Args:
            x: Shape ``(..., n)``, as in :meth:`apply`; rounded to its dtype once, at the end.
            exponent: The integer p.
            check_errors: As in :meth:`solve`, where p < 0.

        Raises:
            TypeError: if ``exponent`` is not an int, or ``x`` not floating point.
            ValueError: if W is not square or shapes do not fit.
            torch.linalg.LinAlgError: if ``exponent`` is negative and W singular.

        Example:
            >>> factors = HouseholderSVD.from_dense(torch.diag(torch.tensor([1.0, 2.0])))
            >>> y = factors.apply_power(torch.ones(2), 3)
            >>> torch.testing.assert_close(y, torch.tensor([1.0, 8.0]))
        """
        self._check_square("apply_power")
        if not is_integer(exponent):
            raise TypeError(f"exponent must be an int, got {exponent!r}")
        rows, batch = self._vectors(x)
        factors: SVDAlgebra = self if exponent >= 0 else self.inverse(check_errors=check_errors)
        y = rows.to(self.dtype)
        if exponent == 0:
            y = y.expand(*batch, *rows.shape[-2:]).clone()
        for _ in range(abs(exponent)):
            y = factors.apply(y)
        return (y.squeeze(-2) if x.dim() == 1 else y).to(x.dtype)

    def frobenius_norm(self) -> Tensor:
        r""":math:`\|W\|_F = \sqrt{\sum_i \sigma_i^2}`, shape (...), differentiable.

        Its square is what weight decay of W would penalise, here in O(p).

        Example:
            >>> layer = SVDLinear(4, 3)
            >>> penalty = 0.5 * 1e-4 * layer.factors.frobenius_norm() ** 2
            >>> torch.testing.assert_close(penalty, 0.5 * 1e-4 * layer.weight.square().sum())
        """
        return torch.linalg.vector_norm(self.singular_values, dim=-1).expand(self._batch)

    def nuclear_norm(self) -> Tensor:
        r""":math:`\|W\|_* = \sum_i |\sigma_i|`, shape (...); a penalty that favours low rank.

        Example:
            >>> HouseholderSVD.from_dense(torch.diag(torch.tensor([3.0, -4.0]))).nuclear_norm()
            tensor(7.)
        """
        return self.singular_values.abs().sum(-1).expand(self._batch)

    def _check_square(self, operation: str) -> None:
        m, n = self.shape[-2:]
        if m != n:
            raise ValueError(f"{operation} needs a square matrix, got shape {tuple(self.shape)}")
