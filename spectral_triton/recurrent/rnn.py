r"""Recurrent layers whose transition matrices keep their singular values within bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from spectral_triton.recurrence.nonlinearity import check_nonlinearity
from spectral_triton.recurrence.recurrence import run
from spectral_triton.recurrent.layer import RecurrentLayer
from spectral_triton.recurrent.padded import run_padded
from spectral_triton.recurrent.parameters import (
    input_weights,
    modrelu_bias,
    reset_cell_parameters_,
    result_dtype,
)
from spectral_triton.recurrent.state import read_sequences
from spectral_triton.runtime.onnx_export import exports_to_onnx
from spectral_triton.spectra.spectrum import Spectrum


class SpectralRNN(RecurrentLayer):
    r"""``torch.nn.RNN`` with a transition matrix in SVD form: gradients that cannot explode.

    .. math:: h_t = \varphi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}), \qquad
        W_{hh} = U\,\mathrm{diag}(\sigma)\,V^\top, \quad |\sigma - \sigma^*| \le r

    Arguments, shapes, packed and unbatched input, and the names of parameters are those of
    ``nn.RNN``; in place of ``weight_hh_l0`` the module ``svd_hh_l0`` (an :class:`SVDWeight`) holds
    the reflectors and raw singular values, and ``weight_hh_l0`` reads as the dense matrix. A state
    dict of ``nn.RNN`` loads where its singular values lie within the bounds and there are all
    reflectors: from a dense matrix, also one of its own, fewer cannot be recovered.

    For 1-Lipschitz φ (all but modrelu with a positive bias and leaky_relu with a slope above 1)
    :math:`\|\partial h_T/\partial h_t\| \le (\sigma^* + r)^{T-t}`: a margin of about 1/T keeps it
    below e. Exploding is excluded, vanishing is not. The module starts as a memory: W_hh the
    identity, small input weights, zero biases; ``init`` chooses another start.

    A step costs 4 n (k_u + k_v) operations per sequence, or 2 n² where that is less. The projected
    input is not kept: for the backward pass the layer holds its input, its output and T B
    (k_u + k_v) numbers, or none of the latter and n² instead. It computes in float32 at least,
    whatever the dtype of input or module, also under autocast.

    Args:
        input_size: Features of each input.
        hidden_size: Size n of the state.
        num_layers: Layers stacked on each other.
        nonlinearity: "tanh", "relu", "leaky_relu", "identity", or "modrelu" with a trained bias.
        bias: Whether to add ``b_ih`` and ``b_hh``.
        batch_first: Input and output as (batch, time, features).
        dropout: Probability of dropping outputs of each layer but the last.
        bidirectional: Adds a second direction, whose outputs are appended.
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
        As ``torch.nn.RNN``: input (T, B, input_size), (B, T, input_size), (T, input_size) or a
        PackedSequence, and an optional ``h_0`` (num_layers * directions, B, n); returns the output
        of the last layer and ``h_n``. Other than there, T may be 0, an ``h_0`` of another dtype is
        converted, and the output must not be changed in place before its backward pass, as that of
        ``nn.LSTM``. A program of ``torch.jit.trace`` is for the length it was traced with.
        With ``lengths`` (B,) of the sequences of a padded batch it is packed and padded again.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is out of range, an option unknown, or shapes do not fit.

    Example:
        >>> rnn = SpectralRNN(3, 16, num_reflectors=4, nonlinearity="relu")
        >>> output, h_n = rnn(torch.randn(50, 2, 3))
        >>> output.shape, h_n.shape
        (torch.Size([50, 2, 16]), torch.Size([1, 2, 16]))

    References:
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """

    _plain_type = nn.RNN
    _options = (*RecurrentLayer._options, "nonlinearity")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
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
        options = (num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(input_size, hidden_size, *options, init)
        self.nonlinearity, self.negative_slope = nonlinearity, negative_slope
        self._add_all(device, dtype, num_reflectors, spectrum, init, base, margin)

    def _plain_shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        shapes = super()._plain_shapes(features)
        own = {"bias_modrelu": (self.hidden_size,)} if self.nonlinearity == "modrelu" else {}
        return shapes | own

    def _reset_plain(self, suffix: str) -> None:
        reset_cell_parameters_(self, suffix)

    def extra_repr(self) -> str:
        head = f"{self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity!r}"
        return ", ".join((head, *self._options_to_show()))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs all layers over all steps, as ``nn.RNN.forward``."""
        if lengths is not None and not exports_to_onnx():
            return run_padded(self, input, hx, lengths)
        sequences = read_sequences(input, self.input_size, self.batch_first, lengths)
        x, batch_sizes = sequences.x, sequences.batch_sizes
        h0 = sequences.state(hx, self.num_layers * self.num_directions, self.hidden_size)
        last = []
        for layer in range(self.num_layers):
            outputs = []
            for way in range(self.num_directions):
                index = layer * self.num_directions + way
                suffix, steps = self._suffixes()[index], (batch_sizes, sequences.lengths)
                y, h = self._run(x, h0[index], suffix, bool(way), *steps)
                outputs.append(y)
                last.append(h)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.dropout and self.training and layer + 1 < self.num_layers:
                x = nn.functional.dropout(x, self.dropout)
        return sequences.output(x), sequences.last(torch.stack(last))

    def _run(
        self,
        x: Tensor,
        h0: Tensor,
        suffix: str,
        reverse: bool,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        bias = modrelu_bias(self, suffix)
        options = (self.nonlinearity, self.negative_slope, bias, reverse, batch_sizes)
        weights = input_weights(self, suffix, x)
        y, last = run(x, h0, self._svd_weight(suffix).factors, *options, *weights, lengths)
        return y.to(result_dtype(x)), last.to(result_dtype(x))

    @classmethod
    def from_rnn(
        cls,
        rnn: nn.RNN,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        out_of_bounds: str = "raise",
        margin: float | None = None,
    ) -> SpectralRNN:
        """A SpectralRNN with the weights of an ``nn.RNN``.

        Raises:
            TypeError: if ``rnn`` is not an ``nn.RNN``.
            ValueError: if a singular value is out of bounds (``out_of_bounds="clip"`` moves it
                inside) or the reflectors do not suffice.
        """
        svd = {"num_reflectors": num_reflectors, "spectrum": spectrum, "margin": margin}
        return cls._from_plain("rnn", rnn, svd, out_of_bounds)

    def to_rnn(self) -> nn.RNN:
        """An ``nn.RNN`` with the same outputs; ValueError for nonlinearities it does not have."""
        return self._to_plain()
