"""The blocked algebra, step by step: each formula of its notes against the reference."""

import pytest
import torch

from spectral_triton import reference
from spectral_triton.householder import compact_wy

# k, n, block size
SIZES = [(1, 1, 64), (2, 3, 64), (5, 5, 2), (6, 9, 3), (65, 70, 64), (130, 131, 64)]


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=atol)


def prepared(k, n, block_size, *batch, triangular=False):
    """Unit rows, V and T of their blocks."""
    rows = torch.randn(*batch, k, n)
    unit = compact_wy.unit_rows(rows.triu() if triangular else rows)[0]
    v = compact_wy.blocks(unit, block_size)
    return unit, v, compact_wy.t_factor(v)


def tangent(gradient, unit):
    """What is left of a gradient when rows may turn but not grow."""
    return gradient - (gradient * unit).sum(-1, keepdim=True) * unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_rows_have_length_one_and_keep_zero(dtype):
    limits = torch.finfo(dtype)
    rows = torch.randn(6, 5, dtype=dtype)
    rows[1] = 0
    rows[2] *= limits.tiny / rows[2].abs().max()
    rows[3] *= limits.max / 2 / rows[3].abs().max()
    rows[4] = torch.tensor([0, 0, limits.smallest_normal * limits.eps, 0, 0])
    unit, scale = compact_wy.unit_rows(rows)
    norms = unit.double().norm(dim=-1)
    assert norms[1] == 0
    assert (norms[[0, 2, 3, 4, 5]] - 1).abs().max() <= 2 * limits.eps
    assert scale.shape == (6, 1)
    assert scale.isfinite().all()
    torch.testing.assert_close((rows * scale)[[0, 2, 5]], unit[[0, 2, 5]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaling_before_the_length_is_taken_changes_no_bit(dtype):
    """Programs are traced with it, and are to give what the eager function gives."""
    rows = torch.randn(50, 7, dtype=dtype) * torch.logspace(-3, 3, 50, dtype=dtype).unsqueeze(1)
    rows[3] = 0
    scaled = torch.func.vmap(compact_wy.unit_rows)(rows.unsqueeze(0))
    for a, b in zip(compact_wy.unit_rows(rows), scaled, strict=True):
        kept = [i for i in range(50) if i != 3]
        assert torch.equal(a[kept], b[0][kept])


def test_gradient_of_unit_rows_is_that_of_a_quotient():
    rows = torch.randn(3, 4, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: compact_wy.unit_rows(rows)[0], rows)
    zero = torch.zeros(2, 3, requires_grad=True)
    compact_wy.unit_rows(zero)[0].sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("b", [1, 2, 5, 64])
def test_t_factor_makes_the_product(b):
    unit = compact_wy.unit_rows(torch.randn(2, b, 65))[0]
    t = compact_wy.t_factor(unit)
    assert torch.equal(t, t.triu())
    q = torch.eye(65) - unit.mT @ t @ unit
    close(q, reference.householder_product(unit))
    # T of an orthogonal product: T⁻¹ + T⁻ᵀ = V Vᵀ.
    inverse = torch.linalg.inv(t)
    close(inverse + inverse.mT, unit @ unit.mT)


def test_zero_rows_leave_the_product_alone():
    unit = compact_wy.unit_rows(torch.randn(4, 6))[0]
    unit[2] = 0
    t = compact_wy.t_factor(unit)
    others = [0, 1, 3]
    close(unit.mT @ t @ unit, unit[others].mT @ compact_wy.t_factor(unit[others]) @ unit[others])
    off = [0, 1, 3]
    assert (t[2, off] == 0).all()
    assert (t[off, 2] == 0).all()


@pytest.mark.parametrize(("k", "size", "m", "b"), [(1, 64, 1, 1), (64, 64, 1, 64), (65, 64, 2, 33)])
def test_blocks_are_of_equal_size_and_filled_with_zeros(k, size, m, b):
    rows = torch.randn(2, k, 70)
    v = compact_wy.blocks(rows, size)
    assert v.shape == (2, m, b, 70)
    assert torch.equal(v.flatten(1, 2)[:, :k], rows)
    assert (v.flatten(1, 2)[:, k:] == 0).all()


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("k", "n", "block_size"), SIZES)
def test_apply_forward_and_backward(k, n, block_size, transpose, triangular, batch):
    unit, v, t = prepared(k, n, block_size, *batch, triangular=triangular)
    x, grad_y = torch.randn(2, *batch, 3, n).unbind(0)
    leaves = x.clone().requires_grad_(), unit.clone().requires_grad_()
    expected = reference.apply_reflectors(*leaves, transpose=transpose)
    wanted_x, wanted_v = torch.autograd.grad(expected, leaves, grad_y)
    y = compact_wy.apply_fwd(x, v, t, transpose)
    grads = compact_wy.apply_bwd(y, grad_y, v, t, transpose, triangular)
    close(y, expected.detach())
    close(grads[0], wanted_x)
    grad_v = tangent(grads[1][..., :k, :], unit)
    wanted = tangent(wanted_v, unit)
    close(*(a.triu() if triangular else a for a in (grad_v, wanted)), atol=1e-11)


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize(("k", "n", "block_size"), SIZES)
def test_backward_of_the_product(k, n, block_size, triangular, batch):
    unit, v, t = prepared(k, n, block_size, *batch, triangular=triangular)
    for columns in {1, n // 2, n} - {0}:
        leaf = unit.clone().requires_grad_()
        expected = reference.householder_product(leaf, columns)
        grad_q = torch.randn_like(expected)
        (wanted,) = torch.autograd.grad(expected, leaf, grad_q)
        q = expected.detach()
        grad_v = compact_wy.product_bwd(q, grad_q, v, t, triangular)[..., :k, :]
        pair = tangent(grad_v, unit), tangent(wanted, unit)
        close(*(a.triu() if triangular else a for a in pair), atol=1e-11)


def test_gradients_are_orthogonal_to_their_rows():
    unit, v, t = prepared(5, 8, 2)
    y, grad_y = torch.randn(2, 3, 8).unbind(0)
    grad_v = compact_wy.apply_bwd(y, grad_y, v, t, False, False)[1][:5]
    close((grad_v * unit).sum(-1), torch.zeros(5))
    q = reference.householder_product(unit)
    grad_v = compact_wy.product_bwd(q, torch.randn(8, 8), v, t, False)[:5]
    close((grad_v * unit).sum(-1), torch.zeros(5))


@pytest.mark.parametrize("differentiated", [False, True])
def test_rows_of_any_length_beside_a_zero_row(differentiated):
    """Lengths whose squares are out of range, or zero, are told from those that are not."""
    rows = torch.randn(4, 5, dtype=torch.float32)
    # Squares of 1e-22 are denormal: neither zero nor precise.
    for scale in (1e-30, 1e-22, 1e-15, 1, 1e15, 1e30):
        for zero in (False, True):
            factors = [[1], [scale], [1], [0.0 if zero else 1]]
            scaled = rows * torch.tensor(factors, dtype=torch.float32)
            with torch.set_grad_enabled(differentiated):
                unit, factor = compact_wy.unit_rows(scaled)
            assert (unit.double().norm(dim=-1)[: 3 if zero else 4] - 1).abs().max() < 2.5e-7
            assert not zero or (unit[3] == 0).all()
            assert factor.isfinite().all()
