"""Kernels run natively where there is a GPU, else in Triton's interpreter, against the oracle."""

import itertools
import os
import sys

import pytest
import torch

from spectral_triton import reference

SLOPE = 0.1

if not torch.cuda.is_available() and os.environ.setdefault("TRITON_INTERPRET", "1") == "1":
    # Triton reads the variable when a kernel is decorated, and its own library on import.
    interpreted = "triton" not in sys.modules or sys.modules["triton"].knobs.runtime.interpret
    if not interpreted or "spectral_triton.kernels._launch" in sys.modules:
        raise pytest.UsageError("Triton was imported before TRITON_INTERPRET=1 was set")


def pytest_collection_modifyitems(config, items):
    absent = {
        "gpu": (not torch.cuda.is_available(), "no CUDA device"),
        "compiled": (not hasattr(config, "compiled_form"), "make test-compiled runs it"),
    }
    for item in items:
        for marker, (skip, reason) in absent.items():
            if skip and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device():
    """Kernels do not run on the CPU but in the interpreter, so a GPU is used where there is one."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return torch.device("cpu" if interpreted or not torch.cuda.is_available() else "cuda")


@pytest.fixture
def assert_accurate():
    """Error against float64 at most twice that of plain PyTorch in the same dtype, plus 16 ulp.

    In float64 the oracle is itself rounded, and plain PyTorch repeats it: 64 ulp stand for both.
    """

    def check(result, oracle, plain):
        assert result.shape == oracle.shape
        if not oracle.numel():
            return
        oracle = oracle.detach().double().cpu()
        error = (result.detach().double().cpu() - oracle).abs().max()
        allowed = 2 * (plain.detach().double().cpu() - oracle).abs().max()
        ulp = torch.finfo(plain.dtype).eps * oracle.abs().max().clamp_min(1.0)
        slack = (64 if plain.dtype == torch.float64 else 16) * ulp
        assert error <= allowed + slack, f"{error:.2e} > {allowed:.2e} + {slack:.2e}"

    return check


class RecurrenceProblem:
    """Random operands in float64, and what the oracle and the kernels make of them."""

    def __init__(self, n, r, batch_sizes, nonlinearity="tanh", reverse=False, packed=False):
        steps, batch = len(batch_sizes), max(batch_sizes, default=2)
        self.scale = torch.rand(n) + 0.5
        self.p, self.q = torch.randn(2, n, r) / n**0.5
        self.bias = torch.randn(n) * 0.3 if nonlinearity == "modrelu" else None
        self.x = torch.randn(sum(batch_sizes), n) if packed else torch.randn(steps, batch, n)
        self.h0 = torch.randn(batch, n)
        self.grad_y = torch.randn_like(self.x)
        self.batch_sizes = batch_sizes if packed else None
        self.nonlinearity, self.reverse = nonlinearity, reverse

    def oracle(self, dtype=torch.float64):
        x, h0 = (a.to(dtype).requires_grad_() for a in (self.x, self.h0))
        weight = (torch.diag(self.scale) - self.p @ self.q.mT).to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        options = {"nonlinearity": self.nonlinearity, "slope": SLOPE, "bias": bias}
        options["reverse"] = self.reverse
        if self.batch_sizes is None:
            y = reference.recurrence(x, h0, weight, **options)
        else:
            y = reference.packed_recurrence(x, h0, self.batch_sizes, weight, **options)
        grads = torch.zeros_like(x), torch.zeros_like(h0)
        if y.requires_grad:
            grads = torch.autograd.grad(y, (x, h0), self.grad_y.to(dtype))
        return y, *grads

    def kernels(self, form, dtype, device, *extra, index_dtype=torch.int64):
        from spectral_triton.kernels import grid_recurrence, recurrence

        def to(tensor):
            return None if tensor is None else tensor.to(device, dtype)

        offsets = None
        if self.batch_sizes is not None:
            offsets = torch.tensor([0, *itertools.accumulate(self.batch_sizes)])
            offsets = offsets.to(device, index_dtype)
        if form == "folded":
            weights = to(self.scale), to(self.p), to(self.q)
            forward, backward = recurrence.folded_fwd, recurrence.folded_bwd
        else:
            weights = (to(torch.diag(self.scale) - self.p @ self.q.mT),)
            forward, backward = recurrence.dense_fwd, recurrence.dense_bwd
        if form == "grid":
            forward, backward = grid_recurrence.grid_fwd, grid_recurrence.grid_bwd
        options = (self.nonlinearity, SLOPE, to(self.bias), offsets, self.reverse, *extra)
        y = forward(to(self.x), to(self.h0), *weights, *options)
        return y, *backward(to(self.grad_y), y, to(self.h0), *weights, *options)

    def check(self, form, dtype, device, assert_accurate, *extra, **options):
        results = self.kernels(form, dtype, device, *extra, **options)
        for triple in zip(results, self.oracle(), self.oracle(dtype), strict=True):
            assert_accurate(*triple)


@pytest.fixture
def recurrence_problem():
    return RecurrenceProblem
