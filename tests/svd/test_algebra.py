"""Norms, powers and the polar form of a factored matrix, against torch.linalg of the dense one.

Solving, inverses and determinants are in test_operator.py.
"""

import pytest
import torch

from spectral_triton.svd.operator import HouseholderSVD

SHAPES = [(1, 1), (4, 4), (5, 3), (3, 5)]
norm = torch.linalg.matrix_norm


def factored(m, n, batch=(), k=None, signed=True):
    p = min(m, n)
    k = p if k is None else k
    sigma = torch.randn(*batch, p) if signed else torch.rand(*batch, p) + 0.1
    signs = torch.randint(2, (p,)).double() * 2 - 1
    left, right = torch.randn(k, m), torch.randn(*batch, k, n)
    return HouseholderSVD(left, sigma, right, signs=signs, triangular=True)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_norms(shape, batch):
    factors = factored(*shape, batch)
    w = factors.to_dense()
    close(factors.frobenius_norm(), norm(w, "fro"))
    close(factors.nuclear_norm(), norm(w, "nuc"))
    close(factors.spectral_norm(), norm(w, 2))


def test_norms_have_the_batch_of_the_matrix():
    factors = HouseholderSVD(torch.randn(3, 2, 4), torch.rand(4), torch.randn(2, 4))
    for value in (
        factors.frobenius_norm(),
        factors.nuclear_norm(),
        factors.truncation_error(1),
        factors.truncation_error(1, "spectral"),
    ):
        assert value.shape == (3,)
    assert factors.gram().shape == (3, 4, 4)


@pytest.mark.parametrize("value", ["frobenius_norm", "nuclear_norm"])
def test_penalties_have_the_gradient_of_the_dense_norm(value):
    sigma = torch.randn(3, requires_grad=True)
    factors = HouseholderSVD(torch.randn(3, 4), sigma, torch.randn(2, 3))
    ours = torch.autograd.grad(getattr(factors, value)() ** 2, sigma)[0]
    dense = norm(factors.to_dense(), "fro" if value == "frobenius_norm" else "nuc")
    close(ours, torch.autograd.grad(dense**2, sigma)[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("k", [None, 1])
def test_gram(shape, batch, k):
    factors = factored(*shape, batch, k)
    w = factors.to_dense()
    close(factors.gram().to_dense(), w.mT @ w)
    close(factors.mT.gram().to_dense(), w @ w.mT)
    close(factors.gram(2).to_dense(), w.mT @ w @ w.mT @ w)
    root = factors.gram(0.5).to_dense()
    close(root, root.mT)
    close(root @ root, w.mT @ w)
    assert (torch.linalg.eigvalsh(root) > -1e-12).all()


@pytest.mark.parametrize("shape", [(4, 4), (5, 3)])
def test_inverse_powers_of_the_gram_matrix(shape):
    factors = factored(*shape, signed=False)
    w = factors.to_dense()
    close(factors.gram(-1).to_dense(), torch.linalg.inv(w.mT @ w))
    close(factors.gram(0).to_dense(), torch.eye(shape[1]))
    whitened = w @ factors.gram(-0.5).to_dense()
    close(whitened.mT @ whitened, torch.eye(shape[1]))


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (5, 3)])
def test_polar(shape):
    factors = factored(*shape, (2,))
    w = factors.to_dense()
    q, p = (factor.to_dense() for factor in factors.polar())
    close(q @ p, w)
    close(q.mT @ q, torch.eye(shape[1]).expand(2, -1, -1))
    close(p, p.mT)
    u, _, vh = torch.linalg.svd(w, full_matrices=False)
    close(q, u @ vh)


