r"""Recurrent layers whose transition matrices keep their singular values within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from spectral_triton.recurrence import check_nonlinearity, run
from spectral_triton.rnn_parameters import (
    add_cell_parameters,
    load_dense_transitions,
    modrelu_bias,
    project_input,
    reset_cell_parameters_,
)
from spectral_triton.rnn_state import check_input, initial_state
from spectral_triton.spectrum import Spectrum
from spectral_triton.svd import HouseholderSVD
from spectral_triton.validation import check_choice, check_integer, check_number
from spectral_triton.weight import INITIALIZERS, SVDWeight


class SpectralRNN(nn.Module):
    r"""``torch.nn.RNN`` with a transition matrix in SVD form: gradients that cannot explode.

    .. math:: h_t = \varphi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}), \qquad
        W_{hh} = U\,\mathrm{diag}(\sigma)\,V^\top, \quad |\sigma - \sigma^*| \le r

    Arguments, shapes, packed and unbatched input, and the names of parameters are those of
    ``nn.RNN``; in place of ``weight_hh_l0`` the module ``svd_hh_l0`` (an :class:`SVDWeight`) holds
    the reflectors and raw singular values, and ``weight_hh_l0`` reads as the dense matrix. A state
    dict of ``nn.RNN`` loads where its singular values lie within the bounds.

    For 1-Lipschitz φ (all but modrelu with a positive bias) :math:`\|\partial h_T/\partial h_t\|
    \le (\sigma^* + r)^{T-t}`: a margin of about 1/T keeps it below e. Exploding is excluded,
    vanishing is not. The module starts as a memory: W_hh the identity, small input weights, zero
    biases; ``init`` chooses another start.

    A step costs 4 n (k_u + k_v) operations per sequence, or 2 n² where that is less. The recurrence
    computes in float32 at least, whatever the dtype of input or module, also under autocast.

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
        init: Start of W_hh: "identity", "haar", "henaff" or "cayley".
        negative_slope: Slope of leaky_relu below zero.

    Shape:
        As ``torch.nn.RNN``: input (T, B, input_size), (B, T, input_size), (T, input_size) or a
        PackedSequence, and an optional ``h_0`` (num_layers * directions, B, n); returns the output
        of the last layer and ``h_n``.

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
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
            check_integer(name, value, 1)
        check_integer("num_layers", num_layers, 1)
        check_nonlinearity(nonlinearity, negative_slope)
        check_number("dropout", dropout)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability between 0 and 1, got {dropout}")
        check_choice("init", init, INITIALIZERS)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.nonlinearity, self.negative_slope = nonlinearity, negative_slope
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional = bidirectional
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        for index, suffix in enumerate(self._suffixes()):
            first = index < self.num_directions
            features = input_size if first else hidden_size * self.num_directions
            add_cell_parameters(self, suffix, features, hidden_size, bias, nonlinearity, options)
            weight = SVDWeight(
                hidden_size,
                hidden_size,
                num_reflectors=num_reflectors,
                spectrum=spectrum,
                init=init,
                **options,
            )
            self.add_module(f"svd_hh{suffix}", weight)
            reset_cell_parameters_(self, suffix)

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def _suffixes(self) -> list[str]:
        directions = ("", "_reverse")[: self.num_directions]
        return [f"_l{layer}{way}" for layer in range(self.num_layers) for way in directions]

    def svd_weight(self, layer: int = 0, reverse: bool = False) -> SVDWeight:
        """The module that holds one transition matrix."""
        check_integer("layer", layer, 0, self.num_layers - 1)
        if reverse and not self.bidirectional:
            raise ValueError("reverse=True needs a bidirectional SpectralRNN")
        return self.get_submodule(f"svd_hh_l{layer}{'_reverse' if reverse else ''}")

    def factors(self, layer: int = 0, reverse: bool = False) -> HouseholderSVD:
        """One transition matrix as an operator."""
        return self.svd_weight(layer, reverse).factors

    def singular_values(self, layer: int = 0, reverse: bool = False) -> Tensor:
        """Singular values of one transition matrix, shape (n,), unsorted and differentiable."""
        return self.svd_weight(layer, reverse).singular_values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("weight_hh_l"):
            weight = self._modules.get(f"svd_hh{name[9:]}")
            if weight is not None:
                return weight.to_dense()
        return super().__getattr__(name)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as on construction."""
        for suffix in self._suffixes():
            self.get_submodule(f"svd_hh{suffix}").reset_parameters()
            reset_cell_parameters_(self, suffix)

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity!r}"]
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        parts += [
            f"{name}={getattr(self, name)}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        return ", ".join(parts)

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs all layers over all steps, as ``nn.RNN.forward``."""
        packed = input if isinstance(input, PackedSequence) else None
        x = check_input(input, self.input_size, self.batch_first)
        batched = packed is not None or input.dim() == 3
        batch_sizes = None if packed is None else packed.batch_sizes
        size = x.shape[1] if packed is None else int(packed.batch_sizes[0])
        states = self.num_layers * self.num_directions
        order = None if packed is None else packed.sorted_indices
        h0 = initial_state(hx, x, (states, size, self.hidden_size), batched, order)
        last = []
        for layer in range(self.num_layers):
            outputs = []
            for way in range(self.num_directions):
                index = layer * self.num_directions + way
                y, h = self._run(x, h0[index], self._suffixes()[index], bool(way), batch_sizes)
                outputs.append(y)
                last.append(h)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.dropout and self.training and layer + 1 < self.num_layers:
                x = nn.functional.dropout(x, self.dropout)
        h_n = torch.stack(last)
        if packed is not None:
            if packed.unsorted_indices is not None:
                h_n = h_n.index_select(1, packed.unsorted_indices)
            return PackedSequence(x, *packed[1:]), h_n
        if not batched:
            return x.squeeze(1), h_n.squeeze(1)
        return (x.transpose(0, 1) if self.batch_first else x), h_n

    def _run(
        self, x: Tensor, h0: Tensor, suffix: str, reverse: bool, batch_sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        weight = self.get_submodule(f"svd_hh{suffix}")
        return run(
            project_input(self, suffix, x),
            h0,
            weight.factors,
            self.nonlinearity,
            self.negative_slope,
            modrelu_bias(self, suffix),
            reverse,
            batch_sizes,
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        load_dense_transitions(self, self._suffixes(), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @classmethod
    def from_rnn(
        cls,
        rnn: nn.RNN,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        out_of_bounds: str = "raise",
    ) -> SpectralRNN:
        """A SpectralRNN with the weights of an ``nn.RNN``.

        Raises:
            TypeError: if ``rnn`` is not an ``nn.RNN``.
            ValueError: if a singular value is out of bounds (``out_of_bounds="clip"`` moves it
                inside) or the reflectors do not suffice.
        """
        if not isinstance(rnn, nn.RNN):
            raise TypeError(f"rnn must be a torch.nn.RNN, got {type(rnn).__name__}")
        own = cls(
            rnn.input_size,
            rnn.hidden_size,
            rnn.num_layers,
            rnn.nonlinearity,
            rnn.bias,
            rnn.batch_first,
            rnn.dropout,
            rnn.bidirectional,
            rnn.weight_ih_l0.device,
            rnn.weight_ih_l0.dtype,
            num_reflectors=num_reflectors,
            spectrum=spectrum,
        )
        for suffix in own._suffixes():
            dense = getattr(rnn, f"weight_hh{suffix}").detach()
            own.get_submodule(f"svd_hh{suffix}").set_dense_(dense, out_of_bounds)
        own._copy_plain(rnn, own)
        return own.train(rnn.training)

    def to_rnn(self) -> nn.RNN:
        """An ``nn.RNN`` with the same outputs; ValueError for nonlinearities it does not have."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"nn.RNN has the nonlinearities tanh and relu, not {self.nonlinearity!r}"
            )
        plain = nn.RNN(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.nonlinearity,
            self.bias,
            self.batch_first,
            self.dropout,
            self.bidirectional,
            device=self.weight_ih_l0.device,
            dtype=self.weight_ih_l0.dtype,
        )
        with torch.no_grad():
            for suffix in self._suffixes():
                getattr(plain, f"weight_hh{suffix}").copy_(getattr(self, f"weight_hh{suffix}"))
        self._copy_plain(self, plain)
        return plain.train(self.training)

    @torch.no_grad()
    def _copy_plain(self, source: nn.Module, target: nn.Module) -> None:
        for suffix in self._suffixes():
            for name in ("weight_ih", "bias_ih", "bias_hh") if self.bias else ("weight_ih",):
                getattr(target, f"{name}{suffix}").copy_(getattr(source, f"{name}{suffix}"))
