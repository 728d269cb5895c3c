"""The recurrence against a plain loop over the dense matrix, in float64: values and gradients."""

import pytest
import torch
from functorch.compile import make_boxed_func
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import gradcheck, gradgradcheck

from spectral_triton import reference
from spectral_triton.recurrence.folded_weight import folds
from spectral_triton.recurrence.nonlinearity import NONLINEARITIES
from spectral_triton.recurrence.op import Recurrence
from spectral_triton.recurrence.recurrence import run, spectral_recurrence
from spectral_triton.svd.operator import HouseholderSVD

# T, B, n, k_u, k_v
SIZES = [
    (0, 2, 3, 1, 2),
    (1, 1, 1, 1, 1),
    (1, 1, 2, 0, 0),
    (2, 0, 3, 1, 1),
    (4, 3, 5, 2, 5),
    (3, 2, 63, 3, 0),
    (2, 3, 65, 65, 65),
]
BATCH_SIZES = [[1], [3], [1, 1, 1], [3, 3, 2, 1], [4, 2, 2, 1, 1]]

# The fixtures of conftest.py (default dtype, NaN in torch.empty) are the same for every example.
properties = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=["folded", "dense"])
def form(request, monkeypatch):
    """Both forms at all sizes, whatever the cost rule says of them."""
    monkeypatch.setattr(
        "spectral_triton.recurrence.recurrence.folds", lambda *_: request.param == "folded"
    )
    return request.param


def make(n, k_u, k_v, nonlinearity="tanh", *, time=3, batch=2, dtype=None):
    """x, h0, left, singular values, right, bias."""
    options = {"dtype": dtype or torch.get_default_dtype()}
    tensors = [
        torch.randn(time, batch, n, **options),
        torch.randn(batch, n, **options),
        torch.randn(k_u, n, **options),
        0.5 + torch.rand(n, **options),
        torch.randn(k_v, n, **options),
    ]
    if nonlinearity == "modrelu":
        tensors.append(torch.randn(n, **options) / 2)
    return tensors


def ours(nonlinearity, *, reverse=False, batch_sizes=None, triangular=False, slope=0.3):
    """States and last states from x, h0, left, singular values, right, bias."""

    def f(x, h0, left, sigma, right, bias=None):
        factors = HouseholderSVD(left, sigma, right, triangular=triangular)
        sizes = None if batch_sizes is None else torch.tensor(batch_sizes)
        results = run(x, h0, factors, nonlinearity, slope, bias, reverse, sizes)
        return tuple(result.to(x.dtype) for result in results)

    return f


def oracle(nonlinearity, *, reverse=False, batch_sizes=None, triangular=False, slope=0.3):
    def f(x, h0, left, sigma, right, bias=None):
        x, h0, left, sigma, right = (a.double() for a in (x, h0, left, sigma, right))
        left, right = (left.triu(), right.triu()) if triangular else (left, right)
        weight = reference.svd_to_dense(left, sigma, right)
        bias = None if bias is None else bias.double()
        options = {"nonlinearity": nonlinearity, "slope": slope, "bias": bias, "reverse": reverse}
        if batch_sizes is None:
            y = reference.recurrence(x, h0, weight, **options)
            return y, (y[0 if reverse else -1] if len(y) else h0)
        y = reference.packed_recurrence(x, h0, batch_sizes, weight, **options)
        ends = [sum(size > b for size in batch_sizes) - 1 for b in range(len(h0))]
        steps = [0 if reverse else end for end in ends]
        rows = [sum(batch_sizes[:step]) + b for b, step in enumerate(steps)]
        return y, y[rows]

    return f


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=atol)


def gradients(f, *inputs, of=(True, True)):
    """Outputs, and gradients of a fixed random functional of some of them."""
    inputs = [a.detach().requires_grad_() for a in inputs]
    outputs = f(*inputs)
    generator = torch.Generator().manual_seed(3)
    loss = sum(0 * a.sum() for a in inputs)
    for chosen, y in zip(of, outputs, strict=True):
        cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
        loss = loss + (y * cotangent).sum() if chosen else loss
    return *(y.detach() for y in outputs), *torch.autograd.grad(loss, inputs)


