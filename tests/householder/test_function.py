"""Derivatives of Householder products: any order, under every transform, and what they cost."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from spectral_triton import reference
from spectral_triton.householder import compact_wy_inplace
from spectral_triton.householder.function import (
    ApplyReflectors,
    HouseholderProduct,
    apply_factors,
)
from spectral_triton.householder.prepared import prepare, prepare_product
from spectral_triton.householder.products import (
    apply_reflectors,
    forms_product,
    householder_product,
)
from spectral_triton.svd.operator import HouseholderSVD

FLAGS = list(itertools.product([False, True], repeat=2))


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
@pytest.mark.parametrize("num_vectors", [2, 20])
def test_gradcheck_of_apply(num_vectors, transpose, triangular):
    x = torch.randn(num_vectors, 4, requires_grad=True)
    v = torch.randn(4, 4, requires_grad=True)
    assert forms_product(num_vectors, 4, 4, triangular) == (num_vectors == 20)

    def f(x, v):
        return apply_reflectors(x, v, transpose=transpose, triangular=triangular)

    assert gradcheck(f, (x, v))
    # Many vectors add nothing but columns to the second derivative.
    assert gradgradcheck(f, (x, v), fast_mode=num_vectors == 20)


@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("num_columns", [1, 4, 5])
def test_gradcheck_of_product(num_columns, triangular):
    v = torch.randn(4, 5, requires_grad=True)

    def f(v):
        return householder_product(v, num_columns, triangular=triangular)

    assert gradcheck(f, v)
    assert gradgradcheck(f, v)


def test_second_derivatives_across_blocks():
    x, v = torch.randn(2, 140), torch.randn(131, 140)
    for transpose, triangular in FLAGS:
        flags = {"transpose": transpose, "triangular": triangular}

        def penalty(f, flags=flags):
            def of(x, v):
                grads = torch.autograd.grad(
                    f(x, v, **flags).pow(3).sum(), (x, v), create_graph=True
                )
                return sum(g.square().sum() for g in grads)

            return of

        assert_same_gradients(penalty(apply_reflectors), penalty(oracle), x, v, atol=1e-10)


def test_gradient_of_x_alone_and_of_reflectors_alone():
    x, v = torch.randn(2, 6), torch.randn(4, 6)
    for transpose in (False, True):
        y = apply_reflectors(x.clone().requires_grad_(), v, transpose=transpose)
        assert y.requires_grad
        assert_same_gradients(
            lambda x, t=transpose: apply_reflectors(x, v, transpose=t),
            lambda x, t=transpose: oracle(x, v, t),
            x,
        )
        assert_same_gradients(
            lambda v, t=transpose: apply_reflectors(x, v, transpose=t),
            lambda v, t=transpose: oracle(x, v, t),
            v,
        )
        assert gradgradcheck(
            lambda x, t=transpose: apply_reflectors(x, v, transpose=t).square(),
            x.clone().requires_grad_(),
        )


@pytest.mark.parametrize("num_vectors", [1, 60])
def test_zero_reflectors_are_the_identity_without_gradient(num_vectors):
    x = torch.randn(num_vectors, 5)
    for rows in ([0], [1], [3], [0, 2], [0, 1, 2, 3]):
        v = torch.randn(4, 5)
        v[rows] = 0
        others = [i for i in range(4) if i not in rows]
        for transpose, triangular in FLAGS:
            flags = {"transpose": transpose, "triangular": triangular}
            y, grad_x, grad_v = gradients(lambda x, v, f=flags: apply_reflectors(x, v, **f), x, v)
            # Without the zero rows, but with the others in their places.
            kept = v.triu() if triangular else v
            assert (grad_v[rows] == 0).all()
            expected = gradients(lambda x, v, t=transpose: oracle(x, v, t), x, kept[others])
            close(y, expected[0])
            close(grad_x, expected[1])
            wanted = torch.zeros_like(v)
            wanted[others] = expected[2]
            close(grad_v, wanted.triu() if triangular else wanted, atol=1e-12)
        q, grad = gradients(householder_product, v)
        close(q, product_oracle(v[others]))
        assert (grad[rows] == 0).all()
        assert grad.isfinite().all()


def test_all_zero_reflectors_keep_x_exactly():
    x = torch.randn(3, 4)
    for shape in ((4, 4), (0, 4)):
        v = torch.zeros(shape, requires_grad=True)
        y = apply_reflectors(x, v)
        assert torch.equal(y, x)
        y.sum().backward()
        assert torch.equal(v.grad, torch.zeros(shape))
        assert torch.equal(householder_product(v), torch.eye(4))


def test_second_derivatives_pass_by_zero_reflectors():
    x, v = torch.randn(2, 5), torch.randn(3, 5)
    v[1] = 0

    def penalty(f, x, v):
        grads = torch.autograd.grad(f(x, v).pow(3).sum(), (x, v), create_graph=True)
        return sum(g.square().sum() for g in grads)

    _, grad_x, grad_v = gradients(lambda x, v: penalty(apply_reflectors, x, v), x, v)
    _, wanted_x, wanted_v = gradients(lambda x, v: penalty(oracle, x, v), x, v[[0, 2]])
    close(grad_x, wanted_x, atol=1e-11)
    close(grad_v[[0, 2]], wanted_v, atol=1e-11)
    assert torch.equal(grad_v[1], torch.zeros(5))


@pytest.mark.parametrize("num_vectors", [2, 40])
def test_autocast_changes_nothing(num_vectors):
    x = torch.randn(num_vectors, 7).float().requires_grad_()
    v = torch.randn(5, 7).float().requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y, q = apply_reflectors(x, v), householder_product(v)
        assert y.dtype == q.dtype == torch.float32
        results.append((y, q, *torch.autograd.grad(y.pow(2).sum() + q.pow(3).sum(), (x, v))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_backward_inside_autocast_is_exact_too():
    x, v = torch.randn(2, 7).float(), torch.randn(5, 7).float()
    expected = gradients(apply_reflectors, x, v), gradients(householder_product, v)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(apply_reflectors, x, v), gradients(householder_product, v)
    for a, e in zip(sum(actual, ()), sum(expected, ()), strict=True):
        assert torch.equal(a, e)


def test_two_runs_are_bit_equal():
    x, v = torch.randn(40, 65).float(), torch.randn(65, 65).float()
    for size in (2, 40):
        first, second = (gradients(apply_reflectors, x[:size], v) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    first, second = (gradients(householder_product, v) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_func_transforms_of_apply():
    x, v = torch.randn(3, 5), torch.randn(2, 5)

    def loss(f):
        return lambda x, v: f(x, v).pow(3).sum()

    for actual, wanted in zip(
        torch.func.grad(loss(apply_reflectors), (0, 1))(x, v),
        torch.func.grad(loss(oracle), (0, 1))(x, v),
        strict=True,
    ):
        close(actual, wanted)
    close(torch.func.jacrev(apply_reflectors, 1)(x, v), torch.func.jacrev(oracle, 1)(x, v))
    second = torch.func.jacrev(torch.func.grad(loss(apply_reflectors), 1), 1)(x, v)
    close(second, torch.func.jacrev(torch.func.grad(loss(oracle), 1), 1)(x, v), atol=1e-12)


@pytest.mark.parametrize("rows", [1, 20])
def test_vmap_of_apply(rows):
    x, v = torch.randn(4, rows, 5), torch.randn(4, 2, 5)
    expected = oracle(x, v)
    close(torch.vmap(apply_reflectors)(x, v), expected)
    close(
        torch.vmap(apply_reflectors, (1, 2), 1)(x.movedim(0, 1), v.movedim(0, 2)).movedim(1, 0),
        expected,
    )
    close(torch.vmap(apply_reflectors, (None, 0))(x[0], v), oracle(x[0], v))
    close(torch.vmap(apply_reflectors, (0, None))(x, v[0]), oracle(x, v[0]))
    # Two mapped dimensions, and one beside a batch of reflectors.
    twice = torch.vmap(torch.vmap(apply_reflectors, (0, None)), (None, 0))(x, v)
    close(twice, oracle(x, v[:, None]))
    batched = torch.vmap(apply_reflectors, (0, None))(x.unsqueeze(1), v)
    close(batched, oracle(x.unsqueeze(1), v))
    per_sample = torch.vmap(torch.func.grad(lambda v, x: apply_reflectors(x, v).pow(3).sum()))
    wanted = torch.vmap(torch.func.grad(lambda v, x: oracle(x, v).pow(3).sum()))
    close(per_sample(v, x), wanted(v, x), atol=1e-12)


def test_func_transforms_of_product():
    v = torch.randn(3, 2, 5)
    close(torch.vmap(householder_product)(v), product_oracle(v))
    close(torch.vmap(lambda v: householder_product(v, 2), 1)(v.movedim(0, 1)), product_oracle(v, 2))
    for num_columns in (1, 5):
        close(
            torch.func.jacrev(lambda v, c=num_columns: householder_product(v, c))(v[0]),
            torch.func.jacrev(lambda v, c=num_columns: product_oracle(v, c))(v[0]),
        )
    close(
        torch.vmap(torch.func.grad(lambda v: householder_product(v).pow(3).sum()))(v),
        torch.vmap(torch.func.grad(lambda v: product_oracle(v).pow(3).sum()))(v),
        atol=1e-12,
    )


@pytest.mark.parametrize("num_vectors", [2, 40])
def test_compiles_without_a_graph_break(num_vectors):
    x, v = torch.randn(num_vectors, 5), torch.randn(4, 5)
    compiled = torch.compile(apply_reflectors, backend="aot_eager", fullgraph=True)
    assert_same_gradients(compiled, oracle, x, v)


@pytest.mark.parametrize(("columns", "thin"), [(1, True), (200, False)])
def test_backward_of_the_product_takes_the_cheaper_way(columns, thin, monkeypatch):
    called = []
    for name in ("apply_bwd", "product_bwd"):
        original = getattr(compact_wy_inplace, name)

        def watched(*args, original=original, name=name):
            called.append(name)
            return original(*args)

        monkeypatch.setattr(compact_wy_inplace, name, watched)
    v = torch.randn(200, 200)
    assert_same_gradients(
        lambda v: householder_product(v, columns), lambda v: product_oracle(v, columns), v
    )
    assert called == (["apply_bwd"] if thin else ["product_bwd"])


def test_backward_keeps_the_output_the_coefficients_and_little_else():
    x, v = torch.randn(500, 40, requires_grad=True), torch.randn(2, 40, requires_grad=True)
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 8
        return tensor

    assert not forms_product(500, 2, 40, False)
    # The caller's product: nothing else keeps it alive.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = apply_reflectors(x, v)
    assert saved.pop(y.untyped_storage().data_ptr()) == 500 * 40
    assert sum(saved.values()) <= 500 * 2 + 4 * 2 * 40


def test_no_gradient_of_reflectors_is_computed_where_none_is_needed():
    x, v = torch.randn(2, 5, requires_grad=True), torch.randn(3, 5)
    (y,) = ApplyReflectors.apply(x, v, *prepare(v, False, 2), False, False)
    grads = y.grad_fn.apply(torch.ones_like(y))
    assert grads[1:] == (None,) * 6
    close(grads[0], oracle(torch.ones(2, 5), v, True))
    q = HouseholderProduct.apply(v.requires_grad_(), *prepare_product(v, False), 5, False)
    assert q.grad_fn.apply(torch.ones_like(q))[1:] == (None,) * 5


def factors(m, n, k_left, k_right, *batch):
    """x, left, σ, right and bias, as apply_factors takes them."""
    sizes = [(3, n), (k_left, m), (min(m, n),), (k_right, n), (m,)]
    return [torch.randn(*batch, *size) for size in sizes]


def at_once(x, left, sigma, right, bias=None, triangular=False):
    return apply_factors(x, left, sigma, right, bias, triangular)


def factored_oracle(x, left, sigma, right, bias=0, triangular=False):
    p = sigma.shape[-1]
    inner = oracle(x, right, True, triangular)[..., :p] * sigma
    inner = torch.nn.functional.pad(inner, (0, left.shape[-1] - p))
    return oracle(inner, left, False, triangular) + bias


@pytest.mark.parametrize("num_inputs", [4, 5], ids=["no bias", "bias"])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("sizes", [(5, 5, 5, 2), (4, 6, 1, 4), (6, 4, 4, 4), (150, 140, 131, 3)])
def test_both_factors_at_once(sizes, triangular, num_inputs):
    assert_same_gradients(
        lambda *a: at_once(*a, triangular=triangular),
        lambda *a: factored_oracle(*a, triangular=triangular),
        *factors(*sizes)[:num_inputs],
        atol=1e-11,
    )


@pytest.mark.parametrize("sizes", [(5, 5, 5, 2), (150, 140, 131, 3)])
def test_a_large_bias_takes_nothing_from_the_gradient(sizes):
    *inputs, bias = factors(*sizes)
    with_bias = gradients(lambda *a: at_once(*a, 1e12 * bias), *inputs)
    close(with_bias[1:], gradients(at_once, *inputs)[1:])


def test_derivatives_of_both_factors_at_once():
    inputs = [a.requires_grad_() for a in factors(4, 5, 3, 2)]

    def f(*inputs):
        return at_once(*inputs, triangular=True)

    assert gradcheck(f, inputs, check_batched_grad=True)
    assert gradgradcheck(f, inputs)
    # Where the factors are constant, and where σ has zeros, which no inverse could pass.
    x, *rest = (a.detach() for a in inputs)
    rest[1][1] = 0
    assert gradcheck(lambda x: f(x, *rest), x.clone().requires_grad_())
    assert gradgradcheck(lambda x: f(x, *rest).square(), x.clone().requires_grad_())
    left, sigma, *rest = rest
    assert gradgradcheck(lambda s: f(x, left, s, *rest).square(), sigma.requires_grad_())


def test_transforms_of_both_factors_at_once():
    inputs = factors(4, 5, 3, 2, 6)

    def penalty(f):
        return lambda *inputs: f(*inputs).pow(3).sum()

    close(torch.vmap(at_once)(*inputs), torch.vmap(factored_oracle)(*inputs), atol=1e-12)
    mixed = inputs[0][0], inputs[1], inputs[2][0], inputs[3].movedim(0, 2), inputs[4][0]
    dims = (None, 0, None, 2, None)
    close(torch.vmap(at_once, dims)(*mixed), torch.vmap(factored_oracle, dims)(*mixed), atol=1e-12)
    only_x, all_but_x = (0, None, None, None, None), (None, 0, 0, 0, 0)
    twice = torch.vmap(torch.vmap(at_once, only_x), all_but_x)
    wanted = torch.vmap(torch.vmap(factored_oracle, only_x), all_but_x)
    close(twice(*inputs), wanted(*inputs), atol=1e-12)
    for actual, expected in zip(
        torch.vmap(torch.func.grad(penalty(at_once), (0, 1, 2, 3, 4)))(*inputs),
        torch.vmap(torch.func.grad(penalty(factored_oracle), (0, 1, 2, 3, 4)))(*inputs),
        strict=True,
    ):
        close(actual, expected, atol=1e-10)
    compiled = torch.compile(at_once, backend="aot_eager", fullgraph=True)
    single = [a[0] for a in inputs]
    assert_same_gradients(compiled, factored_oracle, *single)


@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("spread", [0, 1e-6, 1e-2])
def test_reflectors_nearly_parallel_lose_little(spread, triangular):
    row = torch.ones(150)
    v = (row + spread * torch.randn(140, 150)).float()
    x = torch.randn(4, 150).float()
    for f, exact, inputs in (
        (apply_reflectors, oracle, (x, v)),
        (lambda v, **flags: householder_product(v, 150, **flags), product_oracle, (v,)),
    ):
        actual = gradients(lambda *a, f=f: f(*a, triangular=triangular), *inputs)
        wide = [a.double() for a in inputs]
        expected = gradients(lambda *a, f=exact: f(*a, triangular=triangular), *wide)
        for a, e in zip(actual, expected, strict=True):
            assert (a - e).abs().max() <= 5e-4 * e.abs().max()


@pytest.mark.parametrize("num_vectors", [1, 4, 40])
def test_forward_mode_of_a_gradient_of_x_alone(num_vectors):
    v, x, g = torch.randn(3, 6), torch.randn(num_vectors, 6), torch.randn(num_vectors, 6)
    # The forward pass ran before forward mode began, as in a Gauss-Newton product.
    _, pull = torch.func.vjp(lambda x: apply_reflectors(x, v), x)
    value, tangent = torch.func.jvp(lambda g: pull(g)[0], (g,), (g,))
    close(value, apply_reflectors(g, v, transpose=True))
    close(tangent, value)
    _, left, sigma, right, _ = factors(6, 6, 2, 3)
    _, pull = torch.func.vjp(lambda x: HouseholderSVD(left, sigma, right).apply(x), x)
    _, tangent = torch.func.jvp(lambda g: pull(g)[0], (g,), (g,))
    close(tangent, g @ HouseholderSVD(left, sigma, right).to_dense())


@pytest.mark.parametrize(("k", "n"), [(3, 5), (140, 200)])
@pytest.mark.parametrize("transpose", [False, True])
def test_gradient_for_vectors_alone_is_the_product_the_other_way(k, n, transpose):
    x, g = torch.randn(2, n, requires_grad=True), torch.randn(2, n, requires_grad=True)
    v = torch.randn(k, n)
    y = apply_reflectors(x, v, transpose=transpose)
    expected = oracle(g, v, not transpose)
    close(torch.autograd.grad(y, x, g, retain_graph=True)[0], expected.detach())
    (grad_x,) = torch.autograd.grad(y, x, g, create_graph=True)
    close(grad_x, expected)
    close(torch.autograd.grad(grad_x.sum(), g)[0], oracle(torch.ones(2, n), v, transpose))
