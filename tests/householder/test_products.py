"""Householder products against the reference in float64: values, gradients, shapes, extremes."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spectral_triton import reference
from spectral_triton.householder.products import (
    apply_reflectors,
    forms_product,
    householder_product,
    reflectors_from_orthogonal,
)

# k, n: one block and several, full and padded ones
SIZES = [
    (0, 1),
    (1, 1),
    (1, 2),
    (2, 2),
    (0, 3),
    (3, 3),
    (1, 63),
    (63, 63),
    (64, 64),
    (65, 65),
    (7, 100),
    (65, 100),
    (131, 140),
    (100, 100),
    (130, 130),
]
HALVES = [torch.bfloat16, torch.float16]
FLAGS = list(itertools.product([False, True], repeat=2))

# The fixtures of conftest.py (default dtype, NaN in torch.empty) are the same for every example.
properties = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def oracle(x, reflectors, transpose=False, triangular=False):
    """The definition, in float64."""
    reflectors = reflectors.triu() if triangular else reflectors
    return reference.apply_reflectors(x.double(), reflectors.double(), transpose=transpose)


def product_oracle(reflectors, num_columns=None, triangular=False):
    reflectors = reflectors.triu() if triangular else reflectors
    return reference.householder_product(reflectors.double(), num_columns)


def close(actual, expected, atol=1e-13):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=atol)


def gradients(f, *inputs):
    """Value and gradients of a fixed random functional of f, zero where it does not depend."""
    inputs = [a.detach().requires_grad_() for a in inputs]
    y = f(*inputs)
    generator = torch.Generator().manual_seed(3)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    loss = (y * cotangent).sum() + sum(0 * a.sum() for a in inputs)
    return y.detach(), *torch.autograd.grad(loss, inputs)


def assert_same_gradients(f, expected, *inputs, atol=1e-12):
    for actual, wanted in zip(gradients(f, *inputs), gradients(expected, *inputs), strict=True):
        close(actual, wanted, atol)


@pytest.mark.parametrize(("transpose", "triangular"), FLAGS)
@pytest.mark.parametrize("num_vectors", [1, 500])
@pytest.mark.parametrize(("k", "n"), SIZES)
def test_apply_value_and_gradients(k, n, num_vectors, transpose, triangular):
    flags = {"transpose": transpose, "triangular": triangular}
    assert_same_gradients(
        lambda x, v: apply_reflectors(x, v, **flags),
        lambda x, v: oracle(x, v, **flags),
        torch.randn(num_vectors, n),
        torch.randn(k, n),
        atol=1e-11,
    )


def test_sizes_lie_on_both_sides_of_the_cost_rule():
    for triangular in (False, True):
        assert not any(forms_product(1, k, n, triangular) for k, n in SIZES)
        formed = [forms_product(500, k, n, triangular) for k, n in SIZES]
        assert any(formed)
        assert not all(formed)


def test_cost_rule_compares_the_operations_it_states():
    # 8 N n k against 3 N n² + 5 n² k at n = k = 64 turns at N = 64.
    assert not forms_product(64, 64, 64, False)
    assert forms_product(65, 64, 64, False)
    # Triangular, 4 N n k against 3 N n² + 5 n² k / 3: at N = 5 n / 3.
    assert not forms_product(106, 64, 64, True)
    assert forms_product(107, 64, 64, True)
    assert not forms_product(10**9, 8, 64, False)


@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("columns", ["none", "one", "half", "all"])
@pytest.mark.parametrize(("k", "n"), SIZES)
def test_product_value_and_gradient(k, n, columns, triangular):
    num_columns = {"none": 0, "one": 1, "half": n // 2, "all": None}[columns]
    assert_same_gradients(
        lambda v: householder_product(v, num_columns, triangular=triangular),
        lambda v: product_oracle(v, num_columns, triangular),
        torch.randn(k, n),
    )


# x, reflectors: one vector, many leading dimensions, batches on either side, empty ones
SHAPES = [
    ((5,), (3, 5)),
    ((1, 5), (5, 5)),
    ((2, 3, 4, 5), (3, 5)),
    ((4, 5), (2, 3, 5)),
    ((5,), (2, 3, 5)),
    ((2, 4, 5), (2, 3, 5)),
    ((2, 1, 4, 5), (3, 1, 5)),
    ((3, 1, 4, 5), (2, 3, 5)),
    ((0, 5), (3, 5)),
    ((2, 0, 5), (3, 5)),
    ((0, 4, 5), (0, 3, 5)),
    ((4, 5), (0, 3, 5)),
    ((4, 0), (0, 0)),
]


@pytest.mark.parametrize(("transpose", "triangular"), FLAGS)
@pytest.mark.parametrize(("x_shape", "v_shape"), SHAPES)
def test_shapes_broadcast_as_matmul(x_shape, v_shape, transpose, triangular):
    flags = {"transpose": transpose, "triangular": triangular}
    x, v = torch.randn(x_shape), torch.randn(v_shape)
    assert apply_reflectors(x, v, **flags).shape == oracle(x, v, **flags).shape
    assert_same_gradients(
        lambda x, v: apply_reflectors(x, v, **flags), lambda x, v: oracle(x, v, **flags), x, v
    )


@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("k", [0, 2])
def test_batched_products(batch, k):
    for num_columns, triangular in itertools.product([None, 2, 0], [False, True]):
        assert_same_gradients(
            lambda v, c=num_columns, t=triangular: householder_product(v, c, triangular=t),
            lambda v, c=num_columns, t=triangular: product_oracle(v, c, t),
            torch.randn(*batch, k, 4),
        )


@pytest.mark.parametrize("num_vectors", [1, 40])
def test_strides_do_not_matter(num_vectors):
    wide = torch.randn(10, num_vectors).mT
    rows = torch.randn(3, 20)[:, ::2]
    for x in (wide, torch.randn(10).expand(num_vectors, 10)):
        for v in (rows, torch.randn(10, 3).mT, torch.randn(10).expand(3, 10)):
            before = x.clone(), v.clone()
            assert_same_gradients(apply_reflectors, oracle, x, v)
            assert torch.equal(x, before[0])
            assert torch.equal(v, before[1])
    batch = torch.randn(3, 10).expand(2, 3, 10)
    assert_same_gradients(householder_product, product_oracle, batch)
    y = apply_reflectors(wide.requires_grad_(), rows)
    # A broadcast gradient, as sum() makes it.
    close(torch.autograd.grad(y.sum(), wide)[0], oracle(torch.ones(num_vectors, 10), rows, True))


@pytest.mark.parametrize("num_vectors", [2, 40])
@pytest.mark.parametrize("scale", [1e-30, 1e30, 3e38])
def test_length_of_reflectors_does_not_matter(scale, num_vectors):
    x = torch.randn(num_vectors, 6, dtype=torch.float32)
    v = torch.nn.functional.normalize(torch.randn(4, 6, dtype=torch.float32), dim=-1)
    v = v / v.abs().amax(-1, keepdim=True)
    scales = torch.tensor([[1.0], [scale], [scale], [1.0]], dtype=torch.float32)
    y, grad_x, grad_v = gradients(apply_reflectors, x, v * scales)
    # The oracle's own range is that of float64.
    wanted = gradients(oracle, x.double(), (v * scales).double())
    torch.testing.assert_close(y.double(), wanted[0], rtol=0, atol=5e-6)
    torch.testing.assert_close(grad_x.double(), wanted[1], rtol=0, atol=5e-6)
    if scale < 1e38:
        grad_v, wanted_v = grad_v.double() * scales, wanted[2] * scales
        torch.testing.assert_close(grad_v, wanted_v, rtol=0, atol=2e-5 * num_vectors**0.5)
    assert grad_v.isfinite().all()
    q = householder_product(v * scales)
    torch.testing.assert_close(q.double(), product_oracle(v * scales), rtol=0, atol=2e-6)


def test_subnormal_reflectors():
    # Directions that subnormal numbers hold exactly.
    v = torch.tensor([[1.0, -2.0, 0.0, 3.0], [0.0, 0.0, 5.0, 1.0]], dtype=torch.float32)
    x = torch.randn(3, 4, dtype=torch.float32)
    tiny = v * 2.0**-145
    assert (tiny.abs().amax(-1) < torch.finfo(torch.float32).tiny).all()
    torch.testing.assert_close(apply_reflectors(x, tiny).double(), oracle(x, v), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        householder_product(tiny).double(), product_oracle(v), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("num_vectors", [3, 300])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_rounded_once(dtype, num_vectors):
    x, v = torch.randn(num_vectors, 65).to(dtype), torch.randn(65, 65).to(dtype)
    eps = torch.finfo(dtype).eps
    for transpose, triangular in FLAGS:
        flags = {"transpose": transpose, "triangular": triangular}
        y = apply_reflectors(x, v, **flags)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), oracle(x, v, **flags), rtol=eps / 2, atol=2e-5)
        q = householder_product(v, triangular=triangular)
        assert q.dtype == dtype
        expected = product_oracle(v, triangular=triangular)
        torch.testing.assert_close(q.double(), expected, rtol=eps / 2, atol=5e-6)
        for actual, wanted in zip(
            gradients(lambda x, v, f=flags: apply_reflectors(x, v, **f), x, v),
            gradients(lambda x, v, f=flags: oracle(x, v, **f), x, v),
            strict=True,
        ):
            assert actual.dtype == dtype
            bound = eps * wanted.double().abs().max().item()
            torch.testing.assert_close(actual.double(), wanted.double(), rtol=eps, atol=bound)


@pytest.mark.parametrize("num_vectors", [3, 300])
def test_float32_errs_no_more_than_plain_pytorch(num_vectors):
    x, v = torch.randn(num_vectors, 100, dtype=torch.float32), torch.randn(100, 100).float()

    def plain(x, v):
        return reference.apply_reflectors(x, v)

    ours, theirs, exact = (
        gradients(f, x, v) if i < 2 else gradients(f, x.double(), v.double())
        for i, f in enumerate((apply_reflectors, plain, oracle))
    )
    for a, b, e in zip(ours, theirs, exact, strict=True):
        scale = e.abs().max().item() * torch.finfo(torch.float32).eps
        error = (a - e).abs().max().item()
        assert a.dtype == torch.float32
        assert error <= 2 * (b - e).abs().max().item() + 4 * scale


def test_mixed_dtypes_compute_in_the_wider_one():
    x, v = torch.randn(3, 5), torch.randn(2, 5)
    y = apply_reflectors(x.float(), v)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, oracle(x.float(), v).float(), rtol=0, atol=0)
    close(apply_reflectors(x, v.float()), oracle(x, v.float()))
    assert apply_reflectors(x.bfloat16(), torch.randn(0, 5)).dtype == torch.bfloat16


@st.composite
def stacks(draw):
    n = draw(st.integers(1, 9))
    k = draw(st.integers(0, n))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    v = torch.randn(k, n, generator=generator)
    if draw(st.booleans()):
        v[torch.rand(k, generator=generator) < 0.5] = 0
    return v * 10.0 ** draw(st.integers(-12, 12))


@properties
@given(v=stacks(), triangular=st.booleans())
def test_products_are_orthogonal_with_known_determinant(v, triangular):
    n = v.shape[-1]
    q = householder_product(v, triangular=triangular)
    close(q.mT @ q, torch.eye(n))
    x = torch.randn(3, n)
    close(apply_reflectors(x, v, triangular=triangular), x @ q.mT)
    close(apply_reflectors(apply_reflectors(x, v), v, transpose=True), x)
    close(householder_product(v, n // 2, triangular=triangular), q[:, : n // 2])
    used = v.triu() if triangular else v
    sign = (-1.0) ** int((used != 0).any(-1).sum())
    close(torch.linalg.det(q), torch.tensor(sign))


@properties
@given(v=stacks(), data=st.data())
def test_a_product_splits_where_its_reflectors_do(v, data):
    j = data.draw(st.integers(0, v.shape[0]))
    x = torch.randn(2, v.shape[1])
    close(apply_reflectors(apply_reflectors(x, v[j:]), v[:j]), apply_reflectors(x, v))


def test_norm_is_kept_over_many_applications():
    v = torch.randn(10_000, 2, 16, dtype=torch.float32)
    x = start = torch.randn(16, dtype=torch.float32)
    for reflectors in v:
        x = apply_reflectors(x, reflectors)
    torch.testing.assert_close(x.double().norm(), start.double().norm(), rtol=1e-5, atol=0)


def test_norm_drifts_by_less_than_a_rounding_per_application_of_one_matrix():
    x = start = torch.randn(8, 64, dtype=torch.float32)
    q = householder_product(torch.randn(64, 64, dtype=torch.float32)).mT
    for _ in range(10_000):
        x = x @ q
    norms = x.double().norm(dim=-1) / start.double().norm(dim=-1)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(norms, torch.ones(8), rtol=0, atol=10_000 * eps / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize(("n", "p"), [(1, 1), (4, 2), (5, 5), (65, 64), (3, 0), (4, 1)])
def test_reflectors_of_an_orthogonal_matrix(n, p, dtype):
    q = torch.linalg.qr(torch.randn(2, n, p)).Q.to(dtype)
    v, signs = reflectors_from_orthogonal(q)
    assert v.shape == (2, p, n)
    assert v.dtype == signs.dtype == dtype
    assert torch.equal(v, v.triu())
    assert (signs.abs() == 1).all()
    back = product_oracle(v, p) * signs.double().unsqueeze(-2)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(back, q.double(), rtol=0, atol=20 * eps)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_diagonal_signs_take_reflectors_of_one_coordinate_each(n):
    for signs in itertools.product([-1.0, 1.0], repeat=n):
        q = torch.diag(torch.tensor(signs))
        v, found = reflectors_from_orthogonal(q)
        close(product_oracle(v) * found, q, atol=1e-15)
        # H(e_i) H(e_j) ... flips every coordinate, once.
        assert torch.equal(v, torch.eye(n))
        assert torch.equal(found, -q.diagonal())


def test_reflections_come_back_with_positive_determinant_or_sign():
    q = product_oracle(torch.randn(3, 4))
    for matrix in (q, -q, q[[1, 0, 2, 3]]):
        v, signs = reflectors_from_orthogonal(matrix)
        close(product_oracle(v) * signs, matrix)


BAD_APPLY = [
    (TypeError, "x must be a torch.Tensor", ([1.0, 2.0], torch.ones(1, 2))),
    (TypeError, "reflectors must be a torch.Tensor", (torch.ones(2), None)),
    (TypeError, r"x .*torch.int64", (torch.ones(2, 2, dtype=torch.int64), torch.ones(1, 2))),
    (TypeError, r"reflectors .*int", (torch.ones(2), torch.ones(1, 2, dtype=torch.int32))),
    (TypeError, r"x .*complex64", (torch.ones(2, dtype=torch.complex64), torch.ones(1, 2))),
    (TypeError, r"reflectors .*complex", (torch.ones(2), torch.ones(1, 2) + 1j)),
    (ValueError, r"x .*n = 2.*\(3, 2\)|x .*n = 3", (torch.ones(3, 2), torch.ones(1, 3))),
    (ValueError, r"x must have vectors .*got x of shape \(\)", (torch.ones(()), torch.ones(1, 1))),
    (ValueError, r"reflectors .*k = 3.*n = 2", (torch.ones(2), torch.ones(3, 2))),
    (ValueError, r"reflectors .*\(\.\.\., k, n\)", (torch.ones(2), torch.ones(2))),
    (
        ValueError,
        r"x \(2, 3, 4\) and reflectors \(3, 1, 4\)",
        (torch.ones(2, 3, 4), torch.ones(3, 1, 4)),
    ),
]


@pytest.mark.parametrize(("error", "match", "arguments"), BAD_APPLY)
def test_apply_names_the_bad_argument(error, match, arguments):
    with pytest.raises(error, match=match):
        apply_reflectors(*arguments)


BAD_PRODUCT = [
    (TypeError, "reflectors", ([[1.0]],)),
    (TypeError, "reflectors .*int64", (torch.ones(1, 2, dtype=torch.int64),)),
    (ValueError, "reflectors .*k = 3", (torch.ones(3, 2),)),
    (ValueError, "reflectors", (torch.ones(3),)),
    (TypeError, "num_columns .*1.0", (torch.ones(1, 2), 1.0)),
    (TypeError, "num_columns .*True", (torch.ones(1, 2), True)),
    (ValueError, "num_columns .*n = 2, got 3", (torch.ones(1, 2), 3)),
    (ValueError, "num_columns .*-1", (torch.ones(1, 2), -1)),
]


@pytest.mark.parametrize(("error", "match", "arguments"), BAD_PRODUCT)
def test_product_names_the_bad_argument(error, match, arguments):
    with pytest.raises(error, match=match):
        householder_product(*arguments)


BAD_ORTHOGONAL = [
    (TypeError, "q must be a torch.Tensor", [[1.0]]),
    (TypeError, "q .*int64", torch.eye(2, dtype=torch.int64)),
    (ValueError, r"q .*p <= n.*\(2, 3\)", torch.ones(2, 3)),
    (ValueError, "q must have shape", torch.ones(3)),
    (ValueError, "q must have orthonormal columns.*up to 2,", torch.ones(2, 2)),
    (ValueError, "q must have orthonormal columns", torch.eye(3).double() * (1 + 1e-9)),
    (ValueError, "q must have orthonormal columns.*nan", torch.full((2, 2), float("nan"))),
]


@pytest.mark.parametrize(("error", "match", "q"), BAD_ORTHOGONAL)
def test_recovery_names_the_bad_argument(error, match, q):
    with pytest.raises(error, match=match):
        reflectors_from_orthogonal(q)


@pytest.mark.parametrize("triangular", [False, True])
def test_exports_with_any_number_of_vectors(triangular):
    class Apply(torch.nn.Module):
        def forward(self, x, reflectors):
            return apply_reflectors(x, reflectors, triangular=triangular)

    v = torch.randn(4, 6)
    count = torch.export.Dim("count", min=2, max=4096)
    example = (torch.randn(3, 6), v)
    program = torch.export.export(Apply(), example, dynamic_shapes=({0: count}, None)).module()
    for size in (2, 1000):
        x = torch.randn(size, 6)
        expected = reference.apply_reflectors(x, v.triu() if triangular else v)
        torch.testing.assert_close(program(x, v), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("triangular", [False, True])
def test_strides_of_several_blocks_do_not_matter(triangular):
    x, given = torch.randn(2, 3, 250), torch.randn(200, 2, 250)
    given[1, 0] = 0
    loose = given.transpose(0, 1).requires_grad_()
    tight = given.transpose(0, 1).contiguous().requires_grad_()
    weights = torch.randn(2, 3, 250)
    for call in (
        lambda v: apply_reflectors(x, v, triangular=triangular) * weights,
        lambda v: householder_product(v, 3, triangular=triangular).mT * weights,
    ):
        ours, expected = (torch.autograd.grad(call(v).sum(), v)[0] for v in (loose, tight))
        close(ours, expected)
