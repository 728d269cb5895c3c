r"""One step of a GRU whose three recurrent matrices are in SVD form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spectral_triton.recurrent.cell import RecurrentCell
from spectral_triton.spectra.spectrum import Spectrum


class SpectralGRUCell(RecurrentCell):
    r"""``torch.nn.GRUCell`` with the recurrent matrix of every gate in SVD form.

    .. math::
        r &= \mathrm{sigmoid}(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}), \qquad
        z = \mathrm{sigmoid}(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n &= \tanh(W_{in} x + b_{in} + r \circ (W_{hn} h + b_{hn})), \qquad
        h' = (1 - z) \circ n + z \circ h, \qquad W_{hg} = U_g\,\mathrm{diag}(\sigma_g)\,V_g^\top

    Each call prepares the factors, inside :func:`cached` only the first: use it for loops. Over a
    whole sequence :class:`SpectralGRU` is faster still.
    A product costs 12 n (k_u + k_v) operations per vector; with many vectors W_hh is formed
    instead. What the bound on the gates means, the start and the precision are as there.

    The state comes back in the dtype of the input, in float32 at least under autocast, and in that
    of ``hx`` where it is wider, so that a loop in half precision need not round it at each step.

    Args:
        input_size: Features of the input.
        hidden_size: Size n of the state.
        bias: Whether to add ``b_ih`` and ``b_hh``.
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side and gate: None for all n, an int or a pair (left,
            right).
        spectrum: Map to σ, or a sequence of three in the order of the gates (r, z, n);
            ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of each gate's matrix: "haar", as what a gate makes of the state should differ
            between gates (the memory is in them, not in W); "identity", "henaff", "cayley".
        base: None, or "haar" for fixed U₀ and V₀ that few reflectors start from, see
            :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

    Shape:
        input (B, input_size) or (input_size,), state (B, n) or (n,), zero if not given; returns
        the next state.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is out of range, an option unknown, or shapes do not fit.

    Example:
        >>> cell = SpectralGRUCell(3, 8)
        >>> h = cell(torch.randn(4, 3))
        >>> cell(torch.randn(4, 3), h).shape
        torch.Size([4, 8])
    """

    num_gates = 3
    _plain_type = nn.GRUCell

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

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state."""
        x = self._read(input)
        h = self._state(hx, x, input.dim() == 2)
        if self._steps_at_once():
            return self._result(self._next("gru_cell", x, h), input, hx)
        of_input, of_state, h = self._pre_activations(x, h, h)
        r, z = (of_input[:2] + of_state[:2]).sigmoid()
        n = (of_input[2] + r * of_state[2]).tanh()
        return self._result(n + z * (h - n), input, hx)

    @classmethod
    def from_gru_cell(
        cls,
        cell: nn.GRUCell,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | Sequence[Spectrum] | None = None,
        out_of_bounds: str = "raise",
        margin: float | None = None,
    ) -> SpectralGRUCell:
        """A SpectralGRUCell with the weights of an ``nn.GRUCell``.

        Raises:
            TypeError: if ``cell`` is not an ``nn.GRUCell``.
            ValueError: if a singular value is out of bounds (``out_of_bounds="clip"`` moves it
                inside) or the reflectors do not suffice.
        """
        svd = {"num_reflectors": num_reflectors, "spectrum": spectrum, "margin": margin}
        return cls._from_plain("cell", cell, svd, out_of_bounds)

    def to_gru_cell(self) -> nn.GRUCell:
        """An ``nn.GRUCell`` with the same outputs."""
        return self._to_plain()
