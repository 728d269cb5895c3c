"""SpectralRNN over whole sequences against nn.RNN of the same sizes, and its memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peers.contender import Contender
from peers.orthogonal import OURS
from peers.recurrent import SEQUENCES
from race import Race, peak_bytes

from spectral_triton import SVDWeight, spectral_recurrence

DENSE = "nn.RNN"
PIXEL, ROW = 1, 28  # features of a step


def _cases() -> list[object]:
    # n, k per side, T, batch, features of a step
    pixel = (128, 16, 784, 100, PIXEL)
    wide = [(n, 16, 200, 64, ROW) for n in (64, 128, 256, 512, 1024)]
    grid = [
        (n, 16, steps, batch, inputs)
        for n in (64, 128, 256, 512, 1024)
        for steps, inputs in ((200, ROW), (784, PIXEL))
        for batch in (16, 64, 128)
    ]
    short = (128, 16, 50, 100, PIXEL)
    full = [(n, n, 200, 64, ROW) for n in (64, 128, 256, 512)]
    quick = {(*pixel, OURS), (*pixel, DENSE), (*wide[3], OURS), (*wide[3], DENSE)}
    chosen = [(*size, OURS) for size in (pixel, *grid, short, *full)]
    chosen += [(*size, name) for size in (pixel, *wide) for name in (DENSE,)]
    rest = [name for name in SEQUENCES if name not in (OURS, DENSE)]
    chosen += [(*size, name) for size in (pixel, wide[3]) for name in rest]
    return [pytest.param(*c, marks=[pytest.mark.quick] if c in quick else []) for c in chosen]


@pytest.mark.parametrize(("n", "k", "steps", "batch", "inputs", "name"), _cases())
def bench_rnn(
    n: int,
    k: int,
    steps: int,
    batch: int,
    inputs: int,
    name: str,
    enter: Callable[..., Contender],
    race: Race,
) -> None:
    """One layer over T steps, forward and backward to all its parameters."""
    size = (n, k, steps, batch, inputs)
    contender = enter(SEQUENCES[name], (12, 3, 9, 4, 2), *size)
    rival = DENSE if name == OURS else OURS
    work = contender.backward_ready()
    reference = SEQUENCES[rival](*size, torch.float32).backward_ready()
    description = {"op": "rnn", "way": "forward+backward", "contender": name}
    sizes = {"n": n, "k": k, "T": steps, "batch": batch, "inputs": inputs}
    race(work, reference, against=rival, sizes=sizes, **description)
    race.note(peak_bytes=peak_bytes(work))


@pytest.mark.parametrize(
    ("n", "k", "steps", "batch"),
    [
        pytest.param(128, 16, 784, 100, marks=pytest.mark.quick),
        (256, 16, 200, 64),
        (256, 8, 200, 64),
        (256, 16, 400, 64),
        (512, 16, 200, 64),
    ],
)
def bench_memory(n: int, k: int, steps: int, batch: int, race: Race) -> None:
    """What the recurrence keeps beyond its output until the backward pass: T B 2k + O(n k)."""
    weight = SVDWeight(n, n, num_reflectors=k)
    x = torch.randn(steps, batch, n, requires_grad=True)

    def forward() -> torch.Tensor:
        return spectral_recurrence(x, None, weight.factors)

    held = _held_bytes(forward) - 4 * x.numel()
    coefficients = 4 * steps * batch * 2 * k
    assert held <= coefficients + 4 * 20 * n * k + 4 * 4 * batch * n
    sizes = {"n": n, "k": k, "T": steps, "batch": batch}
    dense = torch.nn.RNN(n, n)
    race(
        forward,
        lambda: dense(x),
        against="nn.RNN with the input projection",
        op="recurrence",
        way="forward",
        contender=OURS,
        sizes=sizes,
    )
    race.note(
        held_bytes=held, output_bytes=4 * x.numel(), held_by_rnn=_held_bytes(lambda: dense(x)[0])
    )


def _held_bytes(work: Callable[[], torch.Tensor]) -> int:
    """What a call leaves allocated while its result lives."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        result = work()
    events = profiler.profiler.kineto_results.events()
    held = sum(event.nbytes() for event in events if event.name() == "[memory]")
    del result
    return held
