"""The oracle itself, against definitions from elsewhere: LAPACK, torch.nn, and by hand."""

import ast
import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from spectral_triton import reference


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def test_imports_nothing_of_the_library():
    tree = ast.parse(inspect.getsource(reference))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert names == {"__future__", "collections.abc", "typing", "torch"}


def test_reflector_by_hand():
    h = reference.reflector(torch.tensor([3.0, 4.0]))
    close(h, torch.tensor([[7.0, -24.0], [-24.0, -7.0]]) / 25)
    assert torch.equal(reference.reflector(torch.zeros(3)), torch.eye(3))
    for scale in (1e-200, 1e200, -1.0):
        close(reference.reflector(torch.tensor([3.0, 4.0]) * scale), h)


def test_zero_reflector_has_zero_gradient():
    v = torch.zeros(2, 3, requires_grad=True)
    reference.householder_product(v).pow(3).sum().backward()
    assert torch.equal(v.grad, torch.zeros(2, 3))


@pytest.mark.parametrize(("k", "n"), [(0, 2), (1, 1), (2, 2), (3, 5)])
def test_product_is_that_of_lapack(k, n):
    q, tau = torch.geqrf(torch.randn(2, n, k))
    v = q.tril(-1) + torch.eye(n, k)
    expected = torch.linalg.householder_product(v, tau)
    # LAPACK leaves out a reflector by tau = 0, here by a row of zeros.
    rows = v.mT * (tau != 0).unsqueeze(-1)
    close(reference.householder_product(rows, k), expected)
    x = torch.randn(2, 4, n)
    close(reference.apply_reflectors(x, rows).mT, torch.ormqr(q, tau, x.mT))
    close(
        reference.apply_reflectors(x, rows, transpose=True).mT,
        torch.ormqr(q, tau, x.mT, transpose=True),
    )


def test_order_of_the_reflectors():
    v = torch.randn(3, 4)
    h = [reference.reflector(row) for row in v]
    close(reference.householder_product(v), h[0] @ h[1] @ h[2])
    x = torch.randn(4)
    close(reference.apply_reflectors(x, v), h[0] @ h[1] @ h[2] @ x)
    close(reference.apply_reflectors(x, v, transpose=True), h[2] @ h[1] @ h[0] @ x)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (2, 4), (4, 2)])
def test_svd_to_dense(m, n):
    p = min(m, n)
    sigma = torch.rand(p) + 0.5
    signs = torch.tensor([1.0, -1.0, 1.0])[:p]
    left, right = torch.randn(p, m), torch.randn(p, n)
    for s in (None, signs):
        w = reference.svd_to_dense(left, sigma, right, s)
        assert w.shape == (m, n)
        close(torch.linalg.svdvals(w), sigma.sort(descending=True).values)
        u, v = reference.householder_product(left), reference.householder_product(right)
        core = u.mT @ w @ v
        expected = torch.zeros(m, n)
        expected[range(p), range(p)] = sigma if s is None else sigma * s
        close(core, expected)


def test_activations_by_hand():
    z = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    bias = torch.tensor([-1.0, -1.0, 1.0, 0.25, 0.25])
    expected = {
        "tanh": [-0.9640275800758169, -0.46211715726000975, 0, 0.46211715726000975],
        "relu": [0, 0, 0, 0.5, 2],
        "leaky_relu": [-0.5, -0.125, 0, 0.5, 2],
        "modrelu": [-1, 0, 0, 0.75, 2.25],
        "identity": [-2, -0.5, 0, 0.5, 2],
    }
    for name, values in expected.items():
        actual = reference.activation(z, name, 0.25, bias)[: len(values)]
        close(actual, torch.tensor(values, dtype=torch.float64))
    with pytest.raises(AssertionError, match="sin"):
        reference.activation(z, "sin", 0.0)


def torch_rnn(nonlinearity, reverse):
    """nn.RNN with the input passed through, forward or backward in time."""
    rnn = nn.RNN(3, 3, nonlinearity=nonlinearity, bias=False, bidirectional=True)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.eye(3))
        rnn.weight_ih_l0_reverse.copy_(torch.eye(3))
    weight = rnn.weight_hh_l0_reverse if reverse else rnn.weight_hh_l0
    half = slice(3, 6) if reverse else slice(0, 3)

    def run(x, h0):
        output, _ = rnn(x, torch.stack((h0, h0)))
        return output.data[..., half] if not isinstance(output, torch.Tensor) else output[..., half]

    return run, weight.detach()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_recurrence_is_that_of_torch(nonlinearity, reverse):
    run, weight = torch_rnn(nonlinearity, reverse)
    options = {"nonlinearity": nonlinearity, "reverse": reverse}
    x, h0 = torch.randn(4, 2, 3), torch.randn(2, 3)
    close(reference.recurrence(x, h0, weight, **options), run(x, h0).detach())
    assert reference.recurrence(x[:0], h0, weight, **options).shape == (0, 2, 3)

    packed = pack_sequence([torch.randn(length, 3) for length in (4, 2, 1)])
    h0 = torch.randn(3, 3)
    sizes = packed.batch_sizes.tolist()
    actual = reference.packed_recurrence(packed.data, h0, sizes, weight, **options)
    close(actual, run(packed, h0).detach())


def test_zero_reflector_has_no_derivative_of_any_order():
    v = torch.randn(2, 4)
    v[0] = 0
    hessian = torch.func.hessian(lambda v: (reference.householder_product(v) ** 3).sum())(v)
    assert (hessian[0] == 0).all()
    assert (hessian[:, :, 0] == 0).all()
    assert (hessian[1, :, 1] != 0).any()
