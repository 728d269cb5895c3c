"""Two algorithms others use, written here for comparison: a loop, and FastH's blocks.

FastH: Mathiasen et al., What if neural networks had SVDs?, NeurIPS 2020, arXiv 2009.13977. Blocks
of reflectors become I - 2 W Yᵀ, all blocks at once and one column after another; the backward pass
replays every reflector within its block, again all blocks at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def reflect_in_turn(x: Tensor, reflectors: Tensor) -> Tensor:
    """Q x for rows x (N, n), one reflector after another, differentiated by autograd."""
    for v in reversed(reflectors.unbind(0)):
        x = x - torch.outer(x @ v, 2 / (v @ v) * v)
    return x


def fasth_block_size(num_reflectors: int) -> int:
    """The power of two next to √k, which the paper finds fastest."""
    size = 1
    while 4 * size * size <= num_reflectors:
        size *= 2
    return size


class FastH(Function):
    """Q x for rows x (N, n) and reflectors (k, n), k divisible by the size of a block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reflectors: Tensor) -> Tensor:
        k, n = reflectors.shape
        b = fasth_block_size(k)
        length = reflectors.norm(dim=1, keepdim=True)
        y = (reflectors / length).view(k // b, b, n)
        w = y.clone()
        gram = y @ y.mT
        for j in range(1, b):
            w[:, j] -= 2 * (gram[:, j, None, :j] @ w[:, :j]).squeeze(1)
        states = [x]
        for y_i, w_i in zip(reversed(y.unbind(0)), reversed(w.unbind(0)), strict=True):
            states.append(torch.addmm(states[-1], states[-1] @ y_i.T, w_i, alpha=-2))
        ctx.save_for_backward(y, w, length, *states[1:])
        return states[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        y, w, length, *outputs = ctx.saved_tensors
        grads = [grad]
        for y_i, w_i in zip(y.unbind(0), w.unbind(0), strict=True):
            grads.append(torch.addmm(grads[-1], grads[-1] @ w_i.T, y_i, alpha=-2))
        state, incoming = torch.stack(outputs[::-1]), torch.stack(grads[:-1])
        grad_unit = torch.empty_like(y)
        for j in range(y.shape[1]):
            v = y[:, j, :, None]
            state = state - 2 * (state @ v) @ v.mT
            a, b = state @ v, incoming @ v
            grad_unit[:, j] = -2 * (b.mT @ state + a.mT @ incoming).squeeze(1)
            incoming = incoming - 2 * b @ v.mT
        grad_unit -= (grad_unit * y).sum(-1, keepdim=True) * y
        return grads[-1], grad_unit.view(-1, y.shape[-1]) / length


def fasth(x: Tensor, reflectors: Tensor) -> Tensor:
    """Q x by FastH's algorithm."""
    return FastH.apply(x, reflectors)
