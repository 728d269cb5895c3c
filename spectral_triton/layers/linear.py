r"""A linear layer whose weight keeps its singular values within bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.runtime.sharding import gathered
from spectral_triton.runtime.validation import (
    check_device,
    check_flag,
    check_has_value,
    check_integer,
    check_precision,
    full_precision,
)
from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.svd.assignment import AssignableWeights
from spectral_triton.svd.dense_entries import factor_dense_entries
from spectral_triton.svd.operator import HouseholderSVD
from spectral_triton.svd.weight import SVDWeight


class SVDLinear(AssignableWeights):
    r"""``torch.nn.Linear`` with bounded singular values.

    .. math:: y = W x + b, \qquad W = U \,\mathrm{diag}(s \circ \sigma)\, V^\top

    With the default spectrum the layer changes no distance by more than 1 %: it is invertible
    (where square) and Lipschitz with constant center + margin. W starts random: U and V uniform,
    σ at the center. A forward pass takes :math:`4(m k_u + n k_v)` operations per vector; with many
    vectors and many reflectors W is formed once instead. All arithmetic is in float32 at least,
    whatever the dtype of x, of the module, or of autocast; the result has the dtype of x.

    Loading a state dict with a dense ``weight``, as ``torch.nn.Linear`` saves it, factors it, and
    raises where a singular value is out of bounds.

    Args:
        in_features: Size n of each input vector.
        out_features: Size m of each output vector.
        bias: Whether to add a trained bias.
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side: None for all min(m, n), an int or a pair (left, right).
        spectrum: Map from raw parameter to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of U and V: "haar" (uniform), "identity", "henaff" or "cayley".
        base: None, or "haar" for fixed U₀ and V₀ that few reflectors start from, see
            :class:`SVDWeight`; taken from a given weight wherever it needs one.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

    Attributes:
        svd: The :class:`SVDWeight` that owns the parameters of W.
        bias: Shape ``(m,)``, or None.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is below 1 or ``num_reflectors`` above min(m, n).

    Example:
        >>> layer = SVDLinear(20, 30, num_reflectors=8)
        >>> x = torch.randn(128, 20)
        >>> torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        init: str = "haar",
        base: str | None = None,
        margin: float | None = None,
    ) -> None:
        super().__init__()
        check_flag("bias", bias)
        self.svd = SVDWeight(
            out_features,
            in_features,
            num_reflectors=num_reflectors,
            spectrum=spectrum,
            device=device,
            dtype=dtype,
            init=init,
            base=base,
            margin=margin,
        )
        self.in_features, self.out_features = in_features, out_features
        empty = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if empty is None else nn.Parameter(empty))
        self._reset_bias()

    def reset_parameters(self) -> None:
        """Draws a random W with singular values at the center, and the bias as nn.Linear does."""
        self.svd.reset_parameters()
        self._reset_bias()

    def _reset_bias(self) -> None:
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of the input."""
        check_precision("input", input, full_precision(self.svd.left.dtype))
        check_device("input", input, self.svd.left.device, "the layer")
        if input.dim() < 1 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"input must have shape (..., in_features) with in_features = {self.in_features}, "
                f"got {tuple(input.shape)}"
            )
        if self.bias is None:
            # A copy, since backward keeps the product: layer and nn.ReLU(inplace=True) go together.
            return self.svd(input).clone()
        return self.svd(input, self.bias)

    def _assignable(self, name: str) -> SVDWeight | None:
        return self.svd if name == "weight" else None

    @property
    def weight(self) -> Tensor:
        """W of shape (out_features, in_features), differentiable, in the dtype of the module.

        Formed at each access: what is written into it is lost. Assign a matrix, which is factored
        as by ``svd.set_dense_``.
        """
        dense = self.svd.to_dense().to(self.svd.left.dtype)
        return self._handed_out(dense, self.svd, "weight")

    @property
    def singular_values(self) -> Tensor:
        """The singular values of W, unsorted, differentiable, float32 at least."""
        return self.svd.singular_values

    @property
    def factors(self) -> HouseholderSVD:
        """W as an operator, with ``solve``, ``inverse``, ``slogdet`` and more."""
        return self.svd.factors

    def inverse(self, y: Tensor) -> Tensor:
        r"""The x with :math:`W x + b = y`, for a square W, at the cost of a forward pass.

        Args:
            y: Shape ``(..., out_features)``.

        Returns:
            Shape ``(..., in_features)``, dtype of ``y``, differentiable.

        Raises:
            TypeError: if ``y`` is not a real floating point tensor.
            ValueError: if W is not square or the shape of ``y`` does not fit.
            torch.linalg.LinAlgError: if a singular value is zero, which the default spectrum and
                every other with a positive lower bound exclude.

        Example:
            >>> layer, x = SVDLinear(4, 4), torch.randn(3, 4)
            >>> torch.testing.assert_close(layer.inverse(layer(x)), x)
        """
        check_precision("y", y, full_precision(self.svd.left.dtype))
        self._check_square("inverse")
        if y.dim() < 1 or y.shape[-1] != self.out_features:
            raise ValueError(
                f"y must have shape (..., out_features) with out_features = {self.out_features}, "
                f"got {tuple(y.shape)}"
            )
        return self.svd.inverse(y, self.bias)

    def logabsdet(self) -> Tensor:
        r""":math:`\log|\det W| = \sum_i \log|\sigma_i|`, scalar, differentiable, in O(n).

        With :meth:`inverse` all that a normalising flow needs of a layer, where
        :math:`\log p_x(x) = \log p_z(f(x)) + \log|\det W|`.

        Raises:
            ValueError: if W is not square.

        Example:
            >>> class Flow(nn.Module):
            ...     def __init__(self, n):
            ...         super().__init__()
            ...         self.linear = SVDLinear(n, n, spectrum=SoftplusSpectrum())
            ...     def log_prob(self, x):
            ...         z = self.linear(x)
            ...         log_normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
            ...         return log_normal + self.linear.logabsdet()
            ...     def sample(self, count):
            ...         return self.linear.inverse(torch.randn(count, self.linear.in_features))
            >>> flow = Flow(4)
            >>> flow.log_prob(flow.sample(10)).shape
            torch.Size([10])
        """
        self._check_square("logabsdet")
        return self.factors.slogdet().logabsdet

    def _check_square(self, name: str) -> None:
        if self.in_features != self.out_features:
            raise ValueError(
                f"{name} needs a square weight, got in_features = {self.in_features} and "
                f"out_features = {self.out_features}"
            )

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        out_of_bounds: str = "raise",
        margin: float | None = None,
    ) -> SVDLinear:
        """Builds the layer that computes what a given ``nn.Linear`` does.

        Args:
            linear: Its weight, bias, device, dtype and mode are taken over, not shared.
            num_reflectors: As above. Fewer than all keep the weight as well: its singular vectors
                become the base.
            spectrum: As above.
            out_of_bounds: "raise", or "clip" to move singular values into the bounds, with a
                warning that says by how much the weight changed.
            margin: As above.

        Raises:
            TypeError: if ``linear`` is not an ``nn.Linear``.
            ValueError: if a singular value is out of bounds.

        Example:
            >>> linear = nn.Linear(4, 3)
            >>> layer = SVDLinear.from_linear(linear, out_of_bounds="clip")
            >>> bool(((layer.singular_values - 1).abs() <= 0.01).all())
            True
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        check_has_value("linear", linear.weight)
        weight, bias = linear.weight, linear.bias
        layer = cls(
            linear.in_features,
            linear.out_features,
            bias is not None,
            weight.device,
            weight.dtype,
            num_reflectors=num_reflectors,
            spectrum=spectrum,
            margin=margin,
        )
        layer.svd.set_named_(weight.detach(), out_of_bounds, "weight")
        if layer.bias is not None:
            layer.bias.data.copy_(bias.detach())
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` with the dense weight and the bias, copied."""
        weight = self._as_matrix(self.weight, self.svd)
        return _plain_linear(weight, self.bias, self.svd.left.dtype).train(self.training)

    def to_low_rank(self, rank: int) -> nn.Sequential:
        r"""Two ``nn.Linear`` layers through ``rank`` features, the nearest there are to this one.

        :math:`W \approx (U_r \sqrt{S_r})(\sqrt{S_r} V_r^\top)` with the r largest singular values:
        r(m + n) parameters instead of mn. What is lost is ``factors.truncation_error(rank)``.

        Args:
            rank: From 1 to min(m, n).

        Returns:
            The layer without bias and the one with it, in the dtype of this one.

        Raises:
            TypeError: if ``rank`` is not an integer.
            ValueError: if it is not between 1 and min(m, n).

        Example:
            >>> layer = SVDLinear(64, 32, spectrum=SignedSpectrum())
            >>> small, x = layer.to_low_rank(4), torch.randn(10, 64)
            >>> lost = (layer(x) - small(x)).norm(dim=-1) / x.norm(dim=-1)
            >>> bool((lost <= layer.factors.truncation_error(4, "spectral") + 1e-6).all())
            True
        """
        check_integer("rank", rank, 1, min(self.in_features, self.out_features))
        U, S, Vh = self.factors.svd(rank)
        into = _plain_linear(S.sqrt().unsqueeze(-1) * Vh, None, self.svd.left.dtype)
        out = _plain_linear(U * S.sqrt(), self.bias, self.svd.left.dtype)
        return nn.Sequential(into, out).train(self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        factor_dense_entries(
            self, state_dict, prefix, args[-1], [("weight", "svd")], self._as_matrix
        )
        super()._load_from_state_dict(state_dict, prefix, *args)


@torch.no_grad()
def _plain_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    m, n = weight.shape
    options: dict[str, Any] = {"device": weight.device, "dtype": dtype}
    linear = nn.utils.skip_init(nn.Linear, n, m, bias is not None, **options)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(gathered(bias))
    return linear
