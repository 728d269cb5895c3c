"""Derivatives of every kind and nesting, against those of the plain reference."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from spectral_triton import (
    HouseholderSVD,
    SpectralRNN,
    apply_reflectors,
    householder_product,
    reference,
    spectral_recurrence,
)
from spectral_triton.recurrence.folded_weight import fold
from spectral_triton.runtime.forward_mode import functions_serve, in_forward_mode, is_differentiated


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)


def svd_reference(left, sigma, right, x):
    return x @ reference.svd_to_dense(left.triu(), sigma, right.triu()).mT


def svd_applied(left, sigma, right, x):
    return HouseholderSVD(left, sigma, right, triangular=True).apply(x)


def svd_dense(left, sigma, right, x):
    return x @ HouseholderSVD(left, sigma, right, triangular=True).to_dense().mT


def recurrence(x, h0, left, sigma, right):
    return spectral_recurrence(x, h0, HouseholderSVD(left, sigma, right))


def recurrence_reference(x, h0, left, sigma, right):
    return reference.recurrence(x, h0, reference.svd_to_dense(left, sigma, right))


def folded(left, sigma, right):
    scale, p, q = fold(HouseholderSVD(left, sigma, right))
    return torch.diag(scale) - p @ q.mT


CASES = {
    "fold": (folded, reference.svd_to_dense, ((2, 4), (4,), (1, 4))),
    "apply": (apply_reflectors, reference.apply_reflectors, ((3, 5), (4, 5))),
    "apply to many": (apply_reflectors, reference.apply_reflectors, ((40, 3), (3, 3))),
    "apply a batch": (apply_reflectors, reference.apply_reflectors, ((2, 3, 4), (2, 2, 4))),
    "product": (householder_product, reference.householder_product, ((3, 4),)),
    "columns": (
        lambda v: householder_product(v, 2),
        lambda v: reference.householder_product(v, 2),
        ((2, 3, 4),),
    ),
    "svd": (svd_applied, svd_reference, ((3, 6), (5,), (2, 5), (3, 5))),
    "dense svd": (svd_dense, svd_reference, ((3, 6), (5,), (2, 5), (3, 5))),
    "recurrence": (recurrence, recurrence_reference, ((3, 2, 4), (2, 4), (2, 4), (4,), (1, 4))),
}


def table():
    return pytest.mark.parametrize(("function", "oracle", "shapes"), CASES.values(), ids=CASES)


@table()
def test_tangents(function, oracle, shapes):
    primals, directions = tensors(*shapes), tensors(*shapes, seed=1)
    torch.testing.assert_close(jvp(function, primals, directions), jvp(oracle, primals, directions))


def scalar_of_one(f, primals):
    """A number as a function of the second argument alone, or of the only one."""
    argument = min(1, len(primals) - 1)
    before, after = primals[:argument], primals[argument + 1 :]
    weights = torch.linspace(0.5, 1.5, f(*primals).numel(), dtype=torch.float64)
    return lambda a: f(*before, a, *after).sin().flatten() @ weights, primals[argument]


@table()
def test_second_derivatives_in_every_nesting(function, oracle, shapes):
    primals = tensors(*shapes)
    f, at = scalar_of_one(function, primals)
    expected = jacrev(jacrev(scalar_of_one(oracle, primals)[0]))(at)
    for outer in (jacfwd, jacrev):
        for inner in (jacfwd, jacrev):
            torch.testing.assert_close(outer(inner(f))(at), expected)
    torch.testing.assert_close(hessian(f)(at), expected)


@table()
def test_third_derivatives_in_every_nesting(function, oracle, shapes):
    primals = tensors(*shapes)
    f, at = scalar_of_one(function, primals)
    directions = tensors(at.shape, at.shape, at.shape, seed=1)

    def forward(g, direction):
        return lambda a: jvp(g, (a,), (direction,))[1]

    def backward(g, direction):
        return lambda a: (grad(g)(a) * direction).sum()

    def third(g, ways):
        for way, direction in zip(ways, directions, strict=True):
            g = way(g, direction)
        return g(at)

    expected = third(scalar_of_one(oracle, primals)[0], (backward,) * 3)
    for ways in itertools.product((forward, backward), repeat=3):
        torch.testing.assert_close(third(f, ways), expected)


@table()
def test_compiled_derivatives(function, oracle, shapes):
    """Of any order: a backward traced as if nobody differentiated it gave second ones of zero."""
    primals = tensors(*shapes)
    f, at = scalar_of_one(function, primals)
    expected, _ = scalar_of_one(oracle, primals)

    def nested(g):
        return lambda a: grad(lambda a: grad(g)(a).square().sum())(a)

    for order in (grad, nested):
        compiled = torch.compile(order(f), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(at), order(expected)(at))
    each = torch.stack((at, at + 1))
    compiled = torch.compile(vmap(grad(f)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(each), vmap(grad(expected))(each))


def of_rows(name, x, v, triangular):
    """A product of x with what the rows of v, some of them zero, make."""
    if name == "apply":
        return apply_reflectors(x, v, triangular=triangular)
    if name == "product":
        return x @ householder_product(v, triangular=triangular).mT
    return HouseholderSVD(v, x[0], v, triangular=triangular).apply(x)


def of_other_rows(name, x, v):
    if name == "svd":
        return x @ reference.svd_to_dense(v, x[0], v).mT
    return reference.apply_reflectors(x, v)


@pytest.mark.parametrize("name", ["apply", "product", "svd"])
@pytest.mark.parametrize("many", [2, 40])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("outer", [jacfwd, jacrev])
@pytest.mark.parametrize("inner", [jacfwd, jacrev])
def test_second_derivatives_are_zero_at_zero_reflectors(name, many, triangular, outer, inner):
    x, v = tensors((many, 5), (3, 5))
    v[1] = 0
    others = torch.tensor([0, 2])
    mask = torch.ones_like(v).triu() if triangular else torch.ones_like(v)
    expected = torch.zeros(3, 5, 3, 5, dtype=torch.float64)
    expected[others[:, None], :, others] = jacrev(
        jacrev(lambda w: of_other_rows(name, x, w * mask[others]).pow(3).sum())
    )(v[others]).transpose(1, 2)
    actual = outer(inner(lambda v: of_rows(name, x, v, triangular).pow(3).sum()))(v)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@table()
def test_finite_differences(function, oracle, shapes):
    inputs = tuple(a.requires_grad_() for a in tensors(*shapes))
    torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize(("n", "k"), [(5, 5), (140, 131)])
def test_gradients_of_many_outputs_at_once(n, k, triangular):
    x, v, g = tensors((2, n), (k, n), (3, 2, n))
    for function, inputs in (
        (lambda x, v: apply_reflectors(x, v, triangular=triangular), (x, v)),
        (lambda v: householder_product(v, 2, triangular=triangular).mT, (v,)),
    ):
        inputs = tuple(a.clone().requires_grad_() for a in inputs)
        y = function(*inputs)
        batched = torch.autograd.grad(y, inputs, g, is_grads_batched=True, retain_graph=True)
        for i in range(len(g)):
            single = torch.autograd.grad(y, inputs, g[i], retain_graph=True)
            torch.testing.assert_close(tuple(b[i] for b in batched), single)


def test_tangent_of_a_gradient_whose_forward_was_recorded_before():
    x, v, dx = (a.requires_grad_() for a in tensors((3, 5), (4, 5), (3, 5)))
    y = apply_reflectors(x, v)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones_like(y), dx.detach())
        tangents = [forward_ad.unpack_dual(g).tangent for g in torch.autograd.grad(y, (x, v), dual)]
    torch.testing.assert_close(
        tangents, list(torch.autograd.grad(apply_reflectors(x, v), (x, v), dx.detach()))
    )


def test_a_zero_reflector_has_a_zero_tangent():
    v = torch.zeros(2, 4, dtype=torch.float64)
    q, tangent = jvp(householder_product, (v,), tensors((2, 4)))
    torch.testing.assert_close(q, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(tangent, torch.zeros(4, 4, dtype=torch.float64))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "leaky_relu", "identity", "modrelu"])
@pytest.mark.parametrize("num_reflectors", [2, None])
def test_tangents_of_a_network_over_an_ensemble(nonlinearity, num_reflectors):
    torch.manual_seed(0)
    options = {"bidirectional": True, "dtype": torch.float64, "num_reflectors": num_reflectors}
    rnn = SpectralRNN(3, 6, 2, nonlinearity, **options)
    parameters = dict(rnn.named_parameters())
    names = [name for name in parameters if "left" in name]
    x, dx = tensors((4, 2, 3), (4, 2, 3))

    def run(x, left):
        chosen = parameters | dict(zip(names, left, strict=True))
        return functional_call(rnn, chosen, (x,))[0]

    left = [parameters[name].detach() for name in names]
    directions = [torch.ones_like(a) for a in left]
    _, tangent = jvp(run, (x, left), (dx, directions))
    step = 1e-6
    ends = [
        run(x + s * dx, [a + s * d for a, d in zip(left, directions, strict=True)])
        for s in (step, -step)
    ]
    torch.testing.assert_close(tangent, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-7)
    several = vmap(lambda d: jvp(run, (x, left), (d, directions))[1])(torch.stack((dx, 2 * dx)))
    torch.testing.assert_close(several[0], tangent)


def test_packed_sequences_have_tangents():
    torch.manual_seed(0)
    rnn = SpectralRNN(3, 4, dtype=torch.float64, bidirectional=True)
    data, sizes = tensors((6, 3))[0], torch.tensor([3, 2, 1])

    def run(data):
        output, h_n = rnn(torch.nn.utils.rnn.PackedSequence(data, sizes))
        return output.data, h_n

    for forward, backward in zip(jacfwd(run)(data), jacrev(run)(data), strict=True):
        torch.testing.assert_close(forward, backward)


def test_what_is_differentiated():
    assert is_differentiated()
    with torch.no_grad():
        assert not is_differentiated()
        assert not in_forward_mode()
        with forward_ad.dual_level():
            assert in_forward_mode()
            assert is_differentiated()
            assert not functions_serve()
    assert functions_serve()
