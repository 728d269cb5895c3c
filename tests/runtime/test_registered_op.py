"""Registered ops neither load nor need Triton and the compiler."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spectral_triton  # noqa: F401, since importing registers

PROGRAM = """
import sys
import spectral_triton  # noqa: F401, since importing registers
import torch
import spectral_triton as st
rnn = st.SpectralRNN(3, 70, num_reflectors=2)
x = torch.randn(4, 2, 3, requires_grad=True)
rnn(x)[0].sum().backward()
st.SVDLinear(3, 4)(x).sum().backward()
assert torch.isfinite(x.grad).all()
assert "torch._dynamo" not in sys.modules
assert "triton" not in sys.modules
"""


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError", None])
def test_runs_without_triton_and_without_the_compiler(tmp_path: Path, error):
    if error:
        (tmp_path / "triton.py").write_text(f"raise {error}('broken')")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120)


def test_ops_are_registered():
    for name in ("recurrence_fwd", "recurrence_bwd", "t_factor", "apply_reflectors_fwd"):
        assert hasattr(torch.ops.spectral_triton, name)
