"""Prepared reflectors: blocks and factors that make the product, alone and in pairs."""

from contextlib import nullcontext

import pytest
import torch

from spectral_triton import reference
from spectral_triton.householder.prepared import (
    is_one_block,
    prepare,
    prepare_pair,
    prepare_product,
)
from spectral_triton.runtime.backend import use_backend


def product_of(v, h):
    """Q from what was prepared for it."""
    q = torch.eye(v.shape[-1], dtype=v.dtype)
    for v_j, h_j in zip(v.unbind(-3), h.unbind(-3), strict=True):
        q = q - 2 * (q @ h_j.mT) @ v_j
    return q


def q_of(v, t, transpose):
    """Q, or its transpose, from what was prepared."""
    eye = torch.eye(v.shape[-1], dtype=v.dtype)
    if v.shape == t.shape:
        return (eye - 2 * v.mT @ t).mT if not transpose else eye - 2 * v.mT @ t
    q = eye
    for v_j, t_j in zip(v.unbind(-3), t.unbind(-3), strict=True):
        q = q @ (eye - v_j.mT @ t_j @ v_j)
    return q


@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("k", "n", "m"), [(1, 1, None), (5, 9, None), (128, 200, None), (192, 192, None), (140, 193, 3)]
)
def test_factors_make_the_product(k, n, m, transpose, triangular, batch):
    reflectors = torch.randn(*batch, k, n).requires_grad_()
    v, t, scale = prepare(reflectors, triangular, 5, transpose)
    assert not any(a.requires_grad for a in (v, t, scale))
    assert is_one_block(v, reflectors) == (m is None)
    assert m is None or v.shape[-3] == m
    used = reflectors.detach().triu() if triangular else reflectors.detach()
    torch.testing.assert_close(scale.squeeze(-1), 1 / used.norm(dim=-1))
    rows = v if m is None else v.flatten(-3, -2)[..., :k, :]
    torch.testing.assert_close(rows, used * scale)
    q = reference.householder_product(used)
    torch.testing.assert_close(q_of(v, t, transpose), q, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("backend", [None, "triton"])
@pytest.mark.parametrize(("k", "n"), [(5, 9), (140, 193)])
def test_product_is_prepared_for_any_number_of_blocks(k, n, backend, triangular, batch):
    reflectors = torch.randn(*batch, k, n)
    with use_backend(backend) if backend else nullcontext():
        v, h, _ = prepare_product(reflectors, triangular)
    v, h = (a.unsqueeze(-3) if is_one_block(v, reflectors) else a for a in (v, h))
    q = reference.householder_product(reflectors.triu() if triangular else reflectors)
    torch.testing.assert_close(product_of(v, h), q, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize(
    "shapes", [((3, 5), (3, 5)), ((3, 5), (2, 5)), ((3, 5), (4, 7)), ((300, 300), (300, 300))]
)
def test_two_matrices_are_prepared_as_each_by_itself(shapes, triangular):
    matrices = [torch.randn(shape) for shape in shapes]
    pair = prepare_pair(*matrices, triangular, 7)
    for transpose, prepared in enumerate(pair):
        by_itself = prepare(matrices[transpose], triangular, 7, bool(transpose))
        torch.testing.assert_close(prepared, by_itself, rtol=1e-11, atol=1e-12)
