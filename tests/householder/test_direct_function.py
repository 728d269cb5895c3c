"""A Function called directly: what Function.apply gives, in every mode, and defaults it lacks."""

import pytest
import torch

from spectral_triton.householder.direct_function import DirectFunction


class Scaled(DirectFunction):
    """factor x, and x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, factor):
        return factor * x, x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.factor = inputs

    @staticmethod
    def backward(ctx, grad_scaled, grad_x):
        return ctx.factor * grad_scaled + grad_x, None


def f(x):
    scaled, same = Scaled.apply(x, 3)
    return (scaled * same).sum()


def test_value_and_gradients_of_any_order():
    x = torch.randn(4, requires_grad=True)
    (grad,) = torch.autograd.grad(f(x), x, create_graph=True)
    torch.testing.assert_close(grad, 6 * x)
    torch.testing.assert_close(torch.autograd.grad(grad.sum(), x)[0], torch.full((4,), 6.0))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_in_one_graph(backend):
    torch._dynamo.reset()
    x = torch.randn(4, requires_grad=True)
    y = torch.compile(f, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(y, f(x))
    torch.testing.assert_close(torch.autograd.grad(y, x)[0], 6 * x)


def test_transforms():
    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.func.grad(f)(x), 6 * x)
    torch.testing.assert_close(torch.func.vmap(f)(x), 3 * x.square().sum(-1))
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(f))(x[0]), 6 * torch.eye(4))


def test_tensors_that_outlive_a_transform():
    kept = []

    def keeping(x):
        kept.append(2 * x)
        return x.sum()

    x = torch.randn(4)
    torch.func.grad(keeping)(x)
    torch.testing.assert_close(f(kept[0]), f(2 * x))


def test_nothing_is_bound():
    with pytest.raises(TypeError):
        Scaled.apply(torch.ones(2), factor=3)
