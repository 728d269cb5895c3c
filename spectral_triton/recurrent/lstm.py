r"""LSTM layers whose four recurrent matrices keep their singular values within bounds."""

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
from spectral_triton.runtime.validation import check_integer
from spectral_triton.spectra.spectrum import Spectrum


class SpectralLSTM(RecurrentLayer):
    r"""``torch.nn.LSTM`` with the recurrent matrix of every gate in SVD form.

    .. math::
        (a_i, a_f, a_g, a_o) &= W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}, \qquad
        W_{hg} = U_g\,\mathrm{diag}(\sigma_g)\,V_g^\top, \quad |\sigma_g - \sigma^*| \le r \\
        c_t &= \mathrm{sigmoid}(a_f) \circ c_{t-1} + \mathrm{sigmoid}(a_i) \circ \tanh(a_g),
        \qquad h_t = \mathrm{sigmoid}(a_o) \circ \tanh(c_t)

    Arguments, shapes, packed and unbatched input, names of parameters and the order of the gates
    (i, f, g, o) are those of ``nn.LSTM``; in place of ``weight_hh_l0`` the module ``svd_hh_l0`` (an
    :class:`SVDWeight` of four blocks) holds reflectors and raw singular values, and
    ``weight_hh_l0`` reads as the dense stacked matrix. A state dict of ``nn.LSTM`` loads where the
    singular values of every gate lie within the bounds and there are all reflectors.

    The bound is one on each gate's recurrent map: :math:`\|W_{hg}\|_2 \le \sigma^* + r`, so no
    pre-activation reacts to the last state with a larger Lipschitz constant, whatever training
    does. It is not by itself a bound of the gradient over time, which also passes through products
    of gates and states; :class:`SpectralRNN` has that one. With ``proj_size`` the projection
    ``weight_hr`` is free, and the bound is on the map from the projected state.

    W_hh starts with every gate uniform over the orthogonal matrices ("haar") times the center of
    its spectrum, all else uniform within :math:`1/\sqrt n` of zero as in ``nn.LSTM``, also the
    bias of the forget gate.

    The dense weights are formed once per call, at 16 n² (k_u + k_v) operations per layer and
    direction, and go to torch's own LSTM, cuDNN on a GPU; the gradient flows back to the
    reflectors. All arithmetic is in float32 at least, also under autocast or in a module of half
    precision. On a GPU the forward pass excludes TF32, cuDNN's default; its backward pass obeys the
    program's setting, ``torch.backends.cudnn.rnn.fp32_precision = "ieee"`` for exact gradients.
    ``torch.compile`` breaks the graph around the layer, as it does for ``nn.LSTM``.

    DropConnect on the recurrent weights, as AWD-LSTM has it, is one more parametrization on top of
    :func:`spectral_triton.parametrizations.svd` of an ``nn.LSTM``: one mask per call, which holds
    for all its steps. While training the bounds are then those of W before the mask.

    >>> from spectral_triton.parametrizations import svd
    >>> awd = svd(nn.LSTM(3, 16), "weight_hh_l0", num_blocks=4, out_of_bounds="clip")
    >>> _ = nn.utils.parametrize.register_parametrization(awd, "weight_hh_l0", nn.Dropout(0.5))

    Args:
        input_size: Features of each input.
        hidden_size: Size n of the cell state.
        num_layers: Layers stacked on each other.
        bias: Whether to add ``b_ih`` and ``b_hh``.
        batch_first: Input and output as (batch, time, features).
        dropout: Probability of dropping outputs of each layer but the last.
        bidirectional: Adds a second direction, whose outputs are appended.
        proj_size: Size of the projected state h, below ``hidden_size``; 0 for none.
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side and gate: None for all, an int or a pair (left, right).
        spectrum: Map to σ, or a sequence of four in the order of the gates;
            ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of each gate's matrix: "haar", as what a gate makes of the state should differ
            between gates (the memory is in them, not in W); "identity", "henaff", "cayley".
        base: None, or "haar" for fixed U₀ and V₀ that few reflectors start from, see
            :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

    Shape:
        As ``torch.nn.LSTM``: input (T, B, input_size), (B, T, input_size), (T, input_size) or a
        PackedSequence, and an optional pair (h_0, c_0) of (num_layers * directions, B, n); returns
        the output of the last layer and the pair (h_n, c_n).
        With ``lengths`` (B,) of the sequences of a padded batch it is packed and padded again.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is out of range, an option unknown, or shapes do not fit.

    Example:
        >>> lstm = SpectralLSTM(3, 16, num_reflectors=4)
        >>> output, (h_n, c_n) = lstm(torch.randn(50, 2, 3))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([50, 2, 16]), torch.Size([1, 2, 16]), torch.Size([1, 2, 16]))
        >>> gates = lstm.weight_hh_l0.unflatten(0, (4, 16))
        >>> bool((torch.linalg.matrix_norm(gates, 2) < 1.0101).all())
        True

    References:
        Hochreiter, Schmidhuber. Long short-term memory. Neural Computation 9, 1997.
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """

    num_gates = 4
    _plain_type = nn.LSTM
    _options = (*RecurrentLayer._options, "proj_size")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
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
        check_integer("proj_size", proj_size, 0)
        if proj_size >= hidden_size:
            raise ValueError(
                f"proj_size must be below hidden_size = {hidden_size}, got {proj_size}"
            )
        self.proj_size = proj_size
        self._add_all(device, dtype, num_reflectors, spectrum, init, base, margin)

    @property
    def _state_size(self) -> int:
        return self.proj_size or self.hidden_size

    def _plain_shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        shapes = super()._plain_shapes(features)
        projection = (self.proj_size, self.hidden_size)
        return shapes | ({"weight_hr": projection} if self.proj_size else {})

    def _options_to_show(self) -> list[str]:
        shown = super()._options_to_show()
        return [*shown, f"proj_size={self.proj_size}"] if self.proj_size else shown

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Runs all layers over all steps, as ``nn.LSTM.forward``."""
        if lengths is not None and not exports_to_onnx():
            return run_padded(self, input, hx, lengths)
        sequences = read_sequences(input, self.input_size, self.batch_first, lengths)
        h0, c0 = read_pair(hx)
        states = self.num_layers * self.num_directions
        h0 = sequences.state(h0, states, self._state_size, "h_0 of hx")
        c0 = sequences.state(c0, states, self.hidden_size, "c_0 of hx")
        y, h_n, c_n = run_fused(self, "lstm", sequences, (h0, c0))
        return sequences.output(y), (sequences.last(h_n), sequences.last(c_n))

    @classmethod
    def from_lstm(
        cls,
        lstm: nn.LSTM,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | Sequence[Spectrum] | None = None,
        out_of_bounds: str = "raise",
        margin: float | None = None,
    ) -> SpectralLSTM:
        """A SpectralLSTM with the weights of an ``nn.LSTM``.

        Raises:
            TypeError: if ``lstm`` is not an ``nn.LSTM``.
            ValueError: if a singular value is out of bounds (``out_of_bounds="clip"`` moves it
                inside) or the reflectors do not suffice.
        """
        svd = {"num_reflectors": num_reflectors, "spectrum": spectrum, "margin": margin}
        return cls._from_plain("lstm", lstm, svd, out_of_bounds)

    def to_lstm(self) -> nn.LSTM:
        """An ``nn.LSTM`` with the same outputs."""
        return self._to_plain()


def read_pair(hx: object) -> tuple[Tensor | None, Tensor | None]:
    """The two states of an LSTM; TypeError for anything but a pair or None."""
    if hx is None:
        return None, None
    if not isinstance(hx, Sequence) or len(hx) != 2:
        raise TypeError(f"hx must be a pair (h_0, c_0), got {type(hx).__name__}")
    return hx[0], hx[1]