@pytest.mark.parametrize("exponent", [-3, -1, 0, 1, 4])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (60, 4)])
def test_powers(exponent, shape):
    factors = factored(4, 4, signed=False)
    x = torch.randn(shape)
    expected = x @ torch.linalg.matrix_power(factors.to_dense(), exponent).mT
    torch.testing.assert_close(factors.apply_power(x, exponent), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("exponent", [-2, 0, 1, 3])
@pytest.mark.parametrize("batch", [(3,), (2, 1), (2, 3), (0,)])
def test_powers_of_several_matrices(exponent, batch):
    factors = factored(4, 4, batch, signed=False)
    x = torch.randn(4)
    expected = torch.linalg.matrix_power(factors.to_dense(), exponent) @ x
    torch.testing.assert_close(factors.apply_power(x, exponent), expected, rtol=1e-8, atol=1e-8)


def test_condition_of_singular_matrices_is_infinite():
    sigma = torch.tensor([[1.0, 0.0], [0.0, 0.0], [4.0, -2.0]])
    v = torch.zeros(0, 2)
    expected = torch.tensor([torch.inf, torch.inf, 2.0])
    assert torch.equal(HouseholderSVD(v, sigma, v).cond(), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f.gram().apply(x),
        lambda f, x: f.polar()[1].apply(x),
        lambda f, x: HouseholderSVD(f.left, f.singular_values, f.left).apply(x),
        lambda f, x: f.solve(x, check_errors=False),
        lambda f, x: f.inverse(check_errors=False).apply(x),
        lambda f, x: f.mT.pinv().apply(x),
    ],
)
def test_compiles_in_one_graph(call):
    left, sigma, right = factored(6, 6).left, torch.rand(6) + 0.5, torch.randn(3, 6)
    x = torch.randn(4, 6)

    def run(left, sigma, right):
        return call(HouseholderSVD(left, sigma, right), x)

    inputs = [a.clone().requires_grad_() for a in (left, sigma, right)]
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    actual, expected = compiled(*inputs), run(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    pair = [
        torch.autograd.grad(y.square().sum(), inputs, allow_unused=True, materialize_grads=True)
        for y in (actual, expected)
    ]
    torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-10)


def test_powers_round_once():
    factors = HouseholderSVD.from_dense(torch.linalg.qr(torch.randn(8, 8)).Q.float())
    x = torch.randn(5, 8).bfloat16()
    exact = x.double() @ torch.linalg.matrix_power(factors.to_dense().double(), 50).mT
    y = factors.apply_power(x, 50)
    assert y.dtype == torch.bfloat16
    assert ((y.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f.gram("2"), TypeError, "power must be a number"),
        (lambda f: f.mT.gram(-1), ValueError, "power must be positive for a matrix with m < n"),
        (lambda f: f.mT.polar(), ValueError, r"polar needs m >= n, got shape \(3, 4\)"),
        (lambda f: f.apply_power(torch.ones(3), 2), ValueError, "apply_power needs a square"),
        (lambda f: f.gram().apply_power(torch.ones(3), 0.5), TypeError, "exponent must be an int"),
        (lambda f: f.gram().apply_power([1.0], 2), TypeError, "x must be .*list"),
        (lambda f: f.gram().apply_power(torch.ones(5), 0), ValueError, "x must hold .* length 3"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(factored(4, 3))


@pytest.mark.parametrize("power", [1, 2, 3.0])
def test_gram_has_second_derivatives_at_zero(power):
    left, right = torch.randn(3, 4), torch.randn(3, 3)
    sigma = torch.tensor([1.0, 0.0, -2.0])

    def trace(sigma):
        return HouseholderSVD(left, sigma, right).gram(power).to_dense().diagonal().sum()

    expected = 2 * power * (2 * power - 1) * sigma ** (2 * power - 2)
    close(torch.func.hessian(trace)(sigma), expected.diag())


def test_no_power_is_a_product_like_the_others():
    factors = HouseholderSVD(torch.randn(5, 2, 3), torch.ones(3), torch.randn(2, 3))
    for x in (torch.randn(3), torch.randn(4, 3), torch.randn(2, 1, 4, 3)):
        y = factors.apply_power(x, 0)
        assert y.shape == factors.apply_power(x, 1).shape
        assert torch.equal(y, x.expand_as(y) if x.dim() > 1 else x.expand(5, 3))
    x = torch.randn(4, 3)
    single = HouseholderSVD(torch.randn(2, 3), torch.ones(3), torch.randn(2, 3))
    assert single.apply_power(x, 0).data_ptr() != x.data_ptr()
    with pytest.raises(TypeError, match="x must have the dtype of the factors"):
        single.apply_power(x.float(), 0)


def test_inverse_powers_under_vmap():
    left, sigma, right = torch.randn(5, 2, 3), torch.rand(5, 3) + 0.5, torch.randn(2, 3)

    def power(left, sigma, x):
        return HouseholderSVD(left, sigma, right).apply_power(x, -2, check_errors=False)

    x = torch.randn(5, 4, 3)
    expected = HouseholderSVD(left, sigma, right).apply_power(x, -2)
    close(torch.func.vmap(power)(left, sigma, x), expected)


def test_pinv_has_derivatives_beside_a_zero_that_it_leaves_out():
    w = factored(4, 4)
    sigma = torch.tensor([2.0, 0.0, 0.5, 1.0], requires_grad=True)
    inverse = HouseholderSVD(w.left, sigma, w.right, triangular=True).pinv()
    inverse.singular_values.sum().backward()
    close(sigma.grad, torch.tensor([-0.25, 0.0, -4.0, -1.0]))
