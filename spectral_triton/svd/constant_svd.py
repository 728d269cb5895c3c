"""The factored matrix inside torch.onnx.export: what is made of it are constants of the graph."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from spectral_triton.runtime.onnx_export import outside_trace
from spectral_triton.svd.operator import HouseholderSVD

if TYPE_CHECKING:
    from typing_extensions import Self

_OF_VALUES = (
    "cond",
    "frobenius_norm",
    "gram",
    "inverse",
    "nuclear_norm",
    "pinv",
    "polar",
    "slogdet",
    "spectral_norm",
    "svd",
    "truncate",
    "truncation_error",
)
"""What depends on nothing but the factors."""


class ConstantSVD(HouseholderSVD):
    """A HouseholderSVD of values, not of placeholders: W, its inverse and the like are values."""

    _dense: Tensor | None = None

    def to_dense(self) -> Tensor:
        """W of shape (..., m, n)."""
        if self._dense is None:
            with outside_trace():
                self._dense = super().to_dense().contiguous()
        return self._dense

    def _way(self, x: Tensor, num_vectors: float) -> Literal["dense", "at once", "in turn"]:
        return "dense"

    def _make(self, *factors: Any) -> Self:
        with outside_trace():
            made: Any = super()._make(*factors)
        made.__class__ = ConstantSVD
        return made  # type: ignore[no-any-return]


def _evaluated(name: str) -> Any:
    method = getattr(HouseholderSVD, name)

    @functools.wraps(method)
    def evaluated(self: ConstantSVD, *args: Any, **options: Any) -> Any:
        with outside_trace():
            made = method(self, *args, **options)
        return made

    return evaluated


for _name in _OF_VALUES:
    setattr(ConstantSVD, _name, _evaluated(_name))
