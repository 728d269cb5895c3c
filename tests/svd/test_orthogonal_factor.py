"""One side of W against the dense product of its reflectors and its base."""

import pytest
import torch

from spectral_triton import reference
from spectral_triton.svd.base import orthonormalized
from spectral_triton.svd.orthogonal_factor import OrthogonalFactor


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize(("n", "p", "k"), [(5, 5, 2), (6, 3, 3), (4, 1, 0)])
def test_every_use_is_that_of_the_dense_columns(n, p, k, triangular, based):
    rows = torch.randn(2, k, n)
    base = orthonormalized(torch.randn(2, n, p)) if based else None
    factor = OrthogonalFactor(rows, base, triangular)
    q = reference.householder_product(rows.triu() if triangular else rows)
    dense = q @ base if based else q[..., :p]
    x, y = torch.randn(2, 3, n), torch.randn(2, 3, p)
    torch.testing.assert_close(factor.coordinates(x, p), x @ dense)
    torch.testing.assert_close(factor.combination(y), y @ dense.mT)
    scale = torch.randn(2, p)
    torch.testing.assert_close(factor.scaled_columns(scale), (dense * scale.unsqueeze(-2)).mT)
    indices = torch.randint(p, (2, 2))
    expected = dense.mT.gather(-2, indices.unsqueeze(-1).expand(2, 2, n))
    torch.testing.assert_close(factor.columns(indices), expected)
    if n == p:
        torch.testing.assert_close(
            factor.determinant_sign().double(),
            torch.linalg.det(q).sign() * (torch.linalg.det(base).sign() if based else 1),
        )
    if based:
        square = factor.completed()
        whole = q @ square.base
        torch.testing.assert_close(whole[..., :p], dense)
        torch.testing.assert_close(whole @ whole.mT, torch.eye(n).expand(2, n, n))
