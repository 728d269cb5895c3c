"""Every route for a recurrence whose W exceeds one SM, side by side: what settles the choice.

W is dense, as all reflectors make it. Loops and grid kernels start from the projected input;
``nn.RNN`` projects it itself. "both" is forward and backward with the gradient of W.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_clock import Clock
from spectral_triton.kernels import grid_recurrence
from torch import Tensor, nn

from spectral_triton import reference

INPUTS = 28  # features of a step: a row of an MNIST image
TOLERANCE = 1e-4


class Route:
    """Forward, and both ways, by functions that take what the loop or the kernels take."""

    def __init__(self, forward: Callable[..., Any], backward: Callable[..., Any], *rest: object):
        self.fwd, self.bwd, self.rest = forward, backward, rest

    def forward(self, x: Tensor, h0: Tensor, weight: Tensor, grad_y: Tensor) -> Tensor:
        return self.fwd(x, h0, weight, "tanh", 0.0, None, None, False, *self.rest)

    def both(self, x: Tensor, h0: Tensor, weight: Tensor, grad_y: Tensor) -> tuple[Tensor, ...]:
        y = self.forward(x, h0, weight, grad_y)
        back = self.bwd(grad_y, y, h0, weight, "tanh", 0.0, None, None, False, *self.rest)
        before = torch.cat((h0[None], y[:-1])).flatten(0, 1)
        return y, *back, back[0].flatten(0, 1).mT @ before


def _loop_fwd(x: Tensor, h0: Tensor, weight: Tensor, *options: object) -> Tensor:
    """One GEMM and one tanh a step, which is what torch runs without the kernels."""
    y, h = torch.empty_like(x), h0
    for x_t, y_t in zip(x, y, strict=True):
        h = torch.addmm(x_t, h, weight.mT, out=y_t).tanh_()
    return y


def _loop_bwd(
    grad_y: Tensor, y: Tensor, h0: Tensor, weight: Tensor, *options: object
) -> tuple[Tensor, Tensor]:
    grad_z, dh = torch.empty_like(y), torch.zeros_like(h0)
    for t in reversed(range(len(y))):
        dz = torch.add(grad_y[t], dh, out=grad_z[t])
        torch.ops.aten.tanh_backward.grad_input(dz, y[t], grad_input=dz)
        torch.mm(dz, weight, out=dh)
    return grad_z, dh


def _captured(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The launches of ``work`` as one CUDA graph."""
    if device.type != "cuda":
        return work
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _error(route: Route, x: Tensor, h0: Tensor, weight: Tensor, grad_y: Tensor) -> float:
    """The largest one of states and gradients over the first steps, relative to float64."""
    operands = x[:64], h0, weight, grad_y[:64]
    *leaves, grad = (a.double() for a in operands)
    with torch.enable_grad():
        y = reference.recurrence(*(leaf.requires_grad_() for leaf in leaves))
        oracle = y, *torch.autograd.grad(y, leaves, grad)
    pairs = zip(route.both(*operands), oracle, strict=True)
    return max(((own - exact).norm() / exact.norm()).item() for own, exact in pairs)


def bench_routes(
    clock: Clock,
    steps: int,
    batch: int,
    n: int,
    device: torch.device,
) -> dict[str, Any]:
    result: dict[str, Any] = {"name": f"dense W over a grid n={n} T={steps} B={batch}"}
    weight = torch.linalg.qr(torch.randn(n, n, device=device))[0].contiguous()
    x, grad_y = torch.randn(2, steps, batch, n, device=device)
    h0 = torch.randn(batch, n, device=device)
    operands = (x, h0, weight, grad_y)
    grid = partial(Route, grid_recurrence.grid_fwd, grid_recurrence.grid_bwd)
    # The interpreter runs programs one after another, which no barrier survives.
    routes = {"grid": grid(device.type == "cuda"), "grid per step": grid(False)}
    routes["loop"] = Route(_loop_fwd, _loop_bwd)

    rnn = nn.RNN(INPUTS, n, device=device)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(weight)
    inputs = torch.randn(steps, batch, INPUTS, device=device)
    work: dict[str, Callable[[], object]] = {}
    with torch.no_grad():
        errors = {name: _error(route, *operands) for name, route in routes.items()}
        result["error"] = max(errors.values())
        if not result["error"] < TOLERANCE:
            return result | {"skipped": f"wrong result: {errors}"}
        for name, route in routes.items():
            for what in ("forward", "both"):
                work[f"{name} {what}"] = partial(getattr(route, what), *operands)
                if name != "grid":
                    captured = _captured(work[f"{name} {what}"], device)
                    work[f"{name} in a CUDA graph {what}"] = captured
        times = {name: clock(call) for name, call in work.items()}
        times["cudnn forward"] = clock(lambda: rnn(inputs))
    leaves = list(rnn.parameters())
    times["cudnn both"] = clock(lambda: torch.autograd.grad(rnn(inputs)[0], leaves, grad_y))
    own = {what: times.pop(f"grid {what}") for what in ("forward", "both")}
    result["seconds"] = own | times
    result["ratio"] = {name: t / own[name.split()[-1]] for name, t in times.items()}
    result["microseconds per step"] = own["forward"] / steps * 1e6
    return result
