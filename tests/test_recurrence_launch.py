"""What the kernels of the recurrence are given and give, against plain operations."""

import pytest
import torch

from spectral_triton import use_backend
from spectral_triton.gradient_sums import ARGUMENTS
from spectral_triton.recurrence_launch import launch_bwd, launch_fwd, serves
from spectral_triton.recurrence_plain import plain_bwd, plain_fwd


def make(form, batch_sizes, n=5, r=3):
    """x, h0, scale, p, q, and batch_sizes; x of three steps of two sequences if these are None."""
    x = torch.randn(*((3, 2) if batch_sizes is None else (sum(batch_sizes),)), n)
    h0 = torch.randn(2 if batch_sizes is None else batch_sizes[0], n)
    folded = (torch.rand(n), torch.randn(n, r) / 3, torch.randn(n, r) / 3)
    weight = folded if form == "folded" else (None, torch.randn(n, n) / 3, None)
    return x, h0, *weight, None if batch_sizes is None else torch.tensor(batch_sizes)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["folded", "dense"])
@pytest.mark.parametrize("batch_sizes", [None, [2, 2, 1]], ids=str)
def test_launches_equal_plain_operations(batch_sizes, form, reverse):
    x, h0, *weight, sizes = make(form, batch_sizes)
    options = (sizes, "tanh", 0.01, reverse)
    plain = (x, None, None, h0, *weight, None)
    expected, kept = plain_fwd(*plain, *options)
    with use_backend("triton"):
        assert serves(x, h0, *weight, None)
        found = launch_fwd(x, h0, *weight, None, *options)
    torch.testing.assert_close(found, (expected, kept), rtol=1e-12, atol=1e-13)

    grad_y, grad_last = torch.randn_like(expected), torch.randn_like(h0)
    needs = [name in ("x", "h0") for name in ARGUMENTS]
    for cotangents in ((grad_y, grad_last), (grad_y, None), (None, grad_last)):
        grads = plain_bwd(needs, *cotangents, expected, kept, *plain, *options)
        with use_backend("triton"):
            found = launch_bwd(*cotangents, expected, h0, *weight, *options)
        wanted = (grads[ARGUMENTS.index("x")], grads[ARGUMENTS.index("h0")])
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", ["folded", "dense"])
def test_pytorch_serves_what_is_not_forced_on_a_cpu(form):
    x, h0, *weight, _ = make(form, None)
    assert not serves(x, h0, *weight, None)
