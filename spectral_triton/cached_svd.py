"""The factored matrix whose dense form is at hand."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from spectral_triton.cached import formed_once, is_cached
from spectral_triton.svd import HouseholderSVD


class CachedSVD(HouseholderSVD):
    """A HouseholderSVD that forms W once, where :func:`cached` is on, and multiplies with it."""

    def to_dense(self) -> Tensor:
        """W of shape (..., m, n)."""
        tensors = self.left, self.singular_values, self.right, self.signs
        return formed_once(self, "dense", tensors, super().to_dense)

    def _way(self, x: Tensor, num_vectors: float) -> Literal["dense", "at once", "in turn"]:
        return "dense" if is_cached(self.left) else super()._way(x, num_vectors)
