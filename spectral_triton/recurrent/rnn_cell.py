r"""One step of a recurrent layer whose transition matrix is in SVD form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spectral_triton.recurrence.nonlinearity import check_nonlinearity
from spectral_triton.recurrence.recurrence import run
from spectral_triton.recurrent.cell import RecurrentCell
from spectral_triton.recurrent.parameters import input_weights, modrelu_bias, reset_cell_parameters_
from spectral_triton.spectra.spectrum import Spectrum


class SpectralRNNCell(RecurrentCell):
    r"""``torch.nn.RNNCell`` with a transition matrix in SVD form.

    .. math:: h' = \varphi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh}), \qquad
        W_{hh} = U\,\mathrm{diag}(\sigma)\,V^\top

    Each call prepares the factors, inside :func:`cached` only the first: use it for loops. Over a
    whole sequence :class:`SpectralRNN` is faster still.

    The state comes back in the dtype of the input, in float32 at least under autocast, and in that
    of ``hx`` where it is wider, so that a loop in half precision need not round it at each step.

    Args:
        input_size: Features of the input.
        hidden_size: Size n of the state.
        bias: Whether to add ``b_ih`` and ``b_hh``.
        nonlinearity: "tanh", "relu", "leaky_relu", "identity", or "modrelu" with a trained bias.
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side: None for all n, an int or a pair (left, right).
        spectrum: Map to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of W_hh: "identity", at which the state is a memory; "haar", "henaff", "cayley".
        base: None, or "haar" for fixed U₀ and V₀ that few reflectors start from, see
            :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.
        negative_slope: Slope of leaky_relu below zero.

    Shape:
        input (B, input_size) or (input_size,), state (B, n) or (n,), zero if not given; returns
        the next state.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is out of range, an option unknown, or shapes do not fit.

    Example:
        >>> cell = SpectralRNNCell(3, 8, nonlinearity="relu")
        >>> h = cell(torch.randn(4, 3))
        >>> cell(torch.randn(4, 3), h).shape
        torch.Size([4, 8])
    """

    _plain_type = nn.RNNCell
    _options = (*RecurrentCell._options, "nonlinearity")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        init: str = "identity",
        base: str | None = None,
        margin: float | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        check_nonlinearity(nonlinearity, negative_slope)
        super().__init__(input_size, hidden_size, bias, init)
        self.nonlinearity, self.negative_slope = nonlinearity, negative_slope
        self._add_all(device, dtype, num_reflectors, spectrum, init, base, margin)

    def _plain_shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        shapes = super()._plain_shapes(features)
        own = {"bias_modrelu": (self.hidden_size,)} if self.nonlinearity == "modrelu" else {}
        return shapes | own

    def _reset_plain(self, suffix: str) -> None:
        reset_cell_parameters_(self, suffix)

    def extra_repr(self) -> str:
        shown = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity!r}{shown}"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state."""
        x = self._read(input).unsqueeze(0)
        h0 = self._state(hx, x[0], input.dim() == 2)
        options = (self.nonlinearity, self.negative_slope, modrelu_bias(self, ""), False, None)
        h = run(x, h0, self.factors, *options, *input_weights(self, "", x))[1]
        return self._result(h, input, hx)

    @classmethod
    def from_rnn_cell(
        cls,
        cell: nn.RNNCell,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        out_of_bounds: str = "raise",
        margin: float | None = None,
    ) -> SpectralRNNCell:
        """A SpectralRNNCell with the weights of an ``nn.RNNCell``.

        Raises:
            TypeError: if ``cell`` is not an ``nn.RNNCell``.
            ValueError: if a singular value is out of bounds (``out_of_bounds="clip"`` moves it
                inside) or the reflectors do not suffice.
        """
        svd = {"num_reflectors": num_reflectors, "spectrum": spectrum, "margin": margin}
        return cls._from_plain("cell", cell, svd, out_of_bounds)

    def to_rnn_cell(self) -> nn.RNNCell:
        """An ``nn.RNNCell`` with the same outputs; ValueError for other nonlinearities."""
        return self._to_plain()
