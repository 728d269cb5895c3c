"""The factored matrix of a layer in evaluation, whose dense form is kept with the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from spectral_triton.runtime.evaluation import keeps, kept
from spectral_triton.svd.operator import HouseholderSVD

Value = TypeVar("Value")

OVERHEAD = 4e6
"""What the calls that apply factors one by one cost beside their arithmetic, in operations."""


class EvaluatedSVD(HouseholderSVD):
    """A HouseholderSVD whose W is kept, for later ones of the same owner, where that is allowed.

    What is made of it, such as the transpose, is a plain one.

    Args:
        owner: The module whose factors these are.
        stamp: ``stamps`` of its parameters, taken before they were read.
    """

    _owner: nn.Module | None
    _ready: Tensor | None = None

    def __init__(
        self, *factors: Tensor, owner: nn.Module, stamp: tuple[object, ...], **options: Any
    ) -> None:
        super().__init__(*factors, **options)
        self._owner, self._stamp = owner, stamp

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no part in what the module keeps.
        return vars(self) | {"_owner": None, "_ready": None}

    @property
    def is_kept(self) -> bool:
        """Whether W is kept now."""
        # The parameters were looked at when they were read.
        return self._owner is not None and keeps(self._owner, ())

    @property
    def _made_of(self) -> tuple[Tensor | None, ...]:
        bases = self.left_base, self.right_base
        return (self.left, self.singular_values, self.right, self.signs, *bases)

    def keep(
        self, name: str, make: Callable[[], Value], at_once: bool = True, hand_out: bool = True
    ) -> Value | None:
        """What ``make()`` returns, kept under a name, see :func:`kept`."""
        if self._owner is None or not self.is_kept:
            return make() if at_once else None
        made_of, options = self._made_of, (at_once, hand_out)
        return kept(self._owner, name, self._stamp, made_of, make, *options)

    def to_dense(self) -> Tensor:
        """W of shape (..., m, n)."""
        ready, self._ready = self._ready, None
        if ready is not None:
            return ready
        dense = self.keep("dense", self._form)
        assert dense is not None
        return dense

    def _form(self) -> Tensor:
        return super().to_dense().contiguous()

    def _way(self, x: Tensor, num_vectors: float) -> Literal["dense", "at once", "in turn"]:
        way = super()._way(x, num_vectors)
        if way != "dense" and not self._gains(num_vectors):
            return way
        # A single call of few vectors would not make up for W.
        self._ready = self.keep("dense", self._form, at_once=way == "dense", hand_out=False)
        return way if self._ready is None else "dense"

    def _gains(self, num_vectors: float) -> bool:
        """Whether a product with W itself is cheaper than one with its factors.

        In the terms of :func:`forms_dense`.
        """
        m, n = self.shape[-2:]
        k_u, k_v = self.num_reflectors
        factors = 4 * num_vectors * (m * k_u + n * k_v) + OVERHEAD
        return self.has_base or 0.8 * num_vectors * m * n < factors
