"""The registered ops: kernels and PyTorch agree, and torch accepts them."""

import pytest
import torch

from spectral_triton import apply_reflectors, householder_product, use_backend
from spectral_triton.householder import op as householder_op
from spectral_triton.householder.compact_wy import blocks, unit_rows


@pytest.fixture(autouse=True)
def _on_kernel_device(kernel_device):
    with kernel_device:
        yield


def _value_and_gradients(backend, function, *inputs):
    with use_backend(backend):
        y = function(*inputs)
        return y, *torch.autograd.grad((y**3).sum(), inputs)


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("k", "n"), [(3, 7), (40, 50)])
def test_kernels_agree_with_pytorch(batch, triangular, transpose, k, n):
    v = torch.randn(*batch, k, n, requires_grad=True)
    x = torch.randn(*batch, 3, n, requires_grad=True)

    def apply(x, v):
        return apply_reflectors(x, v, transpose=transpose, triangular=triangular)

    ours = _value_and_gradients("triton", apply, x, v)
    torch.testing.assert_close(ours, _value_and_gradients("torch", apply, x, v))


@pytest.mark.parametrize("triangular", [False, True])
def test_product_prepared_by_kernels(triangular):
    v = torch.randn(40, 50, requires_grad=True)

    def product(v):
        return householder_product(v, triangular=triangular)

    ours = _value_and_gradients("triton", product, v)
    torch.testing.assert_close(ours, _value_and_gradients("torch", product, v))


def test_zero_reflector_through_kernels():
    v = torch.zeros(2, 5, requires_grad=True)
    x = torch.randn(3, 5, requires_grad=True)
    y, grad_x, grad_v = _value_and_gradients("triton", apply_reflectors, x, v)
    assert torch.equal(y, x)
    assert torch.equal(grad_x, 3 * x**2)
    assert torch.equal(grad_v, torch.zeros_like(v))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
def test_opcheck(backend, batch):
    v = blocks(unit_rows(torch.randn(*batch, 6, 7))[0], 3)
    x, grad = torch.randn(2, *batch, 4, 7).unbind(0)
    with use_backend(backend):
        t = householder_op.t_factor(v)
        torch.library.opcheck(householder_op.t_factor, (v,))
        torch.library.opcheck(householder_op.apply_fwd, (x, v, t, True, False))
        torch.library.opcheck(householder_op.apply_bwd, (x, grad, v, t, False, False))
