r"""One step of an LSTM whose four recurrent matrices are in SVD form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spectral_triton.recurrent.cell import RecurrentCell
from spectral_triton.recurrent.lstm import read_pair
from spectral_triton.spectra.spectrum import Spectrum


class SpectralLSTMCell(RecurrentCell):
    r"""``torch.nn.LSTMCell`` with the recurrent matrix of every gate in SVD form.

    .. math::
        (a_i, a_f, a_g, a_o) &= W_{ih} x + b_{ih} + W_{hh} h + b_{hh}, \qquad
        W_{hg} = U_g\,\mathrm{diag}(\sigma_g)\,V_g^\top \\
        c' &= \mathrm{sigmoid}(a_f) \circ c + \mathrm{sigmoid}(a_i) \circ \tanh(a_g), \qquad
        h' = \mathrm{sigmoid}(a_o) \circ \tanh(c')

    Each call prepares the factors, inside :func:`cached` only the first: use it for loops. Over a
    whole sequence :class:`SpectralLSTM` is faster still.
    A product costs 16 n (k_u + k_v) operations per vector; with many vectors W_hh is formed
    instead. What the bound on the gates means, the start and the precision are as there.

    The states come back in the dtype of the input, in float32 at least under autocast, and in that
    of ``hx`` where it is wider, so that a loop in half precision need not round it at each step.

    Args:
        input_size: Features of the input.
        hidden_size: Size n of the state.
        bias: Whether to add ``b_ih`` and ``b_hh``.
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side and gate: None for all n, an int or a pair (left,
            right).
        spectrum: Map to σ, or a sequence of four in the order of the gates (i, f, g, o);
            ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of each gate's matrix: "haar", as what a gate makes of the state should differ
            between gates (the memory is in them, not in W); "identity", "henaff", "cayley".
        base: None, or "haar" for fixed U₀ and V₀ that few reflectors start from, see
            :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

    Shape:
        input (B, input_size) or (input_size,), hx a pair (h, c) of (B, n) or (n,), zero if not
        given; returns the next pair.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is out of range, an option unknown, or shapes do not fit.

    Example:
        >>> cell = SpectralLSTMCell(3, 8)
        >>> h, c = cell(torch.randn(4, 3))
        >>> h, c = cell(torch.randn(4, 3), (h, c))
        >>> h.shape
        torch.Size([4, 8])
    """

    num_gates = 4
    _plain_type = nn.LSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | Sequence[Spectrum] | None = None,
        init: str = "haar",
        base: str | None = None,
        margin: float | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, init)
        self._add_all(device, dtype, num_reflectors, spectrum, init, base, margin)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next state and cell state."""
        h_0, c_0 = read_pair(hx)
        x = self._read(input)
        batched = input.dim() == 2
        h = self._state(h_0, x, batched, "h_0 of hx")
        c = self._state(c_0, x, batched, "c_0 of hx")
        if self._steps_at_once():
            h, c = self._next("lstm_cell", x, h, c)
            return self._result(h, input, h_0), self._result(c, input, c_0)
        of_input, of_state, c = self._pre_activations(x, h, c)
        i, f, g, o = of_input + of_state
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return self._result(h, input, h_0), self._result(c, input, c_0)

    @classmethod
    def from_lstm_cell(
        cls,
        cell: nn.LSTMCell,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | Sequence[Spectrum] | None = None,
        out_of_bounds: str = "raise",
        margin: float | None = None,
    ) -> SpectralLSTMCell:
        """A SpectralLSTMCell with the weights of an ``nn.LSTMCell``.

        Raises:
            TypeError: if ``cell`` is not an ``nn.LSTMCell``.
            ValueError: if a singular value is out of bounds (``out_of_bounds="clip"`` moves it
                inside) or the reflectors do not suffice.
        """
        svd = {"num_reflectors": num_reflectors, "spectrum": spectrum, "margin": margin}
        return cls._from_plain("cell", cell, svd, out_of_bounds)

    def to_lstm_cell(self) -> nn.LSTMCell:
        """An ``nn.LSTMCell`` with the same outputs."""
        return self._to_plain()
