"""Recurrent layers over whole sequences, differentiated by their parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from peers.contender import Contender, optional
from peers.orthogonal import OURS
from spectral_triton import SpectralRNN, reference

Builder = Callable[[int, int, int, int, int, torch.dtype], Contender]
PROVABLE = 2**14  # T B n of the sizes a loop in plain PyTorch checks


def _sequence(
    steps: int, batch: int, inputs: int, n: int, k: int, dtype: torch.dtype
) -> tuple[SpectralRNN, Tensor, Callable[[], Tensor]]:
    torch.manual_seed(1)
    # Haar factors keep every direction busy; the default start would leave W the identity.
    rnn = SpectralRNN(inputs, n, num_reflectors=k, init="haar", dtype=dtype)
    x = torch.randn(steps, batch, inputs, dtype=dtype)

    def expected() -> Tensor:
        projected = nn.functional.linear(x, rnn.weight_ih_l0, rnn.bias_ih_l0 + rnn.bias_hh_l0)
        return reference.recurrence(projected, projected.new_zeros(batch, n), rnn.weight_hh_l0)

    return rnn, x, expected


def _ours(n: int, k: int, steps: int, batch: int, inputs: int, dtype: torch.dtype) -> Contender:
    rnn, x, expected = _sequence(steps, batch, inputs, n, k, dtype)
    check = expected if steps * batch * n <= PROVABLE else None
    return Contender(lambda: rnn(x)[0], tuple(rnn.parameters()), check)


def _torch_rnn(
    n: int, k: int, steps: int, batch: int, inputs: int, dtype: torch.dtype
) -> Contender:
    """The same function as ours, by ``to_rnn``: at any size its output has to agree."""
    rnn, x, _ = _sequence(steps, batch, inputs, n, k, dtype)
    plain = rnn.to_rnn()
    return Contender(lambda: plain(x)[0], tuple(plain.parameters()), lambda: rnn(x)[0])


def _torch_lstm(
    n: int, k: int, steps: int, batch: int, inputs: int, dtype: torch.dtype
) -> Contender:
    lstm = nn.LSTM(inputs, n, dtype=dtype)
    x = torch.randn(steps, batch, inputs, dtype=dtype)
    return Contender(lambda: lstm(x)[0], tuple(lstm.parameters()))


def _geotorch(triv: str) -> Builder:
    def build(n: int, k: int, steps: int, batch: int, inputs: int, dtype: torch.dtype) -> Contender:
        rnn = nn.RNN(inputs, n, dtype=dtype)
        constraints = optional("geotorch")
        constraints.almost_orthogonal(rnn, "weight_hh_l0", 0.01, "scaled_sigmoid", triv)
        x = torch.randn(steps, batch, inputs, dtype=dtype)

        def forward() -> Tensor:
            # nn.RNN keeps the weights it was built with; what it takes is formed at every call.
            parameters = [rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0]
            h0 = x.new_zeros(1, batch, n)
            return torch.rnn_tanh(x, h0, parameters, True, 1, 0.0, True, False, False)[0]

        return Contender(
            forward, tuple(rnn.parameters()), None, lambda: rnn.weight_hh_l0, (0.99, 1.01)
        )

    return build


SEQUENCES: dict[str, Builder] = {
    OURS: _ours,
    "nn.RNN": _torch_rnn,
    "nn.LSTM": _torch_lstm,
    "GeoTorch almost_orthogonal nn.RNN, Cayley": _geotorch("cayley"),
}
