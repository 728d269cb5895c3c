"""Kernels run natively where there is a GPU, else in Triton's interpreter, against the oracle."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available() and os.environ.setdefault("TRITON_INTERPRET", "1") == "1":
    # Triton reads the variable when a kernel is decorated, and its own library on import.
    interpreted = "triton" not in sys.modules or sys.modules["triton"].knobs.runtime.interpret
    if not interpreted or "spectral_triton.kernels._launch" in sys.modules:
        raise pytest.UsageError("Triton was imported before TRITON_INTERPRET=1 was set")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def device():
    """Kernels do not run on the CPU but in the interpreter, so a GPU is used where there is one."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return torch.device("cpu" if interpreted else "cuda")


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
