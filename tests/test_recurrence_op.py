"""The registered ops and their Function: accepted by torch, sparing, the same on both backends."""

import pytest
import torch

from spectral_triton import recurrence_op, use_backend
from spectral_triton.recurrence_op import Recurrence, recurrence_bwd, recurrence_fwd

NAMES = ("x", "h0", "scale", "p", "q", "bias")


def make(form, batch_sizes=None, nonlinearity="tanh", time=3, batch=2, n=5, r=3):
    """x, h0, scale, p, q, bias, batch_sizes and the options."""
    shape = (time, batch, n) if batch_sizes is None else (sum(batch_sizes), n)
    h0 = torch.randn(batch if batch_sizes is None else batch_sizes[0], n)
    folded = (torch.rand(n), torch.randn(n, r) / 3, torch.randn(n, r) / 3)
    weight = folded if form == "folded" else (None, torch.randn(n, n) / 3, None)
    bias = torch.randn(n) / 2 if nonlinearity == "modrelu" else None
    sizes = None if batch_sizes is None else torch.tensor(batch_sizes)
    return [torch.randn(shape), h0, *weight, bias, sizes, nonlinearity, 0.3, False]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("form", ["folded", "dense"])
@pytest.mark.parametrize("batch_sizes", [None, [2, 2, 1]], ids=str)
def test_opcheck(batch_sizes, form, backend):
    x, h0, scale, p, q, bias, sizes, *options = make(form, batch_sizes)
    arguments = (x, h0, scale, p, q, bias, sizes, *options)
    with use_backend(backend):
        torch.library.opcheck(recurrence_fwd, arguments)
        y, _ = recurrence_fwd(*arguments)
        grads = torch.randn_like(y), torch.randn_like(h0)
        for pair in (grads, (None, grads[1]), (grads[0], None)):
            torch.library.opcheck(recurrence_bwd, (*pair, y, h0, scale, p, q, sizes, *options))


@pytest.mark.parametrize("form", ["folded", "dense"])
@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_opcheck_without_steps_or_sequences(shape, form):
    arguments = make(form, time=shape[0], batch=shape[1])
    torch.library.opcheck(recurrence_fwd, arguments)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["folded", "dense"])
@pytest.mark.parametrize("batch_sizes", [None, [3, 2, 1]], ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "leaky_relu", "identity", "modrelu"])
def test_kernels_agree_with_pytorch(nonlinearity, batch_sizes, form, reverse):
    arguments = make(form, batch_sizes, nonlinearity)
    arguments[-1] = reverse
    leaves = [a.requires_grad_() for a in arguments[:6] if a is not None]
    results = []
    for backend in ("torch", "triton"):
        with use_backend(backend):
            y, last, _ = Recurrence.apply(*arguments)
            loss = y.pow(3).sum() + last.pow(2).sum()
            results.append((y, last, *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("form", "needed"),
    [("folded", name) for name in NAMES] + [("dense", name) for name in ("x", "h0", "p", "bias")],
)
def test_only_needed_gradients_are_made(form, needed, monkeypatch):
    arguments = make(form, nonlinearity="modrelu")
    at = NAMES.index(needed)
    full = [a.clone().requires_grad_() if a is not None else None for a in arguments[:6]]
    y, last, _ = Recurrence.apply(*full, *arguments[6:])
    (expected,) = torch.autograd.grad(y.pow(3).sum() + last.sum(), full[at])
    arguments[at].requires_grad_()
    seen = []
    original = recurrence_op._gradients

    def watched(*args):
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(recurrence_op, "_gradients", watched)
    y, last, _ = Recurrence.apply(*arguments)
    (y.pow(3).sum() + last.sum()).backward()
    assert torch.equal(arguments[at].grad, expected)
    assert [g is not None for g in seen[0]] == [name == needed for name in NAMES]


class _Swallow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_no_gradient_of_any_output_is_no_gradient():
    arguments = make("folded")
    leaves = [a.requires_grad_() for a in arguments[:5]]
    y, _, coefficients = Recurrence.apply(*arguments)
    assert not coefficients.requires_grad
    grads = torch.autograd.grad(_Swallow.apply(y).sum(), leaves, allow_unused=True)
    assert grads == (None,) * 5


def test_saved_output_is_the_output_and_input_is_not_saved():
    x, *rest = make("folded")
    y, *_ = Recurrence.apply(x.requires_grad_(), *rest)
    pointers = [a.data_ptr() for a in y.grad_fn.saved_tensors if a is not None]
    assert y.data_ptr() in pointers
    assert x.data_ptr() not in pointers


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_sum_in_chunks(chunk, monkeypatch):
    monkeypatch.setattr(recurrence_op, "CHUNK", chunk)
    a, b = torch.randn(2, 11, 3).unbind(0)
    torch.testing.assert_close(recurrence_op._sum_of_products(a, b), (a * b).sum(0))
    empty = recurrence_op._sum_of_products(a[:0], b[:0])
    assert torch.equal(empty, torch.zeros(3))
