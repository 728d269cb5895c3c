"""The factored matrix whose dense form is at hand."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from spectral_triton.runtime.cached import formed_once, is_cached
from spectral_triton.svd.operator import HouseholderSVD


class CachedSVD(HouseholderSVD):
    """A HouseholderSVD that forms W once, where :func:`cached` is on, and multiplies with it.

    What is made of it, such as the transpose, is a plain one.

    Args:
        sources: The tensors that the factors were made of, None among them.
    """

    def __init__(
        self, *factors: Tensor, sources: tuple[Tensor | None, ...], **options: Any
    ) -> None:
        super().__init__(*factors, **options)
        self.sources = sources

    def to_dense(self) -> Tensor:
        """W of shape (..., m, n)."""
        form = super().to_dense
        # Kept as it is handed out: made contiguous later it would be copied at each access.
        return formed_once(self, "dense", self.sources, lambda: form().contiguous())

    def _way(self, x: Tensor, num_vectors: float) -> Literal["dense", "at once", "in turn"]:
        return "dense" if is_cached(*self.sources) else super()._way(x, num_vectors)
