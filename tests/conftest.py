"""What every test relies on: a seed, float64 by default, uninitialised memory that shows itself."""

import os

import pytest
import torch

# Without a GPU the kernels run in Triton's interpreter, which must be chosen before its import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device the tests run on: cpu or cuda")


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def kernel_device():
    """Where kernels run: a GPU natively, the CPU in the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _seed_and_dtype():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _nan_filled_empty(monkeypatch):
    """An output cell that nothing writes must fail a test, so torch.empty holds NaN."""

    def poisoned(make):
        def wrapper(*args, **kwargs):
            out = make(*args, **kwargs)
            fillable = out.is_floating_point() and not out.is_meta
            return out.fill_(float("nan")) if fillable else out

        return wrapper

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
