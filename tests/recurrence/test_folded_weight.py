import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from spectral_triton import HouseholderSVD, reference
from spectral_triton.recurrence.folded_weight import Fold, fold, folds


def close(actual, expected, atol=1e-13):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def make(n, k_u, k_v, dtype=torch.float64):
    return [torch.randn(*shape, dtype=dtype) for shape in ((k_u, n), (n,), (k_v, n))]


def dense(scale, p, q):
    return torch.diag(scale) - p @ q.mT


def folded(triangular=False):
    """W of left, σ and right by way of the fold."""
    return lambda *factors: dense(*fold(HouseholderSVD(*factors, triangular=triangular)))


def expected(triangular=False):
    def of(left, sigma, right):
        left, right = (left.triu(), right.triu()) if triangular else (left, right)
        return reference.svd_to_dense(left, sigma, right)

    return of


def test_sizes_of_the_cost_rule():
    # 2 r + 64 < n
    assert folds(97, 16)
    assert not folds(96, 16)
    assert not folds(64, 0)
    assert folds(1024, 32)
    assert not folds(1024, 1024)


SIZES = [(1, 1, 0), (5, 2, 3), (6, 6, 6), (65, 65, 1), (3, 0, 0), (4, 0, 2)]


@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize(("n", "k_u", "k_v"), SIZES)
def test_fold_is_the_matrix(n, k_u, k_v, triangular):
    left, sigma, right = make(n, k_u, k_v)
    signs = torch.randn(n).sign()
    scale, p, q = fold(HouseholderSVD(left, sigma, right, signs=signs, triangular=triangular))
    assert p.shape == q.shape == (n, k_u + k_v)
    assert p.is_contiguous()
    assert q.is_contiguous()
    close(dense(scale, p, q), expected(triangular)(left, sigma * signs, right))


@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize(("n", "k_u", "k_v"), SIZES)
def test_gradients_are_those_of_the_matrix(n, k_u, k_v, triangular):
    factors, grad = make(n, k_u, k_v), torch.randn(n, n)
    results = []
    for f in (folded(triangular), expected(triangular)):
        own = [a.clone().requires_grad_() for a in factors]
        results.append(torch.autograd.grad(f(*own), own, grad, materialize_grads=True))
    for a, b in zip(*results, strict=True):
        close(a, b, atol=1e-12)


@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize(("k_u", "k_v"), [(2, 2), (1, 3), (0, 2)])
def test_gradients_of_p_and_q_alone(k_u, k_v, triangular):
    """Not only such as come from W, which are orthogonal to the rows."""
    inputs = [a.requires_grad_() for a in make(4, k_u, k_v)]
    for part in (0, 1, slice(0, 2)):
        assert gradcheck(lambda *a, part=part: Fold.apply(*a, triangular)[part], inputs)
        assert gradgradcheck(lambda *a, part=part: Fold.apply(*a, triangular)[part], inputs)


