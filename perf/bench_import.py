"""What importing the library adds to importing PyTorch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from peers.orthogonal import OURS
from race import Race


@pytest.mark.quick
def bench_import(race: Race) -> None:
    """A fresh interpreter with both imports against one with PyTorch's only."""

    def start(code: str) -> None:
        # -P keeps this folder and the repository's kernels/ off the path.
        subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True)

    race(
        lambda: start("import torch, spectral_triton"),
        lambda: start("import torch"),
        against="import torch",
        op="import",
        way="fresh interpreter",
        contender=OURS,
        sizes={},
    )
