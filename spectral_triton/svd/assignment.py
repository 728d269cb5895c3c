"""Assignment of a dense weight to a layer that holds it as factors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from spectral_triton.svd.bounds import OutOfBoundsError
from spectral_triton.svd.handed_out import hand_out
from spectral_triton.svd.weight import SVDWeight


class AssignableWeights(nn.Module):
    """Lets dense weights be assigned as to a plain layer: ``layer.weight = w`` factors w.

    It obeys :meth:`SVDWeight.set_dense_`, so what is out of bounds raises, and the layer stays as
    it was. To write into the tensor that ``layer.weight`` returns changes no parameter, and is told
    at the next use of the layer where it can be, see :func:`hand_out`.
    """

    def _assignable(self, name: str) -> SVDWeight | None:
        """The factors behind an attribute that is set, None for all other attributes."""
        raise NotImplementedError

    def _as_matrix(self, w: Tensor, weight: SVDWeight) -> Tensor:
        """A dense weight in the shape that its factors have."""
        return w

    def _handed_out(self, dense: Tensor, weight: SVDWeight, name: str) -> Tensor:
        """A dense weight as it is read: writing to it is told at the next use of the factors."""
        return hand_out(weight, dense, f"{name} of {type(self).__name__}")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        plain = name.removesuffix("_orig")  # As pruning calls what it puts in a weight's place.
        if plain != name and self._assignable(plain) is not None:
            raise TypeError(
                f"{plain} of {type(self).__name__} is computed from its factors and cannot be "
                "pruned or normalised: prune those (svd.left, svd.right), or bake the layer first"
            )
        super().register_parameter(name, param)

    def __setattr__(self, name: str, value: Any) -> None:
        weight = self._assignable(name)
        if weight is None:
            super().__setattr__(name, value)
            return
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        try:
            weight.set_dense_(self._as_matrix(value.detach(), weight))
        except OutOfBoundsError as error:
            clip = "set_dense_(w, out_of_bounds='clip') of its SVDWeight moves them inside"
            raise OutOfBoundsError(f"cannot set {name}: {error.problem}, {clip}") from error
        except (TypeError, ValueError) as error:
            raise type(error)(f"cannot set {name}: {error}") from error
