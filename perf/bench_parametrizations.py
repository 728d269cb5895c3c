"""parametrizations.svd: reading the weight and its gradient, against other parametrizations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peers.contender import Contender
from peers.orthogonal import OURS, PRODUCTS
from race import Race
from torch import nn

from spectral_triton import parametrizations

PEERS = [name for name in PRODUCTS if "orthogonal, " in name]


def _ours(n: int, dtype: torch.dtype) -> Contender:
    layer = nn.Linear(n, n, bias=False, dtype=dtype)
    nn.init.orthogonal_(layer.weight)
    parametrizations.svd(layer)
    return Contender(
        lambda: layer.weight,
        tuple(layer.parameters()),
        matrix=lambda: layer.weight,
        interval=(0.99, 1.01),
    )


@pytest.mark.parametrize("name", [OURS, *PEERS])
@pytest.mark.parametrize("n", [pytest.param(128, marks=pytest.mark.quick), 512])
def bench_parametrization(n: int, name: str, enter: Callable[..., Contender], race: Race) -> None:
    """The weight of a layer of n features, forward and backward."""
    contender = enter(_ours if name == OURS else PRODUCTS[name], (24,), n)
    work, description = contender.backward_ready(), {"contender": name, "sizes": {"n": n}}
    if name == OURS:
        a, b = torch.randn(n, n), torch.randn(n, n)
        reference, against = (lambda: a @ b), "one n x n GEMM"
    else:
        reference, against = _ours(n, torch.float32).backward_ready(), OURS
    description |= {"op": "parametrization", "way": "forward+backward"}
    race(work, reference, against=against, **description)