def test_gradients_of_some_factors_alone():
    factors, grad = make(5, 2, 3), torch.randn(5, 5)
    for index in range(3):
        results = []
        for f in (folded(), expected()):
            own = [a.clone().requires_grad_(i == index) for i, a in enumerate(factors)]
            f(*own).backward(grad)
            results.append(own[index].grad)
        close(*results, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zeros_and_of_any_length(dtype):
    small, large = (1e-30, 1e25) if dtype is torch.float32 else (1e-280, 1e250)
    left, sigma, right = make(7, 5, 4, dtype)
    factors = [left.clone(), sigma, right.clone()]
    scales = torch.tensor([1, small, large, 1, 1], dtype=dtype)
    factors[0] *= scales.unsqueeze(1)
    for side in (left, factors[0], factors[2], right):
        side[3] = 0
    grad = torch.randn(7, 7, dtype=dtype)
    results = []
    for f, own in ((folded(), factors), (folded(), [left, sigma, right])):
        own = [a.clone().requires_grad_() for a in own]
        w = f(*own)
        w.backward(grad)
        results.append((w, *(a.grad for a in own)))
    results[0][1].mul_(scales.unsqueeze(1))
    assert (results[0][1][3] == 0).all()
    assert (results[0][3][3] == 0).all()
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_float32_is_folded_in_float64():
    """W is off by the rounding of P and Q alone, of which the float32 lengths have no part."""
    factors = make(128, 16, 16, torch.float32)
    scale, p, q = fold(HouseholderSVD(*factors))
    wide = fold(HouseholderSVD(*(a.double() for a in factors)))
    assert p.dtype is q.dtype is torch.float32
    assert torch.equal(p, wide[1].float())
    assert torch.equal(q, wide[2].float())
    assert torch.equal(scale, factors[1])


def test_mapped_over_each_factor():
    factors = make(5, 2, 2)
    several = [torch.stack([a + index for index in range(3)]) for a in factors]
    for index in range(3):
        own = [several[i] if i == index else a for i, a in enumerate(factors)]
        dims = tuple(0 if i == index else None for i in range(3))
        mapped = torch.func.vmap(folded(), dims)(*own)
        for i in range(3):
            each = [a[i] if dim == 0 else a for a, dim in zip(own, dims, strict=True)]
            close(mapped[i], folded()(*each))


def test_gradients_of_mapped_factors_and_of_several_outputs():
    factors = make(4, 2, 1)
    jacobians = [torch.func.jacrev(f, (0, 1, 2))(*factors) for f in (folded(), expected())]
    jacobians.append(torch.func.jacfwd(folded(), (0, 1, 2))(*factors))
    jacobians.append(torch.autograd.functional.jacobian(folded(), tuple(factors), vectorize=True))
    for other in (jacobians[0], *jacobians[2:]):
        for a, b in zip(other, jacobians[1], strict=True):
            close(a, b, atol=1e-12)
    several = [torch.stack([a + index for index in range(3)]) for a in factors]
    grads = [
        torch.func.vmap(torch.func.grad(lambda *a, f=f: f(*a).pow(3).sum(), (0, 1, 2)))(*several)
        for f in (folded(), expected())
    ]
    for a, b in zip(*grads, strict=True):
        close(a, b, atol=1e-9)


def test_second_derivatives_are_those_of_the_matrix():
    factors = make(4, 2, 3)
    hessians = [
        torch.func.hessian(lambda *a, f=f: f(*a).pow(3).sum(), (0, 1, 2))(*factors)
        for f in (folded(), expected())
    ]
    for rows in zip(*hessians, strict=True):
        for a, b in zip(*rows, strict=True):
            close(a, b, atol=1e-9)


def test_second_derivatives_where_what_is_saved_is_packed_away():
    factors = make(4, 2, 3)

    def penalty(left):
        (slope,) = torch.autograd.grad(
            folded()(left, *factors[1:]).pow(3).sum(), left, create_graph=True
        )
        return slope.square().sum()

    results = []
    for f in (penalty, lambda left: checkpoint(penalty, left, use_reentrant=False)):
        left = factors[0].clone().requires_grad_()
        f(left).backward()
        results.append(left.grad)
    close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_too_small_to_have_a_square(dtype):
    """No gradient, whatever there is of one times the largest scale there is."""
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    left = torch.tensor([[least, 0, 0]], dtype=dtype, requires_grad=True)
    factors = HouseholderSVD(left, torch.ones(3, dtype=dtype), torch.zeros(0, 3, dtype=dtype))
    w = dense(*fold(factors))
    torch.testing.assert_close(w.detach(), torch.diag(torch.tensor([-1, 1, 1], dtype=dtype)))
    w[2, 2].backward()
    assert (left.grad == 0).all()


@pytest.mark.parametrize("tied", [False, True])
def test_compiled(tied):
    left, sigma, right = make(6, 2, 2)
    results = []
    for f in (folded(), torch.compile(folded(), fullgraph=True, backend="aot_eager")):
        own = [a.clone().requires_grad_() for a in (left, sigma, right)]
        own[2] = own[0] if tied else own[2]
        w = f(*own)
        w.square().sum().backward()
        results.append((w, *(a.grad for a in own)))
    for a, b in zip(*results, strict=True):
        close(a, b)
