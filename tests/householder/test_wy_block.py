"""One block in WY form: the results of the compact form, inputs left alone."""

import pytest
import torch

from spectral_triton import reference
from spectral_triton.householder import compact_wy, wy_block

SIZES = [(1, 1), (2, 3), (5, 5), (6, 40), (70, 75)]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def unit_rows(k, n, *batch, triangular=False):
    return compact_wy.unit_rows(torch.randn(*batch, k, n), triangular)[0]


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("k", "n"), SIZES)
def test_apply(k, n, transpose, triangular, batch):
    v = unit_rows(k, n, *batch, triangular=triangular)
    h = wy_block.half_w(v, transpose)
    x, grad_y = torch.randn(2, *batch, 3, n).unbind(0)
    y = wy_block.apply_fwd(x, v, h)
    close(y, reference.apply_reflectors(x, v, transpose=transpose))
    close(wy_block.apply_fwd(y, h, v), x)
    block = v.unsqueeze(-3)
    way = transpose, triangular
    expected = compact_wy.apply_bwd(y, grad_y, block, compact_wy.t_factor(block), *way)
    for actual, wanted in zip(wy_block.apply_bwd(y, grad_y, v, h, *way), expected, strict=True):
        close(actual, wanted)


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize(("k", "n"), SIZES)
def test_product_of_any_number_of_columns(k, n, triangular, batch):
    v = unit_rows(k, n, *batch, triangular=triangular)
    h, block = wy_block.half_w(v, False), v.unsqueeze(-3)
    for columns in {1, n // 2, n} - {0}:
        q = wy_block.product_fwd(v, h, columns)
        close(q, reference.householder_product(v, columns).expand_as(q))
        grad_q = torch.randn_like(q)
        expected = compact_wy.product_bwd(q, grad_q, block, compact_wy.t_factor(block), triangular)
        close(wy_block.product_bwd(q, grad_q, v, h, triangular), expected)


def test_gram_matrix_may_be_handed_in():
    v = unit_rows(3, 5)
    for transpose in (False, True):
        given = wy_block.half_w(v, transpose, compact_wy.double_gram(v))
        assert torch.equal(given, wy_block.half_w(v, transpose))


def test_repeated_and_zero_rows():
    rows = torch.randn(2, 6)[[0, 1, 0, 1, 1]]
    rows[3] = 0
    v = compact_wy.unit_rows(rows)[0]
    x = torch.randn(3, 6)
    for transpose in (False, True):
        y = wy_block.apply_fwd(x, v, wy_block.half_w(v, transpose))
        close(y, reference.apply_reflectors(x, rows, transpose=transpose))


def test_inputs_are_left_alone():
    v = unit_rows(3, 4)
    h = wy_block.half_w(v, False)
    x, grad_y = torch.randn(2, 3, 4).unbind(0)
    q, grad_q = wy_block.product_fwd(v, h, 4), torch.randn(4, 4)
    inputs = x, grad_y, v, h, q, grad_q
    copies = [a.clone() for a in inputs]
    wy_block.apply_bwd(wy_block.apply_fwd(x, v, h), grad_y, v, h, False, True)
    for columns in (1, 4):
        wy_block.product_bwd(q[:, :columns], grad_q[:, :columns], v, h, True)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))
