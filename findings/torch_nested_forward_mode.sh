#!/usr/bin/env bash
# torch 2.13.0: a custom Function with a jvp of its own, differentiated in forward mode twice
#
# Guess: torch.func.jvp nests as torch.func.grad does, or refuses: jacfwd(jacfwd(f)) of x³ at 2 is 12, or an error.
# Seen: 0, without an error or a warning. Forward over reverse, reverse over forward and hessian give 12. Of the third derivatives, 6,
# forward over reverse over forward gives 3 and reverse over forward over forward 0; three times reverse gives 6. What jvp returns is
# computed where outer levels of forward mode do not see it.
# What the guess missed: that a value may be halved, not only lost, and that it depends on how jvp is written: with x**2 for x * x the
# third derivative is right. The second derivative is pytorch/pytorch#197867, open.
# For users: no Function here defines jvp. In forward mode products and recurrences run as plain operations, and derivatives in every
# nesting up to the third order are tested against the reference.
source "$(dirname "$0")/environment.bash"
install torch==2.13.0 numpy==2.4.6
run <<'PYTHON'
import torch
from torch.func import grad, hessian, jvp


class Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x * x * gradient

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x * x * tangent


def forward(f):
    return lambda x: jvp(f, (x,), (torch.ones_like(x),))[1]


x, cube = torch.tensor(2.0, dtype=torch.float64), Cube.apply
seen = {
    "first, forward": (forward(cube), 12.0, 12.0),
    "second, forward over reverse": (forward(grad(cube)), 12.0, 12.0),
    "second, reverse over forward": (grad(forward(cube)), 12.0, 12.0),
    "second, forward over forward": (forward(forward(cube)), 12.0, 0.0),
    "third, reverse over reverse over reverse": (grad(grad(grad(cube))), 6.0, 6.0),
    "third, forward over reverse over forward": (forward(grad(forward(cube))), 6.0, 3.0),
    "third, reverse over forward over forward": (grad(forward(forward(cube))), 6.0, 0.0),
}
for name, (derivative, right, expected) in seen.items():
    value = derivative(x).item()
    print(f"{name}: {value:g}, right is {right:g}")
    assert value == expected, "this has changed"
assert hessian(cube)(x).item() == 12.0
# The same in plain operations is right: it is the Function's jvp that outer levels pass by.
assert forward(forward(lambda x: x**3))(x).item() == 12.0
assert torch.func.jacfwd(torch.func.jacfwd(lambda x: x**3))(x).item() == 12.0
PYTHON
