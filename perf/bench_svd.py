"""Linear algebra of a matrix in SVD form against torch.linalg on the dense one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peers.orthogonal import OURS
from race import Race
from torch import Tensor

from spectral_triton import HouseholderSVD

Operation = tuple[Callable[[HouseholderSVD, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]

OPERATIONS: dict[str, Operation] = {
    "solve": (lambda factors, b: factors.solve(b), torch.linalg.solve),
    "inverse": (
        lambda factors, b: factors.inverse().to_dense(),
        lambda w, b: torch.linalg.inv(w),
    ),
    "slogdet": (
        lambda factors, b: factors.slogdet().logabsdet,
        lambda w, b: torch.linalg.slogdet(w).logabsdet,
    ),
    "spectral_norm": (
        lambda factors, b: factors.spectral_norm(),
        lambda w, b: torch.linalg.matrix_norm(w, 2),
    ),
    "cond": (lambda factors, b: factors.cond(), lambda w, b: torch.linalg.cond(w)),
    "truncate": (
        lambda factors, b: factors.truncate(8) @ b,
        lambda w, b: _truncated(w, 8) @ b,
    ),
}


def _truncated(w: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(w)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def _factors(n: int, k: int, dtype: torch.dtype) -> HouseholderSVD:
    torch.manual_seed(0)
    left, right = torch.randn(k, n, dtype=dtype), torch.randn(k, n, dtype=dtype)
    # Distinct singular values, so that truncation is well defined.
    return HouseholderSVD(left, torch.linspace(0.5, 2, n, dtype=dtype), right, triangular=True)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("n", "k"), [(256, 256), (1024, 16), pytest.param(512, 512, marks=pytest.mark.quick)]
)
def bench_svd(n: int, k: int, operation: str, race: Race) -> None:
    """One operation for 32 right-hand sides, forward, results compared in float64 first."""
    ours, dense = OPERATIONS[operation]
    exact, b = _factors(64, min(k, 64), torch.float64), torch.randn(64, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(exact, b), dense(exact.to_dense(), b), rtol=1e-9, atol=1e-9)
    factors, b = _factors(n, k, torch.float32), torch.randn(n, 32)
    w = factors.to_dense()
    race(
        lambda: ours(factors, b),
        lambda: dense(w, b),
        against=f"torch.linalg on the dense matrix, {operation}",
        op=operation,
        way="forward",
        contender=OURS,
        sizes={"n": n, "k": k, "batch": 32},
    )
