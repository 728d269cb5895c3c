r"""A residual block whose branch has a bounded weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spectral_triton.layers.linear import SVDLinear
from spectral_triton.runtime.validation import check_integer
from spectral_triton.spectra.spectrum import SignedSpectrum, Spectrum
from spectral_triton.spectra.stacked import check_margin


def make_activation(
    activation: Callable[[], nn.Module],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """φ with its parameters, if it has any, where those of the layer are."""
    if isinstance(activation, nn.Module) or not callable(activation):
        raise TypeError(
            f"activation must make a module, such as nn.ReLU without parentheses, got {activation}"
        )
    try:
        made = activation()
    except TypeError as error:
        raise TypeError(
            f"activation must make a module without arguments, such as nn.ReLU, got {activation}"
        ) from error
    if not isinstance(made, nn.Module):
        raise TypeError(f"activation must make a torch.nn.Module, got {made!r}")
    return made.to(device=device, dtype=dtype)


class SVDResidualBlock(nn.Module):
    r"""A residual layer of constant width.

    .. math:: y = h + \varphi(W h + b), \qquad W = U \,\mathrm{diag}(s \circ \sigma)\, V^\top,
        \quad |\sigma| \le r

    In a residual branch singular values lie around 0, not 1: for 1-Lipschitz φ the block changes
    distances by a factor between 1 - r and 1 + r, so for r < 1 it is invertible, and a stack of L
    blocks with r = 1/L has a Lipschitz constant below e; neither gradients nor signals explode
    or vanish. ``SVDLinear(...)``'s default spectrum would allow 2.01 per block.

    Args:
        features: Size n of the vectors.
        bias: Whether to add b.
        device: Where the parameters live.
        dtype: Their floating dtype.
        activation: Makes φ, once.
        num_reflectors: Reflectors per side: None for all n, an int or a pair (left, right).
        spectrum: Map from raw parameter to σ; ``SignedSpectrum(limit=0.5)`` if None, which starts
            at 0.25. ``SigmoidSpectrum(center=0, margin=r)`` is the one of the paper; it starts at
            W = 0, where a ReLU without bias passes no gradient, ever.
        init: Start of U and V, as for :class:`SVDLinear`.
        base: None, or "haar", see :class:`SVDWeight`.
        margin: The bound r, short for ``spectrum=SignedSpectrum(limit=r)``.

    Attributes:
        linear: The :class:`SVDLinear` of the branch.
        activation: φ.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``features`` is below 1 or ``num_reflectors`` above it.

    Example:
        >>> block = SVDResidualBlock(16, activation=nn.Tanh)
        >>> h = torch.randn(5, 16)
        >>> torch.testing.assert_close(block(h), h + torch.tanh(block.linear(h)))

    References:
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """

    def __init__(
        self,
        features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        init: str = "haar",
        base: str | None = None,
        margin: float | None = None,
    ) -> None:
        super().__init__()
        check_integer("features", features, 1)
        if margin is not None:
            check_margin(spectrum, margin)
            spectrum = SignedSpectrum(margin)
        self.linear = SVDLinear(
            features,
            features,
            bias,
            device,
            dtype,
            num_reflectors=num_reflectors,
            spectrum=SignedSpectrum(0.5) if spectrum is None else spectrum,
            init=init,
            base=base,
        )
        self.activation = make_activation(activation, device, dtype)

    @property
    def singular_values(self) -> Tensor:
        """Those of the branch, unsorted, differentiable, float32 at least."""
        return self.linear.singular_values

    def forward(self, input: Tensor) -> Tensor:
        """(..., features) -> (..., features), in the dtype of the input."""
        return input + self.activation(self.linear(input))
