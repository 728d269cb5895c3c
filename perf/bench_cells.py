"""Cells step by step, inside ``cached()`` and outside, against torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peers.orthogonal import OURS
from race import Race
from torch import Tensor, nn

from spectral_triton import SpectralGRUCell, SpectralLSTMCell, SpectralRNNCell, cached

CELLS: dict[str, tuple[type[nn.Module], str]] = {
    "SpectralRNNCell": (SpectralRNNCell, "to_rnn_cell"),
    "SpectralLSTMCell": (SpectralLSTMCell, "to_lstm_cell"),
    "SpectralGRUCell": (SpectralGRUCell, "to_gru_cell"),
}
STEPS, INPUTS = 100, 8
SIZES = [(128, 16, 1), (128, 16, 32), (512, 16, 32)]


def _steps(cell: nn.Module, x: Tensor) -> Tensor:
    state = None
    for x_t in x:
        state = cell(x_t, state)
    return state[0] if isinstance(state, tuple) else state


def _cached_steps(cell: nn.Module, x: Tensor) -> Tensor:
    with cached():
        return _steps(cell, x)


@pytest.mark.parametrize("way", ["forward", "forward+backward"])
@pytest.mark.parametrize("contender", [f"{OURS}, cached", OURS])
@pytest.mark.parametrize(("n", "k", "batch"), SIZES)
@pytest.mark.parametrize("name", CELLS)
def bench_cells(
    name: str, n: int, k: int, batch: int, contender: str, way: str, race: Race
) -> None:
    """A loop over 100 steps; the results agree in float64 first."""
    run = _cached_steps if "cached" in contender else _steps
    cell, plain, x = _pair(name, 12, 3, 2, torch.float64)
    torch.testing.assert_close(run(cell, x), _steps(plain, x), rtol=1e-9, atol=1e-9)
    cell, plain, x = _pair(name, n, k, batch, torch.float32)
    race(
        _work(run, cell, x, way),
        _work(_steps, plain, x, way),
        against=f"torch's cell, {way}",
        op=name,
        way=way,
        contender=contender,
        sizes={"n": n, "k": k, "T": STEPS, "batch": batch, "inputs": INPUTS},
    )


def _pair(
    name: str, n: int, k: int, batch: int, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(1)
    make, convert = CELLS[name]
    cell = make(INPUTS, n, num_reflectors=k, init="haar", dtype=dtype)
    return cell, getattr(cell, convert)(), torch.randn(STEPS, batch, INPUTS, dtype=dtype)


def _work(
    run: Callable[[nn.Module, Tensor], Tensor], cell: nn.Module, x: Tensor, way: str
) -> Callable[[], object]:
    parameters = tuple(cell.parameters())

    def forward() -> object:
        with torch.no_grad():
            return run(cell, x)

    def both() -> object:
        return torch.autograd.grad(run(cell, x).square().sum(), parameters)

    return forward if way == "forward" else both
