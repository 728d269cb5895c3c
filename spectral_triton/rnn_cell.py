r"""One step of a recurrent layer whose transition matrix is in SVD form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
from spectral_triton.validation import check_choice, check_floating, check_integer
from spectral_triton.weight import INITIALIZERS, SVDWeight


class SpectralRNNCell(nn.Module):
    r"""``torch.nn.RNNCell`` with a transition matrix in SVD form.

    .. math:: h' = \varphi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh}), \qquad
        W_{hh} = U\,\mathrm{diag}(\sigma)\,V^\top

    Each call prepares the factors anew: over a whole sequence :class:`SpectralRNN` is much faster.

    Args:
        input_size: Features of the input.
        hidden_size: Size n of the state.
        bias: Whether to add ``b_ih`` and ``b_hh``.
        nonlinearity: "tanh", "relu", "leaky_relu", "identity", or "modrelu" with a trained bias.
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side: None for all n, an int or a pair (left, right).
        spectrum: Map to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of W_hh: "identity", "haar", "henaff" or "cayley".
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
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
            check_integer(name, value, 1)
        check_nonlinearity(nonlinearity, negative_slope)
        check_choice("init", init, INITIALIZERS)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        self.nonlinearity, self.negative_slope = nonlinearity, negative_slope
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        add_cell_parameters(self, "", input_size, hidden_size, bias, nonlinearity, options)
        self.svd_hh = SVDWeight(
            hidden_size,
            hidden_size,
            num_reflectors=num_reflectors,
            spectrum=spectrum,
            init=init,
            **options,
        )
        reset_cell_parameters_(self, "")

    @property
    def weight_hh(self) -> Tensor:
        """The dense transition matrix, (n, n)."""
        return self.svd_hh.to_dense()

    @property
    def factors(self) -> HouseholderSVD:
        """The transition matrix as an operator."""
        return self.svd_hh.factors

    @property
    def singular_values(self) -> Tensor:
        """Its singular values, shape (n,), unsorted and differentiable."""
        return self.svd_hh.singular_values

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as on construction."""
        self.svd_hh.reset_parameters()
        reset_cell_parameters_(self, "")

    def extra_repr(self) -> str:
        shown = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity!r}{shown}"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state."""
        check_floating("input", input)
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input must be (B, input_size) or (input_size,) with input_size = "
                f"{self.input_size}, got shape {tuple(input.shape)}"
            )
        batched = input.dim() == 2
        x = check_input(input.unsqueeze(0), self.input_size, False)
        if hx is not None:
            check_floating("hx", hx)
            expected = (*input.shape[:-1], self.hidden_size)
            if tuple(hx.shape) != expected:
                raise ValueError(f"hx must have shape {expected}, got {tuple(hx.shape)}")
            hx = hx.unsqueeze(0)
        h0 = initial_state(hx, x, (1, x.shape[1], self.hidden_size), batched, None)
        options = (self.nonlinearity, self.negative_slope, modrelu_bias(self, ""), False, None)
        h = run(project_input(self, "", x), h0[0], self.factors, *options)[1]
        return h if batched else h.squeeze(0)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        load_dense_transitions(self, ("",), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
