r"""The factored matrix W = U diag(s ∘ σ) Vᵀ as an operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from spectral_triton.householder import lapack
from spectral_triton.householder.function import apply_factors
from spectral_triton.householder.prepared import SMALL
from spectral_triton.householder.products import (
    apply_checked,
    count_for_rule,
    forms_product,
)
from spectral_triton.runtime.backend import may_launch
from spectral_triton.runtime.forward_mode import functions_serve
from spectral_triton.runtime.sharding import gathered
from spectral_triton.runtime.validation import (
    broadcast_batch,
    check_device,
    check_factors,
    check_precision,
    full_precision,
    without_autocast,
)
from spectral_triton.svd.factorization import factor_dense
from spectral_triton.svd.low_rank import LowRankAlgebra
from spectral_triton.svd.orthogonal_factor import OrthogonalFactor

if TYPE_CHECKING:
    from typing_extensions import Self


def forms_dense_of_base(num_vectors: float, m: int, n: int) -> bool:
    """Whether W is formed where U or V has a base, few reflectors being free beside it.

    Forward and backward together, in multiply-adds: two thin products each way, against three with
    W, forming it and the two products that its gradient takes on the way back.
    """
    p = min(m, n)
    return 3 * num_vectors * m * n + 3 * p * m * n < 2 * num_vectors * p * (m + n)


def forms_dense(
    num_vectors: float, out_features: int, in_features: int, num_left: int, num_right: int
) -> bool:
    r"""Whether W is formed and multiplied with, rather than its factors applied one by one.

    For N vectors, forming W pays where, with p = min(m, n),

    .. math:: 4p(m k_u + n k_v) + 0.8\, N m n < 4 N (m k_u + n k_v).

    The terms count operations, but for the 0.8, which counting would make 2: one large product runs
    faster than many thin ones. With it the rule turns where forward and backward together do, as
    measured for n = 256 to 1024 and k = n/8 to n on two CPU cores: at N of about n for k = n,
    1.3 n for k = n/2, and never below k = n/10.
    """
    factors = 4 * (out_features * num_left + in_features * num_right)
    forming = min(out_features, in_features) * factors
    return forming + 0.8 * num_vectors * out_features * in_features < num_vectors * factors


class HouseholderSVD(LowRankAlgebra):
    r"""A matrix held as orthogonal factors and singular values, used without being formed.

    .. math:: W = U \,\mathrm{diag}(s \circ \sigma)\, V^\top, \qquad
        U = H(u_1) \cdots H(u_{k_u})\, U_0, \quad V = H(v_1) \cdots H(v_{k_v})\, V_0

    with p = min(m, n). The bases :math:`U_0` and :math:`V_0` have p orthonormal columns: those of
    the identity, or of any matrix that few reflectors are to start from. A product with one vector
    costs :math:`4(m k_u + n k_v)` operations, and 2 p (m + n) more with bases; for many vectors W
    is formed where :func:`forms_dense` finds that cheaper. Gradients reach all three factors and
    the vectors, any number of times. All arithmetic is in float32 at least, also under autocast:
    factors of half precision are converted on construction.

    Vectors lie along the last dimension in all methods (``apply``, ``solve``), as in ``nn.Linear``;
    ``@`` alone takes columns, as ``torch.matmul``.

    With nonzero reflectors and positive singular values the sign of det W is fixed: each reflector
    contributes -1, so gradient descent cannot cross from one sign to the other. ``signs`` holds
    what reflectors and positive σ cannot express; a signed σ (``SignedSpectrum``) can cross zero.
    Products of n reflectors reach all of O(n); products of k < n only those orthogonal matrices
    that leave an (n - k)-dimensional space fixed.

    Args:
        left: Reflectors of U as rows, shape ``(..., k_u, m)`` with ``k_u <= m``.
        singular_values: σ, shape ``(..., p)``, of any sign.
        right: Reflectors of V as rows, shape ``(..., k_v, n)`` with ``k_v <= n``.
        signs: ±1, shape ``(..., p)``; None for all +1.
        triangular: Row i of the reflectors takes part from column i on.
        left_base: :math:`U_0`, orthonormal columns, shape ``(..., m, p)``; None for the first p
            columns of the identity. Taken as it is, and no gradient reaches it.
        right_base: :math:`V_0`, shape ``(..., n, p)``, likewise.
        core: :math:`U_0 \mathrm{diag}(s \circ \sigma) V_0^\top`, where it is at hand and σ has no
            gradient: products with vectors take it.

    Raises:
        TypeError: if a factor is not a real floating point tensor, or dtypes differ.
        ValueError: if shapes do not fit together.

    Example:
        >>> factors = HouseholderSVD(torch.randn(2, 4), torch.rand(3) + 0.5, torch.randn(1, 3))
        >>> w, x = factors.to_dense(), torch.randn(3)
        >>> torch.testing.assert_close(factors @ x, w @ x)
        >>> torch.testing.assert_close(factors.pinv() @ (w @ x), x)

    References:
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """

    # NumPy leaves the product with an array to __matmul__, which refuses it.
    __array_ufunc__ = None
    # Pickles of before there were bases have none.
    left_base: Tensor | None = None
    right_base: Tensor | None = None
    _core: Tensor | None = None

    def __init__(
        self,
        left: Tensor,
        singular_values: Tensor,
        right: Tensor,
        *,
        signs: Tensor | None = None,
        triangular: bool = False,
        left_base: Tensor | None = None,
        right_base: Tensor | None = None,
        core: Tensor | None = None,
    ) -> None:
        self._batch = check_factors(left, singular_values, right, signs, left_base, right_base)
        self.left, self.right = _widen(left), _widen(right)
        self.singular_values = _widen(singular_values)
        self.signs = None if signs is None else _widen(signs)
        self.left_base = None if left_base is None else _widen(left_base).detach()
        self.right_base = None if right_base is None else _widen(right_base).detach()
        self.triangular = triangular
        self._core = core

    @classmethod
    def from_dense(
        cls,
        w: Tensor,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        bounds: tuple[float, float] | None = None,
        out_of_bounds: str = "raise",
    ) -> Self:
        r"""Factors a dense matrix, in triangular form.

        Exact up to rounding, computed in float32 for half precision. Fewer than p = min(m, n)
        reflectors per side suffice by themselves for special matrices, such as those of lower
        rank; for others the singular vectors become the bases, and the reflectors are drawn in
        pairs that cancel. No gradient flows to ``w``.

        Args:
            w: The matrix, shape ``(..., m, n)``.
            num_reflectors: None for p per side, an int or a pair (left, right).
            bounds: Interval that the singular values must lie in; values outside by no more than
                the rounding error of the decomposition are moved onto the bound.
            out_of_bounds: "raise", or "clip" to move singular values into the bounds.

        Raises:
            TypeError: if ``w`` is not a real floating point tensor.
            ValueError: if ``w`` is not finite, a singular value is out of bounds, or
                ``num_reflectors`` is out of range.

        Example:
            >>> w = torch.randn(4, 3)
            >>> torch.testing.assert_close(HouseholderSVD.from_dense(w).to_dense(), w)
            >>> few = HouseholderSVD.from_dense(w, num_reflectors=1)
            >>> torch.testing.assert_close(few.to_dense(), w)
        """
        found = factor_dense(
            w, num_reflectors, bounds=bounds, out_of_bounds=out_of_bounds, base="if needed"
        )
        return cls(**found._asdict(), triangular=found.left_base is None)

    @property
    def shape(self) -> torch.Size:
        """(..., m, n)."""
        return torch.Size((*self._batch, self.left.shape[-1], self.right.shape[-1]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the factors and their arithmetic: float32 or float64."""
        return self.left.dtype

    @property
    def device(self) -> torch.device:
        return self.left.device

    @property
    def num_reflectors(self) -> tuple[int, int]:
        """(k_u, k_v)."""
        return self.left.shape[-2], self.right.shape[-2]

    @property
    def has_base(self) -> bool:
        """Whether U or V has a base beside its reflectors."""
        return self.left_base is not None or self.right_base is not None

    @property
    def mT(self) -> Self:
        """The transposed matrix, sharing all factors."""
        return self._with(self._v, self.singular_values, self._u)

    T = mT

    def __repr__(self) -> str:
        return (
            f"HouseholderSVD(shape={tuple(self.shape)}, num_reflectors={self.num_reflectors}, "
            f"dtype={self.dtype}, device={self.device})"
        )

    def __matmul__(self, x: Tensor) -> Tensor:
        """W x for x (n,) or (..., n, B), as torch.matmul has it."""
        if not isinstance(x, Tensor):
            return NotImplemented
        if x.dim() < 2:
            return self.apply(x)
        check_precision("x", x, self.dtype)
        if x.shape[-2] != (n := self.shape[-1]):
            raise ValueError(
                f"x must hold columns of length {n}, shape (..., {n}, B), in W @ x with W of shape "
                f"{tuple(self.shape)}, got x of shape {tuple(x.shape)}"
            )
        return self.apply(x.mT).mT

    def __rmatmul__(self, x: Tensor) -> Tensor:
        """x W for x (m,) or (..., B, m), as torch.matmul has it."""
        if not isinstance(x, Tensor):
            return NotImplemented
        check_precision("x", x, self.dtype)
        m = self.shape[-2]
        if x.dim() > 0 and x.shape[-1] != m:
            raise ValueError(
                f"x must hold rows of length {m}, shape (..., B, {m}), in x @ W with W of shape "
                f"{tuple(self.shape)}, got x of shape {tuple(x.shape)}"
            )
        return self.mT.apply(x)

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        r"""W x + b for every vector along the last dimension: ``torch.nn.functional.linear``.

        Args:
            x: Shape ``(..., n)``; of half precision, or of the dtype of the factors. With batched
                factors it broadcasts as in ``torch.matmul(x, W.mT)``.
            bias: b, shape ``(m,)``, of half precision or of the dtype of the factors.

        Returns:
            Shape ``(..., m)``, dtype of ``x``, rounded once from the arithmetic of the factors.
            Without derivatives large factors may go to LAPACK, as in :func:`apply_reflectors`.

        Raises:
            TypeError: if ``x`` or ``bias`` is not real floating point, or of another full
                precision.
            ValueError: if shapes do not fit.

        Example:
            >>> factors = HouseholderSVD.from_dense(torch.diag(torch.tensor([1.0, 2.0])))
            >>> y = factors.apply(torch.ones(5, 2))
            >>> torch.testing.assert_close(y[0], torch.tensor([1.0, 2.0]))
        """
        m, n = self.left.shape[-1], self.right.shape[-1]
        rows, batch = self._vectors(x)
        if bias is not None:
            check_precision("bias", bias, self.dtype)
            if bias.shape != (m,):
                raise ValueError(f"bias must have shape (m,) = ({m},), got {tuple(bias.shape)}")
            bias = gathered(bias).to(self.dtype)
        num_vectors = rows.shape[-2] * math.prod(batch) / max(math.prod(self._batch), 1)
        with without_autocast(x.device.type):
            y = rows.to(self.dtype)
            way = self._way(y, num_vectors)
            if way == "dense" and not self._batch:
                y = torch.nn.functional.linear(y, self.to_dense(), bias)
                bias = None
            elif way == "dense":
                y = torch.matmul(y, self.to_dense().mT)
            elif way == "at once":
                batch = y.shape[:-1]
                y = y if len(batch) == 1 else y.flatten(0, -2)
                y = apply_factors(y, self.left, self._signed, self.right, bias, self.triangular)
                y = y if len(batch) == 1 else y.reshape(*batch, m)
                bias = None
            else:
                if self._core is not None:
                    y = apply_checked(y, self.right, True, self.triangular)
                    y = apply_checked(y @ self._core.mT, self.left, False, self.triangular)
                else:
                    y = self._v.coordinates(y, min(m, n)) * self._signed.unsqueeze(-2)
                    y = self._u.combination(y)
            if bias is not None:
                y = y + bias
        return (y.squeeze(-2) if x.dim() == 1 else y).to(x.dtype)

    def _vectors(self, x: Tensor, name: str = "x") -> tuple[Tensor, torch.Size]:
        """x as rows (..., B, n), and the batch dimensions of a product with them."""
        check_precision(name, x, self.dtype)
        check_device(name, x, self.device, "the factors")
        n = self.right.shape[-1]
        if x.dim() < 1 or x.shape[-1] != n:
            raise ValueError(
                f"{name} must hold vectors of length {n} along its last dimension for a matrix of "
                f"shape {tuple(self.shape)}, got {name} of shape {tuple(x.shape)}"
            )
        rows = x.unsqueeze(0) if x.dim() == 1 else x
        try:
            return rows, broadcast_batch(rows.shape[:-2], self._batch)
        except RuntimeError:
            raise ValueError(
                f"batch dimensions of {name} of shape {tuple(x.shape)} must broadcast with those "
                f"of a matrix of shape {tuple(self.shape)}"
            ) from None

    def _way(self, x: Tensor, num_vectors: float) -> Literal["dense", "at once", "in turn"]:
        """How W x is computed: by W, by both factors in one Function, or by one after the other."""
        m, n = self.shape[-2:]
        if self.has_base:
            count = count_for_rule(num_vectors)
            dense = self._core is None and forms_dense_of_base(count, m, n)
            return "dense" if dense else "in turn"
        # Small factors take longer in two calls of LAPACK than at once.
        large = max(self.left.numel(), self.right.numel()) > SMALL
        tensors = x, self.left, self.singular_values, self.right
        if large and lapack.serves(math.prod(x.shape[:-1]), self.triangular, *tensors):
            return "in turn"
        if forms_dense(count_for_rule(num_vectors), m, n, *self.num_reflectors):
            return "dense"
        return "at once" if self._applies_at_once(x) else "in turn"

    def _applies_at_once(self, x: Tensor) -> bool:
        """Whether one Function computes W x: a single matrix, whose factors are both applied."""
        if self._batch or may_launch(x) or not functions_serve() or x.numel() == 0:
            return False
        if self.left is self.right and torch.compiler.is_compiling():
            return False  # torch.compile refuses a Function that is given one tensor twice.
        count = count_for_rule(math.prod(x.shape[:-1]))
        return all(
            k > 0 and not forms_product(count, k, n, self.triangular)
            for k, n in (self.left.shape, self.right.shape)
        )

    def to_dense(self) -> Tensor:
        """W of shape (..., m, n); costs 4 p (m k_u + n k_v) operations, p = min(m, n)."""
        m, n = self.shape[-2:]
        if m > n:
            return self.mT.to_dense().mT
        # A weight is to the bit the same with and without gradients.
        return self._v.combination(self._u.scaled_columns(self._signed).mT, as_in_training=True)

    @property
    def _signed(self) -> Tensor:
        return self.singular_values if self.signs is None else self.singular_values * self.signs

    @property
    def _u(self) -> OrthogonalFactor:
        return OrthogonalFactor(self.left, self.left_base, self.triangular)

    @property
    def _v(self) -> OrthogonalFactor:
        return OrthogonalFactor(self.right, self.right_base, self.triangular)

    def _make(
        self,
        u: OrthogonalFactor,
        singular_values: Tensor,
        v: OrthogonalFactor,
        signs: Tensor | None,
    ) -> Self:
        # What is computed from cached factors is not cached itself.
        made = HouseholderSVD(
            u.reflectors,
            singular_values,
            v.reflectors,
            signs=signs,
            triangular=self.triangular,
            left_base=u.base,
            right_base=v.base,
        )
        return cast("Self", made)


def _widen(factor: Tensor) -> Tensor:
    return gathered(factor).to(full_precision(factor.dtype))
