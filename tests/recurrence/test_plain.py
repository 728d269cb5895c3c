"""The differentiable recurrence with leading dimensions; its values are tested with the loop."""

import pytest
import torch

from spectral_triton.recurrence.arguments import DIFFERENTIABLE, Arguments
from spectral_triton.recurrence.plain import plain_bwd, plain_fwd

N, R, FEATURES = 4, 2, 3


def make(folded, batch_sizes, size):
    """x to bias and batch_sizes, of ``size`` recurrences."""
    rows = (3, 2) if batch_sizes is None else (sum(batch_sizes),)
    batch = 2 if batch_sizes is None else batch_sizes[0]
    shapes = [(*rows, FEATURES), (N, FEATURES), (N,), (batch, N)]
    shapes += [(N,), (N, R), (N, R)] if folded else [None, (N, N), None]
    tensors = [None if s is None else torch.randn(size, *s) / 2 for s in (*shapes, (N,))]
    return tensors, None if batch_sizes is None else torch.tensor(batch_sizes)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch_sizes", [None, [2, 2, 1]], ids=str)
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "modrelu"])
def test_leading_dimension_is_a_batch_of_recurrences(nonlinearity, folded, batch_sizes, reverse):
    tensors, sizes = make(folded, batch_sizes, 3)
    options = (sizes, nonlinearity, 0.3, reverse)
    arguments = Arguments(*tensors, *options)
    y, kept = plain_fwd(arguments)
    grad_y, grad_last = torch.randn_like(y), torch.randn_like(tensors[3])
    needs = [a is not None for a in tensors]
    grads = plain_bwd(needs, grad_y, grad_last, y, arguments)
    for i in range(3):
        one = Arguments(*(None if a is None else a[i] for a in tensors), *options)
        own_y, own_kept = plain_fwd(one)
        torch.testing.assert_close(y[i], own_y)
        torch.testing.assert_close(kept[i], own_kept)
        own = plain_bwd(needs, grad_y[i], grad_last[i], own_y, one)
        for name, grad, expected in zip(DIFFERENTIABLE, grads, own, strict=True):
            if expected is None:
                assert grad is None, name
            else:
                torch.testing.assert_close(grad[i], expected)


def test_rows_of_h0_where_sequences_of_several_lengths_start():
    sizes = torch.tensor([3, 2, 1])
    options = (None, None, sizes, "tanh", 0.01, True)
    h0 = torch.randn(3, 2, requires_grad=True)
    a = Arguments(torch.randn(6, 2), None, None, h0, None, torch.randn(2, 2), *options)
    y, _ = plain_fwd(a)
    g = torch.randn(6, 2)
    needs = [name == "h0" for name in DIFFERENTIABLE]
    grad = dict(zip(DIFFERENTIABLE, plain_bwd(needs, g, None, y, a), strict=True))["h0"]
    torch.testing.assert_close(grad, torch.autograd.grad(y, h0, g)[0])
