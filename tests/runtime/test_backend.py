import dataclasses
import os
import subprocess
import sys
import threading

import pytest
import torch

import spectral_triton
from spectral_triton import SpectralRNN, SVDLinear, apply_reflectors, householder_product
from spectral_triton.householder import function as householder_function
from spectral_triton.householder import prepared as prepared_reflectors
from spectral_triton.runtime import backend
from spectral_triton.runtime.backend import (
    OPS,
    backend_info,
    unserved_reason,
    use_backend,
    use_triton,
)
from spectral_triton.svd import operator as svd

SIZES = {
    "apply_reflectors": {"n": 8, "k": 3},
    "folded_recurrence": {"n": 8, "r": 4},
    "dense_recurrence": {"n": 8},
}


def _python(code, **environment):
    """Runs code in a fresh interpreter: what Triton reads on import cannot be changed later."""
    keep = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=keep | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.mark.parametrize("op", OPS)
def test_cpu_tensors_run_in_torch_unless_forced(op):
    assert not use_triton(op, torch.ones(2, 8), **SIZES[op])


def test_torch_is_forced_inside_the_block_only():
    with use_backend("torch"):
        assert not use_triton("apply_reflectors", torch.ones(2, 8), n=8, k=3)
        assert backend_info().forced == "torch"
    assert backend_info().forced is None


def test_blocks_nest_and_end_with_exceptions():
    with use_backend("torch"):
        with pytest.raises(KeyError), use_backend("torch"):
            raise KeyError
        assert backend_info().forced == "torch"
    assert backend_info().forced is None


def test_forcing_is_private_to_a_thread():
    seen = []
    with use_backend("torch"):
        thread = threading.Thread(target=lambda: seen.append(backend_info().forced))
        thread.start()
        thread.join()
    assert seen == [None]


def test_report_begins_with_what_runs_and_versions():
    lines = str(backend_info()).splitlines()
    assert lines[0] == backend_info().summary
    assert lines[1] == f"spectral_triton  {spectral_triton.__version__}"
    assert lines[2] == f"torch   {torch.__version__}"


@pytest.mark.parametrize(
    ("devices", "interpreted", "said"),
    [
        ({"cpu": "no kernels"}, False, "PyTorch on the CPU. Nothing is missing"),
        ({"cpu": "kernels run (interpreted)"}, True, "interpreted where forced"),
        ({"cpu": "no kernels", "cuda:0": "H100: kernels run"}, False, "Triton kernels run"),
        ({"cpu": "no kernels", "cuda:0": "K80: too old"}, False, "The kernels do not run"),
    ],
)
def test_the_report_says_in_a_sentence_what_runs(devices, interpreted, said):
    info = dataclasses.replace(backend_info(), devices=devices, interpreted=interpreted)
    assert said in str(info).splitlines()[0]


def test_unknown_names_are_rejected():
    with pytest.raises(ValueError, match="cuda"), use_backend("cuda"):
        pass
    with pytest.raises(ValueError, match="matmul"):
        unserved_reason("matmul", torch.ones(1))


INTERPRETED = """
import torch
from spectral_triton.runtime.backend import backend_info, unserved_reason, use_backend, use_triton
x = torch.ones(2, 8)
print(use_triton("apply_reflectors", x, n=8, k=3))
with use_backend("triton"):
    print(use_triton("apply_reflectors", x, n=8, k=3))
    print(use_triton("dense_recurrence", x, None, n=8), use_triton("dense_recurrence", x, n=1000))
    for call in (
        lambda: use_triton("folded_recurrence", x, n=4096, r=64),
        lambda: use_triton("dense_recurrence", x, n=3000),
        lambda: use_triton("apply_reflectors", x.to(torch.complex64), n=8, k=3),
        lambda: use_triton("apply_reflectors", x.to("meta"), n=8, k=3),
        lambda: use_triton("apply_reflectors", x.to("meta"), x, n=8, k=3),
    ):
        try:
            call()
        except RuntimeError as error:
            print(error)
print(backend_info())
"""


def test_interpreter_takes_cpu_tensors_when_forced():
    pytest.importorskip("triton")
    lines = _python(INTERPRETED, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="").splitlines()
    assert lines[:3] == ["False", "True", "True True"]
    expected = ["registers", "registers", "dtype torch.complex64", "meta tensors", "several"]
    for line, reason in zip(lines[3:8], expected, strict=True):
        assert line.startswith('use_backend("triton"): ')
        assert reason in line
    report = "\n".join(lines[8:])
    assert "TRITON_INTERPRET=1" in report
    for op in OPS:
        assert f"{op}: float32" in report


def test_without_device_and_interpreter_the_reason_is_given():
    code = """
import torch
from spectral_triton.runtime.backend import use_backend
try:
    with use_backend("triton"):
        pass
except RuntimeError as error:
    print(error)
"""
    assert "no CUDA or ROCm device" in _python(code, CUDA_VISIBLE_DEVICES="")


def test_without_triton_everything_still_works():
    code = """
import sys
import importlib.util
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else real(name, *a)
import torch
from spectral_triton.runtime.backend import backend_info, unserved_reason, use_triton
print(use_triton("apply_reflectors", torch.ones(1), n=1, k=1))
print(unserved_reason("apply_reflectors", torch.ones(1), n=1, k=1))
print(backend_info())
"""
    output = _python(code, CUDA_VISIBLE_DEVICES="")
    assert output.startswith("False\nTriton is not installed\n")
    assert "triton  not installed" in output


def test_cuda_without_triton_runs_in_torch(monkeypatch):
    x, v = torch.randn(3, 40), torch.randn(6, 40)
    layer = SVDLinear(40, 40, num_reflectors=3)

    def run():
        return apply_reflectors(x, v), householder_product(v), layer(x)

    expected = run()
    monkeypatch.setattr(backend, "_INSTALLED", False)
    for module in (backend, prepared_reflectors, householder_function, svd):
        monkeypatch.setattr(module, "may_launch", lambda tensor: True)
    torch.testing.assert_close(run(), expected, rtol=0, atol=1e-13)


def test_a_recurrence_compiles_where_kernels_could_run(monkeypatch):
    torch._dynamo.reset()
    pytest.importorskip("triton")
    # The rest of what decides is traced as it is.
    monkeypatch.setattr(backend, "_interpreting", lambda: True)
    monkeypatch.setattr(backend, "may_launch", lambda tensor: True)
    rnn = SpectralRNN(3, 100, num_reflectors=8)
    x = torch.randn(4, 2, 3)
    compiled = torch.compile(lambda x: rnn(x)[0], backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), rnn(x)[0], rtol=0, atol=1e-13)


def test_importing_the_backend_imports_no_triton():
    code = "import sys, spectral_triton.runtime.backend; print('triton' in sys.modules)"
    assert _python(code) == "False"


@pytest.mark.gpu
def test_cuda_tensors_run_as_kernels():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.ones(2, 8, dtype=torch.float32, device="cuda")
    for op in OPS:
        assert use_triton(op, x, **SIZES[op])
    assert not use_triton("dense_recurrence", x, n=1000)
    with use_backend("triton"):
        assert use_triton("dense_recurrence", x, n=1000)
    assert "kernels run" in backend_info().devices["cuda:0"]
