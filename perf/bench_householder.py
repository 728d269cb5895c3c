"""Orthogonal matrices from reflectors: formed, and applied without being formed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peers.applied import APPLIED
from peers.contender import Contender
from peers.orthogonal import OURS, PRODUCTS
from race import Race, peak_bytes

QUICK = (
    OURS,
    "torch householder_product",
    "torch orthogonal, Cayley",
    "GeoTorch orthogonal, Cayley",
    "FastH's blocks",
)
Enter = Callable[..., Contender]


def _product_cases() -> list[object]:
    cases = []
    for n in (64, 256, 1024):
        for name in PRODUCTS:
            quick = (n == 256 and name in QUICK) or (n == 1024 and name in QUICK[:3])
            cases.append(pytest.param(n, name, marks=[pytest.mark.quick] if quick else []))
    cases += [pytest.param(n, OURS) for n in (128, 512)]
    return cases


def floor_of_product(n: int) -> float:
    """Products of n x n matrices that Q from a triangle and its gradient hold: 16/3 n³ over 2 n³.

    Forward 4/3 n³; backward one n x n product and 2 n³ for the blocks.
    """
    return (4 / 3 + 2 + 2) / 2


@pytest.mark.parametrize(("n", "name"), _product_cases())
def bench_product(n: int, name: str, enter: Enter, race: Race) -> None:
    """Q of n reflectors in n dimensions, forward and backward."""
    contender = enter(PRODUCTS[name], (24,), n)
    work = contender.backward_ready()
    description = {"op": "householder_product", "way": "forward+backward", "contender": name}
    sizes = {"n": n, "k": n}
    if name == OURS:
        a, b = torch.randn(n, n), torch.randn(n, n)
        race(work, lambda: a @ b, against="one n x n GEMM", sizes=sizes, **description)
        race.note(floor=floor_of_product(n))
    else:
        ours = PRODUCTS[OURS](n, torch.float32).backward_ready()
        race(work, ours, against=OURS, sizes=sizes, **description)
    race.note(peak_bytes=peak_bytes(work))


def _apply_cases() -> list[object]:
    sizes = [(512, k, 32) for k in (16, 64, 512)] + [(n, n, 32) for n in (64, 128, 256, 1024)]
    cases = []
    for way in ("forward", "forward+backward"):
        for size in sizes:
            for name in APPLIED:
                main = size[0] == 512 and size[1] in (16, 512)
                if not main and name not in (OURS, "torch ormqr"):
                    continue
                quick = main and name in (OURS, "torch ormqr")
                marks = [pytest.mark.quick] if quick else []
                cases.append(pytest.param(*size, way, name, marks=marks))
    return cases


@pytest.mark.parametrize(("n", "k", "batch", "way", "name"), _apply_cases())
def bench_apply(n: int, k: int, batch: int, way: str, name: str, enter: Enter, race: Race) -> None:
    """Q x for k reflectors in n dimensions and a batch of rows."""
    contender = enter(APPLIED[name], (24, 16, 5), n, k, batch)
    ours = contender if name == OURS else APPLIED[OURS](n, k, batch, torch.float32)
    is_forward = way == "forward"
    work, own = (c.inference if is_forward else c.backward_ready() for c in (contender, ours))
    description = {
        "op": "apply_reflectors",
        "way": way,
        "contender": name,
        "sizes": {"n": n, "k": k, "batch": batch},
    }
    if name == OURS:
        x, q = torch.randn(batch, n, requires_grad=True), torch.randn(n, n, requires_grad=True)
        dense = Contender(lambda: x @ q, (x, q))
        floor = dense.inference if is_forward else dense.backward_ready()
        race(work, floor, against="product with a dense matrix", **description)
    else:
        race(work, own, against=OURS, **description)