def assert_same(f, expected, *inputs, of=(True, True), atol=1e-12):
    pairs = zip(gradients(f, *inputs, of=of), gradients(expected, *inputs, of=of), strict=True)
    for actual, wanted in pairs:
        close(actual, wanted, atol)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_value_and_gradients(size, nonlinearity, reverse, form):
    time, batch, n, k_u, k_v = size
    inputs = make(n, k_u, k_v, nonlinearity, time=time, batch=batch)
    options = {"reverse": reverse, "triangular": bool(k_u)}
    assert_same(ours(nonlinearity, **options), oracle(nonlinearity, **options), *inputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("batch_sizes", BATCH_SIZES, ids=str)
def test_packed_value_and_gradients(batch_sizes, nonlinearity, reverse, form):
    inputs = make(4, 3, 2, nonlinearity, time=1, batch=batch_sizes[0])
    inputs[0] = torch.randn(sum(batch_sizes), 4)
    options = {"reverse": reverse, "batch_sizes": batch_sizes}
    assert_same(ours(nonlinearity, **options), oracle(nonlinearity, **options), *inputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch_sizes", [None, [3, 3, 2, 1]], ids=str)
@pytest.mark.parametrize("of", [(True, False), (False, True)], ids=["output", "last"])
def test_gradient_of_one_output_alone(of, batch_sizes, reverse, form):
    inputs = make(4, 3, 2, time=3, batch=3)
    inputs[0] = inputs[0] if batch_sizes is None else torch.randn(sum(batch_sizes), 4)
    options = {"reverse": reverse, "batch_sizes": batch_sizes}
    assert_same(ours("tanh", **options), oracle("tanh", **options), *inputs, of=of)


def test_cost_rule_decides_the_form(monkeypatch):
    seen = []
    original = Recurrence.apply
    monkeypatch.setattr(Recurrence, "apply", lambda *args: seen.append(args[6]) or original(*args))
    for n, k in ((70, 1), (70, 2)):
        inputs = make(n, k, k)
        assert_same(ours("tanh"), oracle("tanh"), *inputs)
    assert seen[0].shape == (70, 2)
    assert seen[1] is None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch_sizes", [None, [2, 2, 1]], ids=str)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_gradcheck(nonlinearity, batch_sizes, reverse, form):
    inputs = make(3, 2, 1, nonlinearity, time=2, batch=2)
    inputs[0] = inputs[0] if batch_sizes is None else torch.randn(sum(batch_sizes), 3)
    inputs = [a.requires_grad_() for a in inputs]
    f = ours(nonlinearity, reverse=reverse, batch_sizes=batch_sizes)
    assert gradcheck(f, inputs, fast_mode=nonlinearity != "tanh")
    assert gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch_sizes", [None, [3, 2, 2]], ids=str)
@pytest.mark.parametrize("of", [(True, False), (False, True), (True, True)])
def test_second_derivatives_equal_those_of_the_reference(of, batch_sizes, reverse, form):
    inputs = make(4, 2, 3, "modrelu", time=3, batch=3)
    inputs[0] = inputs[0] if batch_sizes is None else torch.randn(sum(batch_sizes), 4)
    options = {"reverse": reverse, "batch_sizes": batch_sizes}

    def penalty(f):
        def of_inputs(*inputs):
            outputs = [y for y, chosen in zip(f(*inputs), of, strict=True) if chosen]
            loss = sum(y.pow(3).sum() for y in outputs)
            grads = torch.autograd.grad(loss, inputs, create_graph=True)
            return (sum(g.square().sum() for g in grads),)

        return of_inputs

    f, expected = ours("modrelu", **options), oracle("modrelu", **options)
    assert_same(penalty(f), penalty(expected), *inputs, of=(True,), atol=1e-9)


def test_third_derivatives(form):
    x, h0, left, sigma, right = make(2, 1, 1, time=2, batch=1)

    def third(f):
        sigma_ = sigma.clone().requires_grad_()
        y = f(x, h0, left, sigma_, right)[0].sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y, sigma_, create_graph=True)
            y = y.sum()
        return y.detach()

    close(third(ours("tanh")), third(oracle("tanh")))


def test_no_initial_state_is_zero(form):
    x, _, *factors = make(4, 2, 2)
    factors = HouseholderSVD(*factors)
    for reverse in (False, True):
        y = spectral_recurrence(x, None, factors, reverse=reverse)
        assert torch.equal(y, spectral_recurrence(x, torch.zeros(2, 4), factors, reverse=reverse))
    sizes = torch.tensor([2, 1])
    y, last = run(x[0:2].flatten(0, 1)[:3], None, factors, "relu", 0.01, None, False, sizes)
    assert y.shape == (3, 4)
    assert torch.equal(last, y[[2, 1]])


@properties
@given(
    time=st.integers(0, 6),
    at=st.integers(0, 6),
    reverse=st.booleans(),
    folded=st.booleans(),
    nonlinearity=st.sampled_from(NONLINEARITIES),
    seed=st.integers(0, 2**31),
)
def test_splitting_the_sequence_changes_nothing(time, at, reverse, folded, nonlinearity, seed):
    torch.manual_seed(seed)
    n, at = (70 if folded else 5), min(at, time)
    x, h0, left, sigma, right, *bias = make(n, 1, 1, nonlinearity, time=time)
    options = {"nonlinearity": nonlinearity, "reverse": reverse, "bias": bias[0] if bias else None}
    factors = HouseholderSVD(left, sigma, right)
    whole = spectral_recurrence(x, h0, factors, **options)
    first, second = (x[at:], x[:at]) if reverse else (x[:at], x[at:])
    begun = spectral_recurrence(first, h0, factors, **options)
    middle = begun[0 if reverse else -1] if len(begun) else h0
    rest = spectral_recurrence(second, middle, factors, **options)
    assert torch.equal(torch.cat((rest, begun) if reverse else (begun, rest)), whole)


def test_strides_do_not_matter_and_inputs_stay(form):
    x, h0, left, sigma, right = make(4, 2, 3, time=5, batch=3)
    odd = [
        (x.transpose(0, 1).contiguous().transpose(0, 1), h0.mT.contiguous().mT),
        (x[:, :1].expand(5, 3, 4), h0[:1].expand(3, 4)),
        (torch.randn(5, 3, 8)[..., ::2], torch.randn(6, 4)[::2]),
    ]
    for x, h0 in odd:
        inputs = (x, h0, left.mT.contiguous().mT, sigma[:1].expand(4), right)
        before = [a.clone() for a in inputs]
        assert_same(ours("relu"), oracle("relu"), *inputs)
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
        y = spectral_recurrence(x, h0, HouseholderSVD(*inputs[2:]))
        assert y.is_contiguous()


def test_zero_reflectors_have_no_gradient(form):
    x, h0, left, sigma, right = make(5, 3, 3)
    left[1], right[0], right[2] = 0, 0, 0
    grads = gradients(ours("tanh"), x, h0, left, sigma, right)
    expected = gradients(oracle("tanh"), x, h0, left[[0, 2]], sigma, right[[1]])
    for i in (0, 1, 2, 3, 5):
        close(grads[i], expected[i])
    close(grads[4][[0, 2]], expected[4])
    close(grads[6][[1]], expected[6])
    assert (grads[4][1] == 0).all()
    assert (grads[6][[0, 2]] == 0).all()


def test_triangular_factors_ignore_what_lies_before_the_diagonal(form):
    inputs = make(5, 4, 3)
    grads = gradients(ours("tanh", triangular=True), *inputs)
    for grad in (grads[4], grads[6]):
        assert torch.equal(grad, grad.triu())
    inputs[2] = inputs[2] + torch.randn(4, 5).tril(-1) * 1e6
    again = gradients(ours("tanh", triangular=True), *inputs)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_length_of_reflectors_does_not_matter(scale, form):
    inputs = make(4, 2, 2, dtype=torch.float32)
    expected = gradients(oracle("tanh"), *inputs)
    inputs[2], inputs[4] = inputs[2] * scale, inputs[4] * scale
    actual = gradients(ours("tanh"), *inputs)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        a = a.double() * (scale if i in (4, 6) else 1)
        torch.testing.assert_close(a, e.double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("nonlinearity", ["tanh", "leaky_relu"])
def test_float32_errs_no_more_than_plain_pytorch(nonlinearity, form):
    inputs = make(20, 20, 20, time=20, batch=4, dtype=torch.float32)
    inputs[3] = inputs[3] / inputs[3].max()

    def plain(x, h0, left, sigma, right):
        weight = reference.svd_to_dense(left, sigma, right)
        y = reference.recurrence(x, h0, weight, nonlinearity=nonlinearity, slope=0.3)
        return y, y[-1]

    exact = gradients(oracle(nonlinearity), *(a.double() for a in inputs))
    results = gradients(ours(nonlinearity), *inputs), gradients(plain, *inputs), exact
    for a, b, e in zip(*results, strict=True):
        assert a.dtype == torch.float32
        ulp = e.abs().max().item() * torch.finfo(torch.float32).eps
        assert (a - e).abs().max().item() <= 2 * (b - e).abs().max().item() + 4 * ulp


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype, form):
    x, h0, left, sigma, right = (a.to(dtype) for a in make(8, 4, 4, time=20))
    sigma = torch.ones_like(sigma)
    eps = torch.finfo(dtype).eps
    y, last = ours("tanh")(x, h0, left, sigma, right)
    assert y.dtype == last.dtype == dtype
    expected = oracle("tanh")(x, h0, left, sigma, right)[0]
    torch.testing.assert_close(y.double(), expected, rtol=eps / 2, atol=1e-5)
    assert torch.equal(last, y[-1])
    inputs = (x, h0, left, sigma, right)
    pairs = zip(gradients(ours("tanh"), *inputs), gradients(oracle("tanh"), *inputs), strict=True)
    for actual, wanted in pairs:
        assert actual.dtype == dtype
        bound = 2 * eps * wanted.double().abs().max().item()
        torch.testing.assert_close(actual.double(), wanted.double(), rtol=eps, atol=bound)


def test_autocast_changes_nothing(form):
    inputs = [a.requires_grad_() for a in make(8, 4, 4, dtype=torch.float32)]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y, last = ours("tanh")(*inputs)
            assert y.dtype == last.dtype == torch.float32
        results.append((y, last, *torch.autograd.grad(y.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_two_runs_are_bit_equal(form):
    inputs = make(40, 8, 8, time=30, batch=5, dtype=torch.float32)
    first, second = (gradients(ours("tanh"), *inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("batch_sizes", [None, [8] * 100 + [4] * 100], ids=["dense", "packed"])
def test_backward_keeps_the_output_and_the_coefficients_only(batch_sizes):
    time, batch, n, k = 200, 8, 100, 2
    inputs = make(n, k, k, time=time, batch=batch)
    rows = time * batch if batch_sizes is None else sum(batch_sizes)
    inputs[0] = inputs[0] if batch_sizes is None else torch.randn(rows, n)
    inputs = [a.requires_grad_() for a in inputs]
    # The projection of a layer: nothing else keeps it alive.
    x = inputs[0] * 2
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 8
        return tensor

    assert folds(n, 2 * k)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = ours("tanh", batch_sizes=batch_sizes)(x, *inputs[1:])
    assert x.untyped_storage().data_ptr() not in saved
    assert saved.pop(y.untyped_storage().data_ptr()) == rows * n
    # What the docstring states, and the factors themselves.
    assert sum(saved.values()) <= rows * 2 * k + 16 * n * 2 * k + 2 * batch * n


def test_norm_is_kept_over_many_steps(form):
    x = torch.zeros(10_000, 2, 16, dtype=torch.float32)
    h0 = torch.randn(2, 16, dtype=torch.float32)
    left, right = torch.randn(2, 4, 16, dtype=torch.float32)
    factors = HouseholderSVD(left, torch.ones(16, dtype=torch.float32), right)
    y = spectral_recurrence(x, h0, factors, nonlinearity="identity")
    norms = y[-1].double().norm(dim=-1) / h0.double().norm(dim=-1)
    # Half a rounding of one matrix per step, always the same one.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(norms, torch.ones(2), rtol=0, atol=10_000 * eps / 2)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "leaky_relu", "identity", "modrelu"])
def test_gradient_grows_by_at_most_the_largest_singular_value(nonlinearity, form):
    x, h0, left, sigma, right, *bias = make(6, 6, 6, nonlinearity, time=12, batch=1)
    bias = -bias[0].abs() if bias else None
    jacobian = torch.autograd.functional.jacobian(
        lambda h0: ours(nonlinearity)(x, h0, left, sigma, right, bias)[1].flatten(), h0
    )
    assert torch.linalg.matrix_norm(jacobian.squeeze(1), 2) <= sigma.max() ** 12


@pytest.mark.parametrize("folded", [False, True])
def test_compiles_without_a_graph_break(folded):
    inputs = make(70 if folded else 5, 1, 1)

    def f(x, h0, left, sigma, right):
        return (spectral_recurrence(x, h0, HouseholderSVD(left, sigma, right)),)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    assert_same(compiled, lambda *a: oracle("tanh")(*a)[:1], *inputs, of=(True,))


def test_compiled_graph_does_not_grow_with_time():
    counts = []

    def record(module, _):
        counts.append(len(module.graph.nodes))
        return make_boxed_func(module.forward)

    backend = aot_autograd(fw_compiler=record, bw_compiler=record)
    for time in (2, 20):
        torch._dynamo.reset()
        inputs = [a.requires_grad_() for a in make(70, 1, 1, time=time)]

        def f(x, h0, left, sigma, right):
            return spectral_recurrence(x, h0, HouseholderSVD(left, sigma, right))

        torch.compile(f, backend=backend, fullgraph=True, dynamic=False)(*inputs).sum().backward()
    assert len(counts) == 4
    assert counts[:2] == counts[2:]


def _factors(shape=(3, 3), batch=()):
    m, n = shape
    return HouseholderSVD(
        torch.ones(*batch, 1, m), torch.ones(*batch, min(m, n)), torch.ones(*batch, 1, n)
    )


BAD = [
    (TypeError, "x must be a torch.Tensor", {"x": [1.0]}),
    (TypeError, "x .*torch.int64", {"x": torch.ones(2, 2, 3, dtype=torch.int64)}),
    (TypeError, "x .*complex", {"x": torch.ones(2, 2, 3) + 1j}),
    (ValueError, r"x .*n = 3, got \(2, 2, 4\)", {"x": torch.ones(2, 2, 4)}),
    (ValueError, r"x .*\(T, B, n\).*\(2, 3\)", {"x": torch.ones(2, 3)}),
    (TypeError, "h0", {"h0": 0.0}),
    (TypeError, "h0 .*int", {"h0": torch.ones(2, 3, dtype=torch.int32)}),
    (ValueError, r"h0 .*\(2, 3\), got \(3,\)", {"h0": torch.ones(3)}),
    (ValueError, r"h0 .*got \(1, 3\)", {"h0": torch.ones(1, 3)}),
    (ValueError, r"factors .*square.*\(3, 4\)|x .*n = 4", {"factors": _factors((3, 4))}),
    (ValueError, r"factors .*square.*\(4, 3\)", {"factors": _factors((4, 3))}),
    (ValueError, r"factors .*\(2, 3, 3\)", {"factors": _factors(batch=(2,))}),
    (ValueError, "nonlinearity .*'tanh'.*'sin'", {"nonlinearity": "sin"}),
    (ValueError, "negative_slope .*-0.1", {"negative_slope": -0.1}),
    (ValueError, "negative_slope .*nan", {"negative_slope": float("nan")}),
    (TypeError, "negative_slope", {"negative_slope": "0.1"}),
    (ValueError, "bias belongs to modrelu.*'tanh'", {"bias": torch.ones(3)}),
    (ValueError, "bias belongs to modrelu", {"nonlinearity": "modrelu"}),
    (ValueError, r"bias .*\(3,\), got \(4,\)", {"nonlinearity": "modrelu", "bias": torch.ones(4)}),
    (TypeError, "bias", {"nonlinearity": "modrelu", "bias": torch.ones(3, dtype=torch.int64)}),
]


@pytest.mark.parametrize(("error", "match", "changes"), BAD)
def test_bad_arguments_are_named(error, match, changes):
    arguments = {"x": torch.ones(2, 2, 3), "h0": torch.ones(2, 3), "factors": _factors()}
    arguments |= changes
    x, h0, factors = (arguments.pop(name) for name in ("x", "h0", "factors"))
    with pytest.raises(error, match=match):
        spectral_recurrence(x, h0, factors, **arguments)
