"""Denormals are zero inside the block, and what they were before outside of it."""

import os
import subprocess
import sys

import pytest
import torch

from spectral_triton.experiments.training.denormals import flushed_denormals

pytestmark = pytest.mark.skipif(
    not torch.set_flush_denormal(False), reason="this processor cannot flush denormals"
)


def half_of_the_smallest():
    return (torch.full((3,), torch.finfo(torch.float32).tiny, dtype=torch.float32) / 2).sum().item()


def test_inside_and_outside():
    assert half_of_the_smallest() > 0
    with flushed_denormals():
        assert half_of_the_smallest() == 0
    assert half_of_the_smallest() > 0


def test_after_an_error():
    with pytest.raises(KeyError), flushed_denormals():
        raise KeyError
    assert half_of_the_smallest() > 0


def test_nested():
    with flushed_denormals():
        with flushed_denormals():
            pass
        assert half_of_the_smallest() == 0
    assert half_of_the_smallest() > 0


PROGRAM = """
import sys, torch
from spectral_triton.experiments.training.denormals import flushed_denormals

torch.set_num_threads(2)
tiny = torch.finfo(torch.float32).tiny

def left():
    return int((torch.full((1 << 20,), tiny, dtype=torch.float32) / 2).count_nonzero())

if sys.argv[1] == "warm":
    left()
with flushed_denormals():
    print(left())
"""


@pytest.mark.parametrize("pool", ["warm", "cold"])
def test_threads_that_exist_already_take_no_notice_and_later_ones_do(pool):
    command = [sys.executable, "-c", PROGRAM, pool]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert (int(run.stdout) == 0) == (pool == "cold")


def test_the_command_line_flushes_before_anything_computes(tmp_path):
    program = """
import sys, torch
from spectral_triton.experiments.training import comparison
from spectral_triton import cli

tiny = torch.finfo(torch.float32).tiny

def run(self, report):
    torch.set_num_threads(2)
    print("left", int((torch.full((1 << 20,), tiny, dtype=torch.float32) / 2).count_nonzero()))
    raise SystemExit

comparison.Comparison.run = run
sys.argv = ["spectral-triton", "train", "adding", "--threads", "2", "--output", sys.argv[1]]
cli.main()
"""
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "left 0\n" in run.stdout, run.stdout + run.stderr
