"""φ in its four forms: against the reference, against autograd, and each other."""

import pytest
import torch

from spectral_triton import reference
from spectral_triton.recurrence.nonlinearity import (
    NONLINEARITIES,
    activation,
    activation_,
    check_nonlinearity,
    derivative,
    derivative_,
)

every = pytest.mark.parametrize("name", NONLINEARITIES)


def values():
    """Both sides of every kink, and the kinks themselves."""
    z = torch.cat((torch.randn(40), torch.tensor([0.0, -0.0, 0.5, -0.5]))).reshape(11, 4)
    return z, torch.tensor([-0.5, 0.0, 0.5, -0.2])


@every
def test_values_are_those_of_the_reference(name):
    z, bias = values()
    expected = reference.activation(z, name, 0.3, bias)
    torch.testing.assert_close(activation(z, name, 0.3, bias), expected)
    inplace = z.clone()
    activation_(name, 0.3, bias)(inplace)
    torch.testing.assert_close(inplace, expected)


@every
def test_derivatives_are_those_of_autograd(name):
    z, bias = values()
    z = z[:10].requires_grad_()  # Without the kinks.
    y = activation(z, name, 0.3, bias)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, z, grad)[0]
    y = y.detach()
    torch.testing.assert_close(derivative(grad, y, name, 0.3), expected)
    inplace = grad.clone()
    derivative_(name, 0.3)(inplace, y)
    torch.testing.assert_close(inplace, expected)


@every
def test_both_derivatives_agree_at_the_kinks(name):
    z, bias = values()
    y = activation(z, name, 0.0, bias)
    grad = torch.randn_like(y)
    expected = derivative(grad, y, name, 0.0)
    derivative_(name, 0.0)(grad, y)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("sigmoid", 0.1), ValueError, "nonlinearity"),
        (("tanh", "0"), TypeError, "negative_slope"),
        (("leaky_relu", -0.1), ValueError, "negative_slope must be at least 0, got -0.1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        check_nonlinearity(*arguments)
    check_nonlinearity("leaky_relu", 0)


@pytest.mark.parametrize("nonlinearity", ["relu", "modrelu"])
@pytest.mark.parametrize("in_place", [False, True])
def test_an_infinite_gradient_of_what_is_off_is_zero(nonlinearity, in_place):
    y, grad = torch.tensor([0.0, 1.0]), torch.tensor([torch.inf, torch.inf])
    if in_place:
        derivative_(nonlinearity, 0.0)(grad, y)
    else:
        grad = derivative(grad, y, nonlinearity, 0.0)
    assert grad.tolist() == [0, torch.inf]
