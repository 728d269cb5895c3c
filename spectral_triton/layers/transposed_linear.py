r"""A linear layer whose dense weight lies the other way round, as in GPT-2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.layers.linear import SVDLinear
from spectral_triton.runtime.sharding import gathered
from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.svd.weight import SVDWeight


def conv1d_type() -> type[nn.Module] | None:
    """``transformers.pytorch_utils.Conv1D`` where that module is loaded; it is never imported."""
    return getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)


class SVDTransposedLinear(SVDLinear):
    r""":class:`SVDLinear` with a dense ``weight`` of shape ``(in_features, out_features)``.

    .. math:: y = W x + b, \qquad \texttt{weight} = W^\top

    What :func:`convert` makes of ``transformers.pytorch_utils.Conv1D``, the layer of GPT-2 and its
    kin, and what :func:`bake` makes such a layer of again. A dense weight that is assigned or
    loaded from a state dict is read that way too, so the checkpoints of those models load.
    Everything else, arguments, cost and errors, is as in :class:`SVDLinear`.

    Attributes:
        nx: ``in_features``, as Conv1D calls it.
        nf: ``out_features``.

    Example:
        >>> layer = SVDTransposedLinear(20, 30)
        >>> x = torch.randn(128, 20)
        >>> torch.testing.assert_close(layer(x), x @ layer.weight + layer.bias)
    """

    @property
    def nx(self) -> int:
        return self.in_features

    @property
    def nf(self) -> int:
        return self.out_features

    @property
    def weight(self) -> Tensor:
        """Wᵀ of shape (in_features, out_features), differentiable, in the dtype of the module."""
        return super().weight.mT

    def _as_matrix(self, w: Tensor, weight: SVDWeight) -> Tensor:
        # What is no matrix is refused under its own shape.
        return w.mT if w.dim() == 2 else w

    @classmethod
    def from_conv1d(
        cls,
        conv1d: nn.Module,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        out_of_bounds: str = "raise",
        margin: float | None = None,
    ) -> SVDTransposedLinear:
        """Builds the layer that computes what a given ``Conv1D`` does.

        Args:
            conv1d: Its weight, bias, device, dtype and mode are taken over, not shared.
            num_reflectors: As for :class:`SVDLinear`. Fewer than all keep the weight as well: its
                singular vectors become the base.
            spectrum: As for :class:`SVDLinear`.
            out_of_bounds: "raise", or "clip" to move singular values into the bounds.
            margin: As for :class:`SVDLinear`.

        Raises:
            TypeError: if ``conv1d`` is not a ``transformers.pytorch_utils.Conv1D``.
            ValueError: if a singular value is out of bounds.
        """
        kind = conv1d_type()
        if kind is None or not isinstance(conv1d, kind):
            raise TypeError(
                "conv1d must be a transformers.pytorch_utils.Conv1D, "
                f"got {type(conv1d).__module__}.{type(conv1d).__name__}"
            )
        given: Any = conv1d
        weight = given.weight
        layer = cls(
            weight.shape[0],
            weight.shape[1],
            device=weight.device,
            dtype=weight.dtype,
            num_reflectors=num_reflectors,
            spectrum=spectrum,
            margin=margin,
        )
        layer.svd.set_named_(weight.detach().mT, out_of_bounds, "weight")
        with torch.no_grad():
            layer.bias.copy_(given.bias)  # type: ignore[union-attr]
        return layer.train(given.training)

    @torch.no_grad()
    def to_conv1d(self) -> nn.Module:
        """A ``transformers.pytorch_utils.Conv1D`` with the dense weight and the bias, copied.

        Raises:
            ValueError: if transformers is not loaded, or the layer has no bias, which Conv1D needs.
        """
        kind = conv1d_type()
        if kind is None:
            raise ValueError("Conv1D is not there: import transformers.pytorch_utils first")
        if self.bias is None:
            raise ValueError("Conv1D has a bias, this layer has none")
        weight, bias = self.weight, gathered(self.bias)
        with torch.device("meta"):
            conv1d: Any = kind(self.nf, self.nx)
        conv1d.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
        conv1d.bias = nn.Parameter(bias.detach().clone())
        return conv1d.train(self.training)
