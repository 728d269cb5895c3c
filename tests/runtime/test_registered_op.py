"""Registered ops neither load nor need Triton and the compiler."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import spectral_triton  # noqa: F401, since importing registers
from spectral_triton.runtime.registered_op import registered_op

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


class Line(NamedTuple):
    x: torch.Tensor
    slope: float
    offset: torch.Tensor | None


def test_an_op_takes_the_fields_of_a_named_tuple_one_by_one():
    def like(times: int, line: Line) -> torch.Tensor:
        return torch.empty_like(line.x)

    @registered_op("test_line", like)
    def op(times: int, line: Line) -> torch.Tensor:
        moved = 0 if line.offset is None else line.offset
        return times * line.x * line.slope + moved

    names = [argument.name for argument in op._schema.arguments]
    assert names == ["times", "x", "slope", "offset"]
    x = torch.tensor([1.0, 2.0])
    assert op(2, *Line(x, 3.0, None)).tolist() == [6.0, 12.0]
    assert op(times=1, x=x, slope=1.0, offset=torch.ones(())).tolist() == [2.0, 3.0]
    assert op(1, *Line(x.to("meta"), 3.0, None)).shape == (2,)
