"""What the kernels of the recurrence are given and give, against plain operations."""

import pytest
import torch

from spectral_triton import use_backend
from spectral_triton.recurrence.arguments import DIFFERENTIABLE, Arguments
from spectral_triton.recurrence.launch import launch_bwd, launch_fwd, serves
from spectral_triton.recurrence.plain import plain_bwd, plain_fwd


def make(form, batch_sizes, reverse=False, n=5, r=3):
    """Arguments, x of three steps of two sequences if these are not packed."""
    x = torch.randn(*((3, 2) if batch_sizes is None else (sum(batch_sizes),)), n)
    h0 = torch.randn(2 if batch_sizes is None else batch_sizes[0], n)
    folded = (torch.rand(n), torch.randn(n, r) / 3, torch.randn(n, r) / 3)
    weight = folded if form == "folded" else (None, torch.randn(n, n) / 3, None)
    sizes = None if batch_sizes is None else torch.tensor(batch_sizes)
    return Arguments(x, None, None, h0, *weight, None, sizes, "tanh", 0.01, reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["folded", "dense"])
@pytest.mark.parametrize("batch_sizes", [None, [2, 2, 1]], ids=str)
def test_launches_equal_plain_operations(batch_sizes, form, reverse):
    a = make(form, batch_sizes, reverse)
    expected, kept = plain_fwd(a)
    with use_backend("triton"):
        assert serves(a)
        found = launch_fwd(a.x, a)
    torch.testing.assert_close(found, (expected, kept), rtol=1e-12, atol=1e-13)

    grad_y, grad_last = torch.randn_like(expected), torch.randn_like(a.h0)
    needs = [name in ("x", "h0") for name in DIFFERENTIABLE]
    for cotangents in ((grad_y, grad_last), (grad_y, None), (None, grad_last)):
        grads = plain_bwd(needs, *cotangents, expected, a)
        with use_backend("triton"):
            found = launch_bwd(*cotangents, expected, a)
        wanted = (grads[DIFFERENTIABLE.index("x")], grads[DIFFERENTIABLE.index("h0")])
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", ["folded", "dense"])
def test_pytorch_serves_what_is_not_forced_on_a_cpu(form):
    assert not serves(make(form, None))
