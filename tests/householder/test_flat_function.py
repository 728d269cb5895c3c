"""A Function of matrices with at most one batch dimension, mapped any number of times."""

import pytest
import torch

from spectral_triton.householder.flat_function import FlatFunction


class Scaled(FlatFunction):
    """scale ∘ x, twice over, for rows x (k, n) and a scale (k, 1), both with a batch or neither."""

    SCALE = -2

    @staticmethod
    def forward(x, scale, factor):
        assert x.dim() == scale.dim() <= 3, "more batch dimensions than a Function is given"
        return factor * scale * x, scale * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, scale, ctx.factor = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx, grad_first, grad_second):
        x, scale = ctx.saved_tensors
        grad = ctx.factor * grad_first + grad_second
        return scale * grad, (x * grad).sum(-1, keepdim=True), None


def plain(x, scale):
    return 2 * scale * x, scale * x


def ours(x, scale):
    return Scaled.apply(x, scale, 2)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("batch", [(), (5,)], ids=["one", "batch"])
@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0), (1, 0), (-1, None)])
def test_a_mapped_dimension_joins_the_batch(batch, dims):
    sizes = (*batch, 3, 4), (*batch, 3, 1)
    inputs = [
        torch.randn(size) if dim is None else torch.randn(6, *size).movedim(0, dim)
        for size, dim in zip(sizes, dims, strict=True)
    ]
    close(torch.vmap(ours, dims)(*inputs), torch.vmap(plain, dims)(*inputs))


def test_mapped_twice():
    x, scale = torch.randn(6, 3, 4), torch.randn(2, 3, 1)
    inner, outer = (0, None), (None, 0)
    expected = torch.vmap(torch.vmap(plain, inner), outer)(x, scale)
    close(torch.vmap(torch.vmap(ours, inner), outer)(x, scale), expected)


def test_gradients_are_mapped_too():
    inputs = torch.randn(6, 5, 3, 4), torch.randn(6, 5, 3, 1)

    def gradient(f):
        return torch.func.grad(lambda *a: sum(y.pow(2).sum() for y in f(*a)), (0, 1))

    close(torch.vmap(gradient(ours))(*inputs), torch.vmap(gradient(plain))(*inputs))
