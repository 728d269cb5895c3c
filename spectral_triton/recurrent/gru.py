r"""GRU layers whose three recurrent matrices keep their singular values within bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from spectral_triton.recurrent.fused import run_fused
from spectral_triton.recurrent.layer import RecurrentLayer
from spectral_triton.recurrent.padded import run_padded
from spectral_triton.recurrent.state import read_sequences
from spectral_triton.runtime.onnx_export import exports_to_onnx
from spectral_triton.spectra.spectrum import Spectrum


class SpectralGRU(RecurrentLayer):
    r"""``torch.nn.GRU`` with the recurrent matrix of every gate in SVD form.

    .. math::
        r_t &= \mathrm{sigmoid}(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}), \qquad
        z_t = \mathrm{sigmoid}(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \circ (W_{hn} h_{t-1} + b_{hn})), \qquad
        h_t = (1 - z_t) \circ n_t + z_t \circ h_{t-1} \\
        W_{hg} &= U_g\,\mathrm{diag}(\sigma_g)\,V_g^\top, \quad |\sigma_g - \sigma^*| \le r

    Arguments, shapes, packed and unbatched input, names of parameters and the order of the gates
    (r, z, n) are those of ``nn.GRU``; in place of ``weight_hh_l0`` the module ``svd_hh_l0`` (an
    :class:`SVDWeight` of three blocks) holds reflectors and raw singular values, and
    ``weight_hh_l0`` reads as the dense stacked matrix. A state dict of ``nn.GRU`` loads where the
    singular values of every gate lie within the bounds and there are all reflectors.

    The bound is one on each gate's recurrent map: :math:`\|W_{hg}\|_2 \le \sigma^* + r`, its
    Lipschitz constant as a function of the last state, whatever training does. It is not by itself
    a bound of the gradient over time, which also passes through products of gates and states;
    :class:`SpectralRNN` has that one.

    Start, cost, precision, TF32 and ``torch.compile`` are as for :class:`SpectralLSTM`: every gate
    starts uniform over the orthogonal matrices times the center of its spectrum, all else as in
    ``nn.GRU``; weights are formed once per call, at 12 n² (k_u + k_v) operations, for torch's own
    GRU.

    Args:
        input_size: Features of each input.
        hidden_size: Size n of the state.
        num_layers: Layers stacked on each other.
        bias: Whether to add ``b_ih`` and ``b_hh``.
        batch_first: Input and output as (batch, time, features).
        dropout: Probability of dropping outputs of each layer but the last.
        bidirectional: Adds a second direction, whose outputs are appended.
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side and gate: None for all n, an int or a pair (left,
            right).
        spectrum: Map to σ, or a sequence of three in the order of the gates;
            ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of each gate's matrix: "haar", as what a gate makes of the state should differ
            between gates (the memory is in them, not in W); "identity", "henaff", "cayley".
        base: None, or "haar" for fixed U₀ and V₀ that few reflectors start from, see
            :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

    Shape:
        As ``torch.nn.GRU``: input (T, B, input_size), (B, T, input_size), (T, input_size) or a
        PackedSequence, and an optional ``h_0`` (num_layers * directions, B, n); returns the output
        of the last layer and ``h_n``.
        With ``lengths`` (B,) of the sequences of a padded batch it is packed and padded again.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is out of range, an option unknown, or shapes do not fit.

    Example:
        >>> gru = SpectralGRU(3, 16, num_reflectors=4)
        >>> output, h_n = gru(torch.randn(50, 2, 3))
        >>> output.shape, h_n.shape
        (torch.Size([50, 2, 16]), torch.Size([1, 2, 16]))
        >>> gru.singular_values.shape
        torch.Size([1, 3, 16])

    References:
        Cho et al. Learning phrase representations using RNN encoder-decoder for statistical machine
        translation. EMNLP 2014. https://arxiv.org/abs/1406.1078
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """

    num_gates = 3
    _plain_type = nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | Sequence[Spectrum] | None = None,
        init: str = "haar",
        base: str | None = None,
        margin: float | None = None,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(input_size, hidden_size, *options, init)
        self._add_all(device, dtype, num_reflectors, spectrum, init, base, margin)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs all layers over all steps, as ``nn.GRU.forward``."""
        if lengths is not None and not exports_to_onnx():
            return run_padded(self, input, hx, lengths)
        sequences = read_sequences(input, self.input_size, self.batch_first, lengths)
        h0 = sequences.state(hx, self.num_layers * self.num_directions, self.hidden_size)
        y, h_n = run_fused(self, "gru", sequences, (h0,))
        return sequences.output(y), sequences.last(h_n)

    @classmethod
    def from_gru(
        cls,
        gru: nn.GRU,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | Sequence[Spectrum] | None = None,
        out_of_bounds: str = "raise",
        margin: float | None = None,
    ) -> SpectralGRU:
        """A SpectralGRU with the weights of an ``nn.GRU``.

        Raises:
            TypeError: if ``gru`` is not an ``nn.GRU``.
            ValueError: if a singular value is out of bounds (``out_of_bounds="clip"`` moves it
                inside) or the reflectors do not suffice.
        """
        svd = {"num_reflectors": num_reflectors, "spectrum": spectrum, "margin": margin}
        return cls._from_plain("gru", gru, svd, out_of_bounds)

    def to_gru(self) -> nn.GRU:
        """An ``nn.GRU`` with the same outputs."""
        return self._to_plain()
