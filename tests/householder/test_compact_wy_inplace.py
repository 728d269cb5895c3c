"""The algebra in buffers: the results of the algebra that is differentiated, inputs left alone."""

import pytest
import torch

from spectral_triton import reference
from spectral_triton.householder import compact_wy, compact_wy_inplace, wy_block

# k, n, block size: one block, several, the last one filled up or cut off, four and five in pairs.
SIZES = [(1, 1, 64), (2, 3, 64), (5, 5, 2), (6, 9, 3), (9, 9, 2), (65, 70, 64), (256, 256, 64)]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def prepared(k, n, block_size, *batch, triangular=False):
    """Unit rows, V and T of their blocks."""
    unit, _ = compact_wy.unit_rows(torch.randn(*batch, k, n), triangular)
    v = compact_wy.blocks(unit, block_size)
    return unit, v, compact_wy.t_factor(v, triangular)


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("k", "n", "block_size"), SIZES)
def test_apply(k, n, block_size, transpose, triangular, batch):
    _, v, t = prepared(k, n, block_size, *batch, triangular=triangular)
    x, grad_y = torch.randn(2, *batch, 3, n).unbind(0)
    y, coefficients = compact_wy_inplace.apply_fwd(x, v, t, transpose, triangular)
    close(y, compact_wy.apply_fwd(x, v, t, transpose))
    # x - y is a combination of the rows of V.
    close(y, x - (coefficients @ v).sum(-3))
    way = y, grad_y, v, t, transpose, triangular
    wanted = compact_wy.apply_bwd(*way)
    for known in (coefficients, None):
        for grad, expected in zip(compact_wy_inplace.apply_bwd(*way, known), wanted, strict=True):
            close(grad, expected)


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize(("k", "n", "block_size"), SIZES)
def test_product(k, n, block_size, triangular, batch):
    unit, v, t = prepared(k, n, block_size, *batch, triangular=triangular)
    h = wy_block.half_w(v, False)
    for columns in {1, n // 2, n} - {0}:
        q = compact_wy_inplace.product_fwd(v, h, columns, triangular)
        close(q, reference.householder_product(unit, columns))
        of = q, torch.randn_like(q), v
        actual = compact_wy_inplace.product_bwd(*of, h, triangular)
        close(actual, compact_wy.product_bwd(*of, t, triangular))


def test_coefficients_turn_their_sign_even_where_rows_depend_on_each_other():
    """D_y = -C rests on T⁻¹ + T⁻ᵀ = V Vᵀ, which repeated and zero rows must not break."""
    rows = torch.randn(2, 6)[[0, 1, 0, 1, 1]]
    rows[3] = 0
    v = compact_wy.blocks(compact_wy.unit_rows(rows)[0], 64)
    t = compact_wy.t_factor(v)
    x, grad_y = torch.randn(2, 3, 6).unbind(0)
    y, coefficients = compact_wy_inplace.apply_fwd(x, v, t, False, False)
    way = y, grad_y, v, t, False, False
    handed_on, computed = (compact_wy_inplace.apply_bwd(*way, c) for c in (coefficients, None))
    for grad, expected in zip(handed_on, computed, strict=True):
        close(grad, expected)


@pytest.mark.parametrize("block_size", [2, 3], ids=["blocks", "one block"])
def test_inputs_are_left_alone(block_size):
    _, v, t = prepared(3, 4, block_size)
    x, grad_y = torch.randn(2, 3, 4).unbind(0)
    y, c = compact_wy_inplace.apply_fwd(x, v, t, False, False)
    h = wy_block.half_w(v, False)
    q, grad_q = compact_wy_inplace.product_fwd(v, h, 4, False), torch.randn(4, 4)
    inputs = x, grad_y, v, t, h, y, c, q, grad_q
    copies = [a.clone() for a in inputs]
    compact_wy_inplace.apply_fwd(x, v, t, False, False)
    compact_wy_inplace.apply_bwd(y, grad_y, v, t, False, False, c)
    compact_wy_inplace.apply_bwd(y, grad_y, v, t, False, False)
    compact_wy_inplace.product_bwd(q, grad_q, v, h, False)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))
