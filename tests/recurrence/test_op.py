"""The registered ops and their Function: accepted by torch, sparing, the same on both backends."""

import pytest
import torch

from spectral_triton import use_backend
from spectral_triton.recurrence.arguments import DIFFERENTIABLE, Arguments
from spectral_triton.recurrence.gradient_sums import GradientSums
from spectral_triton.recurrence.op import Recurrence, recurrence, recurrence_bwd, recurrence_fwd


def make(form, batch_sizes=None, nonlinearity="tanh", time=3, batch=2, n=5, r=3, features=None):
    """x, weight_ih, bias_ih, h0, scale, p, q, bias, batch_sizes and the options."""
    projection = (None, None)
    if features is not None:
        projection = torch.randn(n, features), torch.randn(n)
    shape = (time, batch) if batch_sizes is None else (sum(batch_sizes),)
    h0 = torch.randn(batch if batch_sizes is None else batch_sizes[0], n)
    folded = (torch.rand(n), torch.randn(n, r) / 3, torch.randn(n, r) / 3)
    weight = folded if form == "folded" else (None, torch.randn(n, n) / 3, None)
    bias = torch.randn(n) / 2 if nonlinearity == "modrelu" else None
    sizes = None if batch_sizes is None else torch.tensor(batch_sizes)
    x = torch.randn(*shape, n if features is None else features)
    return [x, *projection, h0, *weight, bias, sizes, nonlinearity, 0.3, False]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("form", ["folded", "dense"])
@pytest.mark.parametrize(("batch_sizes", "features"), [(None, 2), ([2, 2, 1], None)], ids=str)
def test_opcheck(batch_sizes, features, form, backend):
    arguments = make(form, batch_sizes, features=features)
    needs = [a is not None for a in arguments[: len(DIFFERENTIABLE)]]
    with use_backend(backend):
        torch.library.opcheck(recurrence_fwd, tuple(arguments))
        y, kept = recurrence_fwd(*arguments)
        grads = torch.randn_like(y), torch.randn_like(arguments[3])
        for pair in (grads, (None, grads[1]), (grads[0], None)):
            torch.library.opcheck(recurrence_bwd, (needs, *pair, y, kept, *arguments))


def test_opcheck_of_an_input_in_another_order_of_memory():
    arguments = make("folded", features=2)
    arguments[0] = torch.randn(2, 3, 2).permute(1, 2, 0)
    y, kept = recurrence_fwd(*arguments)
    needs = [a is not None for a in arguments[: len(DIFFERENTIABLE)]]
    grads = torch.randn_like(y), torch.randn_like(arguments[3])
    torch.library.opcheck(recurrence_bwd, (needs, *grads, y, kept, *arguments))


@pytest.mark.parametrize("form", ["folded", "dense"])
@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_opcheck_without_steps_or_sequences(shape, form):
    arguments = make(form, time=shape[0], batch=shape[1], features=2)
    torch.library.opcheck(recurrence_fwd, tuple(arguments))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["folded", "dense"])
@pytest.mark.parametrize("batch_sizes", [None, [3, 2, 1]], ids=str)
@pytest.mark.parametrize(
    ("nonlinearity", "features"),
    [("tanh", 2), ("relu", None), ("leaky_relu", 2), ("identity", None), ("modrelu", 2)],
)
def test_kernels_agree_with_pytorch(nonlinearity, features, batch_sizes, form, reverse):
    arguments = make(form, batch_sizes, nonlinearity, features=features)
    arguments[-1] = reverse
    leaves = [a.requires_grad_() for a in arguments[: len(DIFFERENTIABLE)] if a is not None]
    results = []
    for backend in ("torch", "triton"):
        with use_backend(backend):
            y, last, _ = Recurrence.apply(*arguments)
            loss = y.pow(3).sum() + last.pow(2).sum()
            results.append((y, last, *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("form", "needed"),
    [("folded", name) for name in DIFFERENTIABLE]
    + [("dense", name) for name in DIFFERENTIABLE if name not in ("scale", "q")],
)
def test_only_needed_gradients_are_made(form, needed, monkeypatch):
    arguments = make(form, nonlinearity="modrelu", features=2)
    at, count = DIFFERENTIABLE.index(needed), len(DIFFERENTIABLE)
    full = [a.clone().requires_grad_() if a is not None else None for a in arguments[:count]]
    y, last, _ = Recurrence.apply(*full, *arguments[count:])
    (expected,) = torch.autograd.grad(y.pow(3).sum() + last.sum(), full[at])
    arguments[at].requires_grad_()
    seen = []
    original = GradientSums.gradients

    def watched(*args):
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(GradientSums, "gradients", watched)
    y, last, _ = Recurrence.apply(*arguments)
    (y.pow(3).sum() + last.sum()).backward()
    assert torch.equal(arguments[at].grad, expected)
    assert [g is not None for g in seen[0]] == [name == needed for name in DIFFERENTIABLE]


class _Swallow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_no_gradient_of_any_output_is_no_gradient():
    arguments = make("folded")
    leaves = [a.requires_grad_() for a in arguments[:7] if a is not None]
    y, _, coefficients = Recurrence.apply(*arguments)
    assert not coefficients.requires_grad
    grads = torch.autograd.grad(_Swallow.apply(y).sum(), leaves, allow_unused=True)
    assert grads == (None,) * 5


@pytest.mark.parametrize("features", [None, 2])
def test_output_is_saved_and_input_only_to_differentiate_its_weight(features):
    x, *rest = make("folded", features=features)
    y, *_ = Recurrence.apply(x.requires_grad_(), *rest)
    pointers = [a.data_ptr() for a in y.grad_fn.saved_tensors if a is not None]
    assert y.data_ptr() in pointers
    assert (x.data_ptr() in pointers) == (features is not None)


@pytest.mark.parametrize("reverse", [False, True])
def test_last_states_may_be_written_to(reverse):
    y, last = recurrence(
        Arguments(
            x=torch.ones(2, 1, 3),
            weight_ih=None,
            bias_ih=None,
            h0=torch.zeros(1, 3),
            scale=None,
            p=torch.eye(3),
            q=None,
            bias=None,
            batch_sizes=None,
            nonlinearity="identity",
            slope=0.0,
            reverse=reverse,
        )
    )
    last.zero_()
    assert (y != 0).all()
