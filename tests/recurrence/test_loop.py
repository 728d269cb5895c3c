"""The time loop on given weights, without autograd: outputs, gradients, packed rows."""

import pytest
import torch

from spectral_triton import reference
from spectral_triton.recurrence import loop as recurrence_loop
from spectral_triton.recurrence.arguments import DIFFERENTIABLE, Arguments
from spectral_triton.recurrence.gradient_sums import GradientSums
from spectral_triton.recurrence.loop import loop_bwd, loop_fwd
from spectral_triton.recurrence.nonlinearity import NONLINEARITIES
from spectral_triton.recurrence.plain import plain_bwd, plain_fwd
from spectral_triton.recurrence.steps import Steps

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


@pytest.fixture(params=[1, 4])
def rows_at_once(request, monkeypatch):
    """Chunks of one step and of some; those of all steps are tested with the public functions."""
    monkeypatch.setattr(recurrence_loop, "chunk_rows", lambda *_: request.param)


def projection(with_weight, n, features=3):
    """weight_ih, bias_ih, and what they make of x."""
    if not with_weight:
        return None, None, lambda x: x
    weight, bias = torch.randn(n, features), torch.randn(n) if with_weight == 2 else None
    return weight, bias, lambda x: torch.nn.functional.linear(x, weight, bias)


def backward(name, cotangents, y, kept, a):
    """Gradients by all arguments, by the loop or by plain operations."""
    needs = [getattr(a, argument) is not None for argument in DIFFERENTIABLE]
    if name == "plain":
        return plain_bwd(needs, *cotangents, y, a)
    sums = GradientSums(needs)
    grad_x, grad_h0 = loop_bwd(*cotangents, y, kept, a, sums)
    return sums.gradients(grad_x.view(a.x.shape), grad_h0, a)


@every_case
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("with_weight", [0, 2])
def test_forward_and_backward(
    with_weight, nonlinearity, batch_sizes, folded, reverse, rows_at_once
):
    n, reverse = 4, bool(reverse)
    weight, w = weights(n, folded)
    weight_ih, bias_ih, projected = projection(with_weight, n)
    x, h0 = inputs(batch_sizes, n)
    x = torch.randn(*x.shape[:-1], 3) if with_weight else x
    bias = torch.randn(n) / 2 if nonlinearity == "modrelu" else None
    leaves = [a for a in (x, weight_ih, bias_ih, h0, *weight, bias) if a is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    w = weight[1] if not folded else torch.diag(weight[0]) - weight[1] @ weight[2].mT
    expected, last = oracle(projected(x), h0, w, batch_sizes, nonlinearity, bias, reverse)
    sizes = None if batch_sizes is None else torch.tensor(batch_sizes)
    given = (x, weight_ih, bias_ih, h0, *weight, bias)
    arguments = Arguments(*given, sizes, nonlinearity, 0.3, reverse)
    with torch.no_grad():
        y, kept = loop_fwd(arguments)
        close(y, expected.detach())
        plain_y, plain_kept = plain_fwd(arguments)
        close(plain_y, expected.detach())
        close(plain_kept, kept)
        for h, at in Steps.of(x, sizes, reverse).whole().before(y.flatten(0, -2), h0):
            close(kept.flatten(0, -2)[at], h @ weight[2] if folded else h[:, :0])

        grad_y, grad_last = torch.randn_like(expected), torch.randn_like(last)
    for cotangents in ((grad_y, grad_last), (grad_y, None), (None, grad_last)):
        chosen = [
            (o, g) for o, g in zip((expected, last), cotangents, strict=True) if g is not None
        ]
        outputs, cotangent = zip(*chosen, strict=True)
        wanted = torch.autograd.grad(outputs, leaves, cotangent, retain_graph=True)
        for name in ("loop", "plain"):
            with torch.no_grad():
                grads = backward(name, cotangents, expected.detach(), kept, arguments)
            found = [grad for grad in grads if grad is not None]
            assert len(found) == len(leaves)
            for grad, other in zip(found, wanted, strict=True):
                close(grad, other)


@pytest.mark.parametrize("folded", [0, 1])
@pytest.mark.parametrize("with_weight", [0, 1])
@pytest.mark.parametrize(("shape", "rows"), [((0, 2), 2), ((3, 0), 0)])
def test_no_steps_and_no_sequences(shape, rows, with_weight, folded):
    weight, _ = weights(4, folded)
    weight_ih, _, _ = projection(with_weight, 4)
    x, h0 = torch.randn(*shape, 3 if with_weight else 4), torch.randn(rows, 4)
    given = (x, weight_ih, None, h0, *weight, None)
    arguments = Arguments(*given, None, "tanh", 0.01, False)
    y, kept = loop_fwd(arguments)
    plain_y, plain_kept = plain_fwd(arguments)
    assert y.shape == plain_y.shape == (*shape, 4)
    assert kept.shape == plain_kept.shape == (*shape, 2 * folded)
    last = torch.randn(rows, 4)
    for name in ("loop", "plain"):
        grads = backward(name, (None, last), plain_y, plain_kept, arguments)
        for grad, argument in zip(grads, given, strict=True):
            assert (grad is None) == (argument is None)
            if argument is h0:
                assert torch.equal(grad, last)
            elif grad is not None:
                assert torch.equal(grad, torch.zeros_like(argument))


def test_given_tensors_are_left_alone():
    weight, _ = weights(4, 1)
    x, h0 = torch.randn(3, 2, 4), torch.randn(2, 4)
    grad_y, grad_last = torch.randn(3, 2, 4), torch.randn(2, 4)
    arguments = Arguments(x, None, None, h0, *weight, None, None, "leaky_relu", 0.3, False)
    copies = [a.clone() for a in (x, h0, *weight, grad_y, grad_last)]
    y, kept = loop_fwd(arguments)
    saved = y.clone(), kept.clone()
    backward("loop", (grad_y, grad_last), y, kept, arguments)
    tensors = (x, h0, *weight, grad_y, grad_last)
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
    assert torch.equal(y, saved[0])
    assert torch.equal(kept, saved[1])


@pytest.mark.parametrize("n", [1, 64, 1024, 10**6])
def test_chunks_fit_the_cache_but_are_no_sliver(n):
    rows = recurrence_loop.chunk_rows(n, torch.device("cpu"))
    assert rows >= recurrence_loop.FEWEST_ROWS
    assert rows * n <= max(recurrence_loop.CHUNK, recurrence_loop.FEWEST_ROWS * n)
    assert recurrence_loop.chunk_rows(n, torch.device("meta")) >= rows


def test_nothing_of_the_size_of_the_sequence_is_made_but_the_output():
    n, features, steps, batch = 64, 2, 300, 32
    x, h0 = torch.randn(steps, batch, features), torch.randn(batch, n)
    weight_ih, w = torch.randn(n, features), torch.eye(n)
    with torch.profiler.profile(profile_memory=True) as profile:
        options = (None, "relu", 0.0, False)
        loop_fwd(Arguments(x, weight_ih, None, h0, None, w, None, None, *options))
    events = profile.profiler.kineto_results.events()
    made = [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0]
    output = 8 * steps * batch * n
    assert sorted(made)[-1] == output
    assert sum(made) < 1.5 * output
