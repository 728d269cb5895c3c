"""HouseholderSVD against torch.linalg on the dense matrix that the reference makes of it."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spectral_triton import reference
from spectral_triton.svd.operator import HouseholderSVD, forms_dense

# m, n, k_u, k_v
SIZES = [
    (1, 1, 1, 1),
    (2, 2, 0, 0),
    (3, 3, 3, 3),
    (4, 4, 1, 3),
    (3, 5, 2, 4),
    (5, 3, 5, 0),
    (1, 4, 1, 2),
    (4, 1, 0, 1),
]


def make(m, n, k_u, k_v, *, batch=(), signed=False, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": dtype}
    sigma = 0.5 + torch.rand(*batch, min(m, n), **options)
    signs = torch.rand(*batch, min(m, n), **options).sub(0.5).sign() if signed else None
    left = torch.randn(*batch, k_u, m, **options)
    right = torch.randn(*batch, k_v, n, **options)
    return HouseholderSVD(left, sigma, right, signs=signs)


def dense(factors):
    """The oracle, in float64."""
    given_factors = (factors.left, factors.singular_values, factors.right)
    left, sigma, right = (f.detach().double() for f in given_factors)
    if factors.triangular:
        left, right = left.triu(), right.triu()
    signs = None if factors.signs is None else factors.signs.double()
    return reference.svd_to_dense(left, sigma, right, signs)


def close(actual, expected, scale=1.0):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13 * scale)


@st.composite
def matrices(draw, square=False):
    m = draw(st.integers(1, 7))
    n = m if square else draw(st.integers(1, 7))
    batch = draw(st.sampled_from([(), (2,), (3, 1)]))
    return make(
        m,
        n,
        draw(st.integers(0, m)),
        draw(st.integers(0, n)),
        batch=batch,
        signed=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


# The fixtures of conftest.py (default dtype, NaN in torch.empty) are the same for every example.
properties = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@properties
@given(factors=matrices())
def test_dense_matrix_and_its_singular_values(factors):
    w = factors.to_dense()
    assert w.shape == factors.shape
    close(w, dense(factors))
    sigma = factors.singular_values.sort(-1, descending=True).values
    close(torch.linalg.svdvals(w), sigma)
    close(factors.spectral_norm(), torch.linalg.matrix_norm(w, 2))
    close(factors.cond(), torch.linalg.cond(w))


@properties
@given(factors=matrices(), num_vectors=st.sampled_from([0, 1, 3, 200]))
def test_products_from_both_sides(factors, num_vectors):
    w = dense(factors)
    m, n = w.shape[-2:]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, num_vectors, generator=generator)
    close(factors @ x, w @ x, 10)
    close(factors.mT @ (w @ x), w.mT @ (w @ x), 10)
    y = torch.randn(num_vectors, m, generator=generator)
    close(y @ factors, y @ w, 10)
    row = torch.randn(m, generator=generator)
    close(row @ factors, row @ w, 10)
    close(factors @ torch.ones(n), w @ torch.ones(n), 10)
    z = torch.randn(5, *w.shape[:-2], num_vectors, n, generator=generator)
    close(factors.apply(z), z @ w.mT, 10)


@properties
@given(factors=matrices(square=True))
def test_inverse_solve_and_determinant(factors):
    w = dense(factors)
    close(factors.inverse().to_dense(), torch.linalg.inv(w), 10)
    b = torch.randn(w.shape[-1], 3, generator=torch.Generator().manual_seed(1))
    close(factors.solve(b.mT).mT, torch.linalg.solve(w, b.expand(*w.shape[:-1], 3)), 10)
    close(factors.solve(b[:, 0]), torch.linalg.inv(w) @ b[:, 0], 10)
    sign, logabsdet = factors.slogdet()
    expected = torch.linalg.slogdet(w)
    assert torch.equal(sign, expected.sign)
    close(logabsdet, expected.logabsdet, 10)


@properties
@given(factors=matrices())
def test_pseudoinverse_and_least_squares(factors):
    w = dense(factors)
    expected = torch.linalg.pinv(w)
    close(factors.pinv().to_dense(), expected, 10)
    b = torch.randn(w.shape[-2], 3, generator=torch.Generator().manual_seed(1))
    close(factors.solve(b.mT).mT, expected @ b, 10)
    close(factors.pinv().pinv().to_dense(), w, 10)


@properties
@given(factors=matrices(), data=st.data())
def test_from_dense_and_truncation(factors, data):
    w = dense(factors)
    again = HouseholderSVD.from_dense(w)
    assert again.triangular
    assert again.num_reflectors == (min(w.shape[-2:]),) * 2
    close(again.to_dense(), w, 10)
    rank = data.draw(st.integers(0, min(w.shape[-2:])))
    u, sigma, vh = torch.linalg.svd(w, full_matrices=False)
    best = (u[..., :rank] * sigma[..., None, :rank]) @ vh[..., :rank, :]
    # Vectors of singular values that nearly agree are known to rounding over their distance.
    dropped = 0 < rank < sigma.shape[-1]
    gap = (sigma[..., rank - 1] - sigma[..., rank]).min().item() if dropped else 1.0
    scale = 100 * max(1.0, 0.1 / gap)
    close(factors.truncate(rank).to_dense(), best, scale)
    close(again.truncate(rank).to_dense(), best, scale)
    low = HouseholderSVD.from_dense(best, num_reflectors=rank)
    close(low.to_dense(), best, 100)


@pytest.mark.parametrize("n", [63, 64, 65, 100])
def test_larger_sizes(n):
    factors = make(n, n + 3, n // 2, n, signed=True)
    w = dense(factors)
    x = torch.randn(n + 3, 4)
    close(factors.to_dense(), w, 10)
    close(factors @ x, w @ x, 100)
    b = w @ torch.ones(n + 3)
    close(factors.pinv() @ b, torch.linalg.pinv(w) @ b, 100)
    close(HouseholderSVD.from_dense(w).to_dense(), w, 100)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_vectors", [1, 50])
def test_gradients_of_the_product(size, num_vectors):
    made = make(*size, signed=True)
    leaves = [f.clone().requires_grad_() for f in (made.left, made.singular_values, made.right)]
    x = torch.randn(size[1], num_vectors)[:, :2].clone().requires_grad_()

    def product(left, sigma, right, x):
        factors = HouseholderSVD(left, sigma, right, signs=made.signs)
        return factors @ x.repeat(1, num_vectors)

    assert torch.autograd.gradcheck(product, (*leaves, x))
    assert torch.autograd.gradgradcheck(product, (*leaves, x))


OPERATIONS = {
    "to_dense": lambda f: f.to_dense(),
    "x @": lambda f: torch.ones(2, f.shape[-2], dtype=f.dtype) @ f,
    "inverse": lambda f: f.inverse().to_dense(),
    "pinv": lambda f: f.pinv().to_dense(),
    "solve": lambda f: f.solve(torch.ones(f.shape[-2], dtype=f.dtype)),
    "logabsdet": lambda f: f.slogdet().logabsdet,
    "spectral_norm": lambda f: f.spectral_norm(),
    "cond": lambda f: f.cond(),
    "truncate": lambda f: f.truncate(1).to_dense(),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("triangular", [False, True])
def test_gradients_of_every_operation(name, triangular):
    size = (3, 3, 2, 3) if name in ("inverse", "logabsdet") else (3, 4, 2, 3)
    made = make(*size, batch=(2,), signed=True)

    def operation(left, sigma, right):
        factors = HouseholderSVD(left, sigma, right, signs=made.signs, triangular=triangular)
        return OPERATIONS[name](factors)

    leaves = [f.clone().requires_grad_() for f in (made.left, made.singular_values, made.right)]
    assert torch.autograd.gradcheck(operation, leaves)
    assert torch.autograd.gradgradcheck(operation, leaves)


def test_batches_broadcast():
    left, right = torch.randn(3, 1, 2, 4), torch.randn(2, 1, 3)
    sigma = torch.rand(1, 3) + 0.5
    factors = HouseholderSVD(left, sigma, right)
    assert factors.shape == (3, 2, 4, 3)
    w = reference.svd_to_dense(left, sigma, right)
    close(factors.to_dense(), w)
    close(factors @ torch.ones(3, 2), w @ torch.ones(3, 2))
    square = HouseholderSVD(torch.randn(3, 1, 2, 4), torch.rand(4), torch.randn(2, 1, 4))
    assert torch.equal(square.slogdet().sign, torch.linalg.det(square.to_dense()).sign())
    assert square.slogdet().logabsdet.shape == square.cond().shape == (3, 2)


def test_no_matrices_at_all():
    factors = make(3, 2, 2, 1, batch=(0,))
    assert factors.to_dense().shape == (0, 3, 2)
    assert (factors @ torch.ones(2, 5)).shape == (0, 3, 5)
    assert factors.pinv().shape == (0, 2, 3)
    assert factors.spectral_norm().shape == (0,)


def test_triangular_rows_ignore_what_is_before_the_diagonal():
    left, right, sigma = torch.randn(3, 4), torch.randn(2, 3), torch.rand(3)
    factors = HouseholderSVD(left, sigma, right, triangular=True)
    w = reference.svd_to_dense(left.triu(), sigma, right.triu())
    close(factors.to_dense(), w)
    close(factors @ torch.eye(3), w)
    left = torch.randn(3, 3).tril(-1)[:2]
    nothing = HouseholderSVD(left, sigma, torch.zeros(1, 3), triangular=True)
    assert nothing.slogdet().sign == 1
    close(nothing.to_dense(), sigma.diag())


def test_zero_reflectors_are_the_identity_with_zero_gradient():
    left = torch.zeros(2, 3, requires_grad=True)
    factors = HouseholderSVD(left, torch.ones(3), torch.zeros(3, 3))
    assert torch.equal(factors.to_dense(), torch.eye(3))
    assert factors.slogdet().sign == 1
    (grad,) = torch.autograd.grad((factors @ torch.randn(3, 2)).sum(), left)
    assert torch.equal(grad, torch.zeros(2, 3))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_length_of_the_reflectors_does_not_matter(scale):
    made = make(4, 5, 3, 2)
    scaled = HouseholderSVD(made.left * scale, made.singular_values, made.right / scale)
    close(scaled.to_dense(), dense(made))


def test_determinant_sign_comes_from_the_number_of_reflectors():
    for k_u in range(5):
        for k_v in range(5):
            sign = make(4, 4, k_u, k_v).slogdet().sign
            assert sign == (-1) ** (k_u + k_v)


def test_the_determinant_counts_rows_that_act():
    rows = torch.eye(3)[[0, 0, 2]]  # The second one lies below the diagonal, so it does nothing.
    factors = HouseholderSVD(rows, torch.ones(3), torch.zeros(0, 3), triangular=True)
    expected = torch.linalg.slogdet(factors.to_dense())
    assert factors.slogdet().sign == expected.sign == 1
    whole = HouseholderSVD(rows, torch.ones(3), torch.zeros(0, 3))
    assert whole.slogdet().sign == torch.linalg.slogdet(whole.to_dense()).sign == -1


def test_zero_singular_values():
    sigma = torch.tensor([2.0, 0.0, 1.0])
    factors = HouseholderSVD(torch.randn(3, 3), sigma, torch.randn(2, 3))
    w = dense(factors)
    with pytest.raises(torch.linalg.LinAlgError, match="zero singular value"):
        factors.inverse()
    with pytest.raises(torch.linalg.LinAlgError, match="zero singular value"):
        factors.solve(torch.ones(3))
    assert factors.inverse(check_errors=False).singular_values[1].isinf()
    close(factors.pinv().to_dense(), torch.linalg.pinv(w))
    assert factors.cond() == math.inf
    assert factors.slogdet() == (0, -math.inf)
    close(factors.pinv(rtol=0.6).to_dense(), torch.linalg.pinv(w, rtol=0.6))


def test_negative_singular_values():
    factors = HouseholderSVD(torch.randn(2, 2), torch.tensor([-3.0, 1.0]), torch.randn(1, 2))
    w = dense(factors)
    close(factors.spectral_norm(), torch.tensor(3.0))
    close(factors.cond(), torch.tensor(3.0))
    assert factors.slogdet().sign == torch.linalg.det(w).sign() == 1
    close(torch.linalg.matrix_norm(factors.truncate(1).to_dense(), 2), torch.tensor(3.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_vectors", [3, 500])
def test_half_precision_vectors_are_rounded_once(dtype, num_vectors):
    factors = make(40, 30, 30, 20, dtype=torch.float32)
    x = torch.randn(num_vectors, 30).to(dtype)
    y = factors.apply(x)
    assert y.dtype == dtype
    exact = x.double() @ dense(factors).mT
    # Half a unit in the last place, and the float32 error before that rounding.
    ulp = torch.finfo(dtype).eps * exact.abs().log2().floor().exp2().clamp(min=2**-14)
    assert ((y.double() - exact).abs() <= 0.5 * ulp + 1e-5).all()


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("shape", [(30,), (3, 30), (4, 1, 1, 30), (500, 30), (0, 30)])
def test_a_bias_is_added(shape, batch):
    factors = make(40, 30, 30, 20, batch=batch)
    factors.left.requires_grad_()
    x, bias = torch.randn(shape), torch.randn(40, requires_grad=True)
    y = factors.apply(x, bias)
    close(y, factors.apply(x) + bias, scale=10)
    weight = torch.randn_like(y)
    actual = torch.autograd.grad(y, (bias, factors.left), weight)
    close(actual[0], weight.reshape(-1, 40).sum(0), scale=10)
    close(actual[1], torch.autograd.grad(factors.apply(x), factors.left, weight)[0], scale=10)


def test_a_half_precision_bias_is_added_before_rounding():
    factors = make(6, 6, 2, 2, dtype=torch.float32)
    x, bias = torch.randn(3, 6).half(), torch.randn(6).bfloat16()
    expected = (factors.apply(x.float()) + bias.float()).half()
    assert torch.equal(factors.apply(x, bias), expected)


@pytest.mark.parametrize(
    ("bias", "error", "message"),
    [
        (torch.ones(5).half(), ValueError, r"bias must have shape \(m,\) = \(6,\), got \(5,\)"),
        (torch.ones(1, 6).half(), ValueError, r"bias must have shape"),
        (torch.ones(6, dtype=torch.int64), TypeError, "bias must be a real floating"),
        (torch.ones(6, dtype=torch.float32), TypeError, "bias must have the dtype of the factors"),
        ([0.0] * 6, TypeError, "bias must be a torch.Tensor"),
    ],
)
def test_a_bias_that_does_not_fit(bias, error, message):
    with pytest.raises(error, match=message):
        make(6, 4, 2, 2).apply(torch.ones(4), bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_factors_are_computed_in_float32(dtype):
    made = make(6, 5, 4, 3)
    low = [f.to(dtype) for f in (made.left, made.singular_values, made.right)]
    factors = HouseholderSVD(*low)
    assert factors.dtype == torch.float32
    torch.testing.assert_close(factors.to_dense().double(), dense(factors), rtol=0, atol=2e-6)
    w = torch.randn(6, 5).to(dtype)
    again = HouseholderSVD.from_dense(w).to_dense()
    torch.testing.assert_close(again, w.float(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("num_vectors", [3, 500])
def test_autocast_does_not_lower_the_precision(num_vectors):
    factors = make(24, 24, 24, 24, dtype=torch.float32)
    x = torch.randn(num_vectors, 24, dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, w = factors.apply(x), factors.to_dense()
    assert inside.dtype == w.dtype == torch.float32
    assert torch.equal(inside, factors.apply(x))
    assert torch.equal(w, factors.to_dense())


def test_no_error_grows_over_ten_thousand_products():
    factors = make(16, 16, 16, 16, dtype=torch.float32)
    factors = HouseholderSVD(factors.left, torch.ones(16, dtype=torch.float32), factors.right)
    h = torch.randn(16, dtype=torch.float32)
    start = h.double().norm()
    w = factors.to_dense()
    for _ in range(10_000):
        h = w @ h
    assert abs(h.double().norm() / start - 1) < 1e-3
    z = torch.randn(16, dtype=torch.float32)
    start = z.double().norm()
    for _ in range(1_000):
        z = factors @ z
    assert abs(z.double().norm() / start - 1) < 1e-4


def test_views_and_expanded_inputs():
    factors = make(4, 6, 3, 5)
    w = dense(factors)
    x = torch.randn(6, 8)[:, ::2]
    close(factors @ x, w @ x)
    expanded = torch.randn(1, 6).expand(4, 6)
    close(factors.apply(expanded), expanded @ w.mT)


def test_two_runs_are_bit_equal():
    factors, x = make(30, 20, 15, 20), torch.randn(20, 7)
    assert torch.equal(factors @ x, factors @ x)
    assert torch.equal(factors.to_dense(), factors.to_dense())


def test_either_side_of_the_cost_rule_gives_the_same():
    assert not forms_dense(1, 64, 64, 64, 64)
    assert forms_dense(1000, 64, 64, 64, 64)
    assert not forms_dense(1e9, 64, 64, 4, 4)
    factors = make(64, 64, 64, 64)
    x = torch.randn(1000, 64)
    close(factors.apply(x)[:3], factors.apply(x[:3]), 10)


def test_where_the_cost_rule_turns():
    # 4 p (m k_u + n k_v) = N (4 (m k_u + n k_v) - 0.8 m n) at N = 35.6 for m = n = k = 32.
    assert not forms_dense(35, 32, 32, 32, 32)
    assert forms_dense(36, 32, 32, 32, 32)


def test_from_dense_bounds():
    w = torch.diag(torch.tensor([0.5, 1.0, 2.0]))
    close(HouseholderSVD.from_dense(w, bounds=(0.5, 2.0)).to_dense(), w)
    with pytest.raises(ValueError, match=r"from 0\.5 to 2, outside the bounds \(0\.6, 3\)"):
        HouseholderSVD.from_dense(w, bounds=(0.6, 3))
    clipped = HouseholderSVD.from_dense(w, bounds=(0.6, 1.5), out_of_bounds="clip")
    close(clipped.to_dense(), torch.diag(torch.tensor([0.6, 1.0, 1.5])))
    q = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float32)).Q
    orthogonal = HouseholderSVD.from_dense(q, bounds=(1.0, 1.0))
    assert (orthogonal.singular_values == 1).all()


def test_from_dense_with_few_reflectors():
    rotation = torch.eye(5)
    rotation[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    w = rotation @ torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]))
    few = HouseholderSVD.from_dense(w, num_reflectors=(2, 0))
    assert few.num_reflectors == (2, 0)
    close(few.to_dense(), w)
    assert not few.has_base
    for k in (0, (2, 3)):
        general = torch.randn(4, 6)
        based = HouseholderSVD.from_dense(general, num_reflectors=k)
        assert based.has_base
        close(based.to_dense(), general)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: HouseholderSVD(torch.ones(4, 3), f, torch.ones(2, 3)), ValueError, "left.*4, 3"),
        (lambda f: HouseholderSVD(torch.ones(3), f, torch.ones(2, 3)), ValueError, "left"),
        (
            lambda f: HouseholderSVD(f[None], f[:2], f[None]),
            ValueError,
            r"p\) with p = .*3.*\(2,\)",
        ),
        (lambda f: HouseholderSVD(f[None], f, f[None], signs=f[:1]), ValueError, "signs"),
        (lambda f: HouseholderSVD(f[None], f, f[None].long()), TypeError, "right.*int64"),
        (lambda f: HouseholderSVD(f[None].cfloat(), f, f[None]), TypeError, "left.*complex"),
        (lambda f: HouseholderSVD(f[None], [1.0], f[None]), TypeError, "singular_values.*list"),
        (lambda f: HouseholderSVD(f[None], f.float(), f[None]), TypeError, "float32"),
        (
            lambda f: HouseholderSVD(torch.ones(2, 1, 3), f, torch.ones(3, 1, 3)),
            ValueError,
            "broadcast",
        ),
        (lambda f: HouseholderSVD.from_dense(f), ValueError, r"w must be a matrix.*\(3,\)"),
        (lambda f: HouseholderSVD.from_dense(f.diag().long()), TypeError, "w.*int64"),
        (lambda f: HouseholderSVD.from_dense(f.diag() * math.nan), ValueError, "w must be finite"),
        (
            lambda f: HouseholderSVD.from_dense(f.diag(), num_reflectors=4),
            ValueError,
            "num_reflectors.* = 3 .* got 4",
        ),
        (
            lambda f: HouseholderSVD.from_dense(f.diag(), num_reflectors=(1, 2, 3)),
            ValueError,
            r"num_reflectors.*\(1, 2, 3\)",
        ),
        (
            lambda f: HouseholderSVD.from_dense(f.diag(), num_reflectors=1.0),
            TypeError,
            r"num_reflectors.*1\.0",
        ),
        (
            lambda f: HouseholderSVD.from_dense(f.diag(), bounds=(math.nan, 1)),
            ValueError,
            "bounds.*nan",
        ),
        (lambda f: HouseholderSVD.from_dense(f.diag(), bounds=(2, 1)), ValueError, r"\(2, 1\)"),
        (lambda f: HouseholderSVD.from_dense(f.diag(), bounds=1.0), TypeError, "bounds"),
        (
            lambda f: HouseholderSVD.from_dense(f.diag(), out_of_bounds="warn"),
            ValueError,
            "out_of_bounds.*'warn'",
        ),
    ],
)
def test_bad_factors_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f @ torch.ones(4), ValueError, r"length 3.*\(4,\)"),
        (lambda f: torch.ones(2, 3) @ f, ValueError, r"length 4.*\(2, 3\)"),
        (lambda f: f @ torch.ones(3, 2, dtype=torch.int64), TypeError, "x.*int64"),
        (lambda f: f @ torch.ones(3, dtype=torch.float32), TypeError, "x.*float64.*float32"),
        (lambda f: f @ 2.0, TypeError, "unsupported operand"),
        (lambda f: f.inverse(), ValueError, r"inverse needs a square matrix.*\(4, 3\)"),
        (lambda f: f.slogdet(), ValueError, "slogdet needs a square"),
        (lambda f: f.truncate(4), ValueError, "rank must be at most 3, got 4"),
        (lambda f: f.truncate(-1), ValueError, "rank must be at least 0, got -1"),
        (lambda f: f.truncate(1.0), TypeError, r"rank must be an int, got 1\.0"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(make(4, 3, 2, 2))


def test_incompatible_batches_are_named():
    factors = make(4, 3, 2, 2, batch=(2,))
    with pytest.raises(ValueError, match=r"x of shape \(3, 5, 3\).*\(2, 4, 3\)"):
        factors.apply(torch.ones(3, 5, 3))


def test_says_what_it_is():
    factors = make(4, 3, 2, 1, batch=(2,))
    assert "shape=(2, 4, 3), num_reflectors=(2, 1)" in repr(factors)
    assert factors.T.shape == (2, 3, 4)
    assert factors.device.type == "cpu"
