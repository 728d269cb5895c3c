"""The time loop on given weights, without autograd: outputs, gradients, packed rows."""

import pytest
import torch

from spectral_triton import reference
from spectral_triton.recurrence import NONLINEARITIES
from spectral_triton.recurrence_loop import loop_bwd, loop_bwd_plain, loop_fwd, previous_states

# None: three steps of three sequences.
BATCH_SIZES = [None, [3, 3, 3], [3, 2, 2, 1], [1, 1], [2, 1]]
every_case = pytest.mark.parametrize(
    ("batch_sizes", "folded", "reverse"),
    [(sizes, folded, reverse) for sizes in BATCH_SIZES for folded in (0, 1) for reverse in (0, 1)],
)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def weights(n, folded, r=2):
    """scale, P, Q as the loop takes them, and W."""
    if not folded:
        w = torch.randn(n, n) / 2
        return (None, w, None), w
    scale, p, q = torch.randn(n), torch.randn(n, r) / 2, torch.randn(n, r) / 2
    return (scale, p, q), torch.diag(scale) - p @ q.mT


def inputs(batch_sizes, n):
    if batch_sizes is None:
        return torch.randn(3, 3, n), torch.randn(3, n)
    return torch.randn(sum(batch_sizes), n), torch.randn(batch_sizes[0], n)


def oracle(x, h0, w, batch_sizes, nonlinearity, bias, reverse):
    options = {"nonlinearity": nonlinearity, "slope": 0.3, "bias": bias, "reverse": bool(reverse)}
    if batch_sizes is None:
        y = reference.recurrence(x, h0, w, **options)
        return y, y[0 if reverse else -1]
    y = reference.packed_recurrence(x, h0, batch_sizes, w, **options)
    rows = []
    for b in range(len(h0)):
        step = 0 if reverse else sum(size > b for size in batch_sizes) - 1
        rows.append(sum(batch_sizes[:step]) + b)
    return y, y[rows]


@every_case
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_forward_and_backward(nonlinearity, batch_sizes, folded, reverse):
    n = 4
    weight, w = weights(n, folded)
    x, h0 = (a.requires_grad_() for a in inputs(batch_sizes, n))
    bias = torch.randn(n) / 2 if nonlinearity == "modrelu" else None
    expected, last = oracle(x, h0, w, batch_sizes, nonlinearity, bias, reverse)
    options = (batch_sizes, nonlinearity, 0.3, bool(reverse))
    with torch.no_grad():
        y, coefficients = loop_fwd(x, h0, *weight, bias, *options)
    close(y, expected.detach())
    before = previous_states(y, h0.detach(), batch_sizes, bool(reverse))
    rows = torch.cat([torch.arange(len(y.flatten(0, -2)))[rows] for _, rows in before])
    assert torch.equal(rows.sort().values, torch.arange(len(y.flatten(0, -2))))
    scale, p, q = weight
    for h, at in before:
        if folded:
            close(coefficients.flatten(0, -2)[at], h @ q)
        z = h @ w.mT + x.detach().flatten(0, -2)[at]
        close(y.flatten(0, -2)[at], reference.activation(z, nonlinearity, 0.3, bias))
    assert folded or coefficients.numel() == 0

    grad_y, grad_last = torch.randn_like(expected), torch.randn_like(last)
    for cotangents in ((grad_y, grad_last), (grad_y, None), (None, grad_last)):
        chosen = [
            (o, g) for o, g in zip((expected, last), cotangents, strict=True) if g is not None
        ]
        outputs, given = zip(*chosen, strict=True)
        wanted = torch.autograd.grad(outputs, (x, h0), given, retain_graph=True)
        for backward in (loop_bwd, loop_bwd_plain):
            with torch.no_grad():
                grad_z, grad_h0, back = backward(*cotangents, y, h0, scale, p, q, *options)
            close(grad_z, wanted[0])
            close(grad_h0, wanted[1])
            assert back.shape == coefficients.shape
            if folded:
                close(back, grad_z @ p)


@pytest.mark.parametrize("folded", [0, 1])
def test_no_steps_and_no_sequences(folded):
    weight, _ = weights(4, folded)
    last = torch.randn(2, 4)
    for shape, rows in (((0, 2, 4), 2), ((3, 0, 4), 0)):
        x, h0 = torch.randn(shape), torch.randn(rows, 4)
        y, coefficients = loop_fwd(x, h0, *weight, None, None, "tanh", 0.01, False)
        assert y.shape == shape
        assert coefficients.shape == (*shape[:-1], 2 * folded)
        assert previous_states(y, h0, None, False) == [] or rows == 0
        for backward in (loop_bwd, loop_bwd_plain):
            args = (y, h0, *weight, None, "tanh", 0.01, False)
            grad_z, grad_h0, _ = backward(None, last[:rows], *args)
            assert grad_z.shape == shape
            assert torch.equal(grad_h0, last[:rows])


def test_given_tensors_are_left_alone():
    weight, _ = weights(4, 1)
    x, h0 = torch.randn(3, 2, 4), torch.randn(2, 4)
    grad_y, grad_last = torch.randn(3, 2, 4), torch.randn(2, 4)
    copies = [a.clone() for a in (x, h0, *weight, grad_y, grad_last)]
    y, _ = loop_fwd(x, h0, *weight, None, None, "leaky_relu", 0.3, False)
    kept = y.clone()
    loop_bwd(grad_y, grad_last, y, h0, *weight, None, "leaky_relu", 0.3, False)
    given = (x, h0, *weight, grad_y, grad_last)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))
    assert torch.equal(y, kept)
