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


TORCH, OUTSIDE = "torch's cell", f"{OURS}, outside of cached()"
CONTENDERS = {OURS: _cached_steps, OUTSIDE: _steps, TORCH: _steps}


@pytest.mark.parametrize("way", ["forward", "forward+backward"])
@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize(("n", "k", "batch"), SIZES)
@pytest.mark.parametrize("name", CELLS)
def bench_cells(
    name: str, n: int, k: int, batch: int, contender: str, way: str, race: Race
) -> None:
    """A loop over 100 steps; the results agree in float64 first."""
    rival = TORCH if contender == OURS else OURS
    small = [_work(which, name, (12, 3, 2), torch.float64, "forward") for which in CONTENDERS]
    for work in small[1:]:
        torch.testing.assert_close(work(), small[0](), rtol=1e-9, atol=1e-9)
    size = (n, k, batch)
    race(
        _work(contender, name, size, torch.float32, way),
        _work(rival, name, size, torch.float32, way),
        against=rival,
        op=name,
        way=way,
        contender=contender,
        sizes={"n": n, "k": k, "T": STEPS, "batch": batch, "inputs": INPUTS},
    )


def _work(
    contender: str, name: str, size: tuple[int, int, int], dtype: torch.dtype, way: str
) -> Callable[[], object]:
    torch.manual_seed(1)
    n, k, batch = size
    make, convert = CELLS[name]
    cell = make(INPUTS, n, num_reflectors=k, init="haar", dtype=dtype)
    x = torch.randn(STEPS, batch, INPUTS, dtype=dtype)
    cell = getattr(cell, convert)() if contender == TORCH else cell
    run, parameters = CONTENDERS[contender], tuple(cell.parameters())

    def forward() -> object:
        with torch.no_grad():
            return run(cell, x)

    def both() -> object:
        return torch.autograd.grad(run(cell, x).square().sum(), parameters)

    return forward if way == "forward" else both
