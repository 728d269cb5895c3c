"""SVDLinear against nn.Linear and against other layers with bounded singular values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peers.contender import Contender
from peers.layers import LAYERS
from peers.orthogonal import OURS
from race import Race, peak_bytes

DENSE = "nn.Linear"
QUICK = (
    OURS,
    DENSE,
    "GeoTorch almost_orthogonal, Cayley",
    "torch householder_product, twice",
    "nflows SVDLinear",
    "deel-torchlip SpectralLinear (approximate)",
)
AT_FEW = (
    OURS,
    DENSE,
    "GeoTorch almost_orthogonal, Cayley",
    "torch ormqr, twice",
    "nflows SVDLinear",
    "FastH's blocks, twice",
    "loop over reflectors, twice",
    "torch spectral_norm (σ ≤ 1, approximate)",
    "deel-torchlip SpectralLinear (approximate)",
)


def _cases() -> list[object]:
    def case(n: int, k: int, batch: int, way: str, name: str, quick: bool) -> object:
        return pytest.param(n, k, batch, way, name, marks=[pytest.mark.quick] if quick else [])

    both = "forward+backward"
    cases = [case(512, 512, 32, both, name, name in QUICK) for name in LAYERS]
    cases += [case(512, 16, 32, both, name, name in QUICK) for name in AT_FEW]
    cases += [case(512, k, 32, "forward", name, False) for k in (16, 512) for name in QUICK[:3]]
    for n in (64, 128, 256, 1024):
        cases += [case(n, n, 32, both, name, False) for name in QUICK[:3]]
    cases += [case(512, k, 32, both, OURS, False) for k in (4, 64, 128, 256)]
    for k in (16, 512):
        cases += [case(512, k, batch, both, OURS, False) for batch in (1, 128, 1024)]
    return cases


@pytest.mark.parametrize(("n", "k", "batch", "way", "name"), _cases())
def bench_linear(
    n: int, k: int, batch: int, way: str, name: str, enter: Callable[..., Contender], race: Race
) -> None:
    """A layer of n features with k reflectors per side, differentiated by input and parameters."""
    contender = enter(LAYERS[name], (16, min(k, 16), 5), n, k, batch)
    rival = DENSE if name == OURS else OURS
    other = LAYERS[rival](n, k, batch, torch.float32)
    work, reference = (
        c.inference if way == "forward" else c.backward_ready() for c in (contender, other)
    )
    sizes = {"n": n, "k": k, "batch": batch}
    race(work, reference, against=rival, op="linear", way=way, contender=name, sizes=sizes)
    race.note(peak_bytes=peak_bytes(work))
