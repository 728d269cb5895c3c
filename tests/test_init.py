"""Initialisers: the distributions and the dense matrices they promise."""

import math

import pytest
import torch

from spectral_triton import init, reference
from spectral_triton.init import cayley_, haar_, henaff_, identity_, usual_length

PAIRS = [identity_, henaff_, cayley_]
SHAPES = [(4, 6, 4, 6), (6, 6, 6, 6), (7, 7, 7, 7), (1, 5, 2, 5), (0, 3, 0, 3), (1, 1, 1, 1)]
UNEVEN = [(5, 7, 2, 7), (2, 6, 6, 6), (3, 8, 5, 5), (4, 4, 2, 9), (0, 4, 2, 4), (5, 8, 1, 6)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(k_u, m, k_v, n, batch=()):
    return torch.empty(*batch, k_u, m), torch.empty(*batch, k_v, n)


def product(left, right):
    """U_p V_pᵀ."""
    sigma = torch.ones(*left.shape[:-2], min(left.shape[-1], right.shape[-1]))
    return reference.svd_to_dense(left, sigma, right)


def test_haar_moments():
    draws, n = 20_000, 3
    q = reference.householder_product(haar_(torch.empty(draws, n, n), generator=generator()))
    # Every entry has mean 0, variance 1/n and fourth moment 3 / (n (n + 2)); bounds of 5 sigma.
    second, fourth = q.square(), q.pow(4)
    bound = 5 / math.sqrt(draws)
    assert (q.mean(0).abs() < bound * math.sqrt(1 / n)).all()
    assert ((second.mean(0) - 1 / n).abs() < bound * second.std(0)).all()
    assert ((fourth.mean(0) - 3 / (n * (n + 2))).abs() < bound * fourth.std(0)).all()
    # The trace of a Haar matrix has mean 0 and variance 1, its determinant is ±1 alike.
    trace = q.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert abs(trace.mean().item()) < bound
    assert abs(trace.square().mean().item() - 1) < bound * trace.square().std().item()
    determinant = torch.linalg.det(q).round()
    assert abs(determinant.mean().item()) < bound
    assert set(determinant.tolist()) == {-1.0, 1.0}


def test_haar_columns_are_uniform_with_fewer_reflectors():
    draws, n = 20_000, 4
    q = reference.householder_product(haar_(torch.empty(draws, 2, n), generator=generator()), 2)
    second = q.square()
    bound = 5 / math.sqrt(draws)
    assert (q.mean(0).abs() < bound * math.sqrt(1 / n)).all()
    assert ((second.mean(0) - 1 / n).abs() < bound * second.std(0)).all()


def test_haar_first_column_is_the_drawn_direction():
    x = torch.randn(1, 5, generator=generator(3))
    q = reference.householder_product(haar_(torch.empty(1, 5), generator=generator(3)))
    torch.testing.assert_close(q[:, 0], x[0] / x.norm(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("shape", SHAPES + UNEVEN)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_identity(shape, batch):
    left, right = pair(*shape, batch=batch)
    identity_(left, right, generator=generator())
    m, n = shape[1], shape[3]
    expected = torch.eye(m, n).expand(*batch, m, n)
    torch.testing.assert_close(product(left, right), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES + UNEVEN)
def test_identity_has_a_row_of_zeros_only_where_the_determinant_asks_for_it(shape):
    left, right = pair(*shape)
    identity_(left, right, generator=generator())
    zero_rows = sum(int((v == 0).all(-1).sum()) for v in (left, right))
    assert zero_rows == (shape[0] - shape[2]) % 2


def test_identity_has_a_gradient_in_every_row():
    left, right = pair(6, 6, 4, 6)
    identity_(left, right, generator=generator())
    leaves = [v.requires_grad_() for v in (left, right)]
    weight = torch.randn(6, 6, generator=generator(1))
    grads = torch.autograd.grad((product(*leaves) * weight).sum(), leaves)
    # A last reflector of a single entry is a sign, which nothing can change.
    assert (grads[0][:5].norm(dim=-1) > 1e-3).all()
    assert (grads[1].norm(dim=-1) > 1e-3).all()


@pytest.mark.parametrize("shape", SHAPES + UNEVEN)
@pytest.mark.parametrize(("fill", "low"), [(henaff_, -math.pi), (cayley_, 0.0)])
def test_rotations_are_block_diagonal(shape, fill, low):
    left, right = pair(*shape)
    fill(left, right, generator=generator())
    w = product(left, right)
    p = min(shape[1], shape[3])
    planes = min(shape[0], shape[2], p // 2)
    expected = torch.eye(shape[1], shape[3])
    for i in range(planes):
        angle = torch.atan2(w[2 * i + 1, 2 * i], w[2 * i, 2 * i])
        assert low < angle < (math.pi if low else math.pi / 2)
        c, s = angle.cos(), angle.sin()
        expected[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, -s], [s, c]])
    torch.testing.assert_close(w, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("fill", "low", "high"), [(henaff_, -math.pi, math.pi), (cayley_, 0.0, math.pi / 2)]
)
def test_angles_are_uniform(fill, low, high):
    left, right = pair(1, 2, 1, 2, batch=(20_000,))
    fill(left, right, generator=generator())
    w = product(left, right)
    angle = torch.atan2(w[:, 1, 0], w[:, 0, 0])
    unit = (angle - low) / (high - low)
    # Kolmogorov-Smirnov: 1.95 / sqrt(N) is passed by chance once in a thousand draws.
    steps = torch.arange(1, len(unit) + 1) / len(unit)
    assert (unit.sort().values - steps).abs().max() < 1.95 / math.sqrt(len(unit))


@pytest.mark.parametrize("fill", PAIRS)
def test_pairs_are_triangular_and_reproducible(fill):
    left, right = pair(4, 6, 4, 5)
    fill(left, right, generator=generator(7))
    again_left, again_right = pair(4, 6, 4, 5)
    torch.manual_seed(99)
    fill(again_left, again_right, generator=generator(7))
    assert torch.equal(left, again_left)
    assert torch.equal(right, again_right)
    assert torch.equal(left, left.triu())
    assert torch.equal(right, right.triu())
    fill(again_left, again_right, generator=generator(8))
    assert not torch.equal(left, again_left)


def test_haar_is_reproducible_and_in_place():
    v = torch.full((3, 4), float("nan"))
    assert haar_(v, generator=generator(7)) is v
    assert torch.equal(v, haar_(torch.empty(3, 4), generator=generator(7)))
    assert torch.equal(v, v.triu())
    assert not torch.equal(v, haar_(torch.empty(3, 4), generator=generator(8)))


@pytest.mark.parametrize("fill", [*PAIRS, lambda *pair: [haar_(v) for v in pair]])
def test_an_optimizer_step_turns_every_row_alike(fill):
    left, right = pair(24, 96, 24, 96)
    fill(left, right)
    for side in (left, right):
        # Rows of 73 to 96 normal numbers are within a third of it; Haar's are sqrt(2) longer.
        ratio = side.norm(dim=-1) / usual_length(side)
        assert ratio.min() > 0.7
        assert ratio.max() < 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_orthogonal(dtype):
    left, right = (v.to(dtype) for v in (torch.empty(4, 6), torch.empty(4, 6)))
    identity_(left, right, generator=generator())
    w = product(left.double(), right.double())
    torch.testing.assert_close(w, torch.eye(6), rtol=0, atol=1e-14)
    q = reference.householder_product(haar_(left, generator=generator()).double())
    torch.testing.assert_close(q @ q.mT, torch.eye(6), rtol=0, atol=1e-14)


def test_parameters_that_require_gradients_are_filled_without_a_graph():
    left, right = (v.requires_grad_() for v in pair(2, 3, 2, 3))
    for fill in PAIRS:
        fill(left, right)
    haar_(left)
    assert left.is_leaf
    assert left.isfinite().all()
    assert right.isfinite().all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"reflectors.*\(4, 3\)"):
        haar_(torch.empty(4, 3))
    with pytest.raises(ValueError, match=r"reflectors.*\(3,\)"):
        haar_(torch.empty(3))
    with pytest.raises(TypeError, match=r"reflectors.*int64"):
        haar_(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"right.*\(4, 3\)"):
        identity_(torch.empty(2, 3), torch.empty(4, 3))
    with pytest.raises(ValueError, match="batch"):
        henaff_(torch.empty(2, 2, 3), torch.empty(2, 3))


def test_haar_takes_a_vector_to_its_head_without_cancellation(monkeypatch):
    # H(v) turns the vector drawn onto the axis, on the side that differs least from it.
    drawn = torch.tensor([[3.0, 1e-4, 2e-4], [-3.0, 1e-4, 2e-4]], dtype=torch.float32)[:, None]
    monkeypatch.setattr(init, "_normal", lambda *_: drawn.clone())
    v = haar_(torch.empty(2, 1, 3, dtype=torch.float32)).double()
    wide = drawn.double()
    axis = torch.tensor([1.0, 0.0, 0.0])
    expected = wide.norm(dim=-1, keepdim=True) * axis
    turned = torch.cat([reference.apply_reflectors(x, w) for x, w in zip(wide, v, strict=True)])
    torch.testing.assert_close(turned, expected[:, 0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("start", [haar_, *PAIRS])
def test_no_row_is_much_shorter_than_usual(start):
    left, right = pair(5, 6, 6, 6, (200,))
    if start is haar_:
        haar_(left, generator=generator())
        haar_(right, generator=generator())
    else:
        start(left, right, generator=generator())
    for rows in (left, right):
        length = rows.triu().norm(dim=-1)
        # Half of what is usual, but for rounding; of zeros there may be some.
        assert ((length == 0) | (length > 0.499 * usual_length(rows))).all()
