import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spectral_triton.kernels import configuration

SCRIPT = Path(__file__).parents[2] / "perf" / "static_kernels.py"
LIMITS = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
FASTEST = "folded r=32 fwd, n=512, fp32"
TARGETS = [("sm_90",), ("sm_80", "--main"), ("sm_100", "--main"), ("gfx942", "--main")]


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target[0])
def costs(request, tmp_path_factory):
    """Every configuration, compiled for one target in a process without the interpreter."""
    report = tmp_path_factory.mktemp("static") / "costs.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    arch, *flags = request.param
    command = [sys.executable, str(SCRIPT), "--arch", arch, "--json", str(report), *flags]
    command += ["--cycles", FASTEST]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(report.read_text())["costs"]


def test_every_entry_compiles_within_its_limits(costs):
    titles = [cost["title"] for cost in costs]
    for dtype, n, r in configuration.FOLDED:
        assert f"folded r={r} fwd, n={n}, fp{dtype.itemsize * 8}" in titles
    for dtype, n in configuration.DENSE:
        assert f"dense fwd, n={n}, fp{dtype.itemsize * 8}" in titles
    for dtype, n in configuration.GRID:
        assert f"grid fwd, n={n}, fp{dtype.itemsize * 8}" in titles
    for cost in costs:
        assert cost["shared"] <= LIMITS[cost["target"]], cost
        assert not cost["wgmma"], cost  # its ptxas of Triton 3.6 and 3.7 is known to err
        cooperative = cost["title"].startswith("grid") and "one step" not in cost["title"]
        assert cost["barrier"] == (cooperative and cost["target"] != "gfx942"), cost
        assert cost["spills"] <= cost["allowed_spills"], cost
        if (cost["target"], cost["title"]) == ("sm_90", FASTEST):
            assert 0 < max(cost["chain"], cost["issue"]) <= 1050, cost


def test_main_configurations_spill_nothing():
    for n, r in ((512, 32), (1024, 16)):
        assert configuration.FOLDED[torch.float32, n, r].spills == 0
    for n in (64, 128):
        assert configuration.DENSE[torch.float32, n].spills == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 200, 5000])
@pytest.mark.parametrize("n", [1, 17, 64, 100, 512, 1000, 1024, 3000, 5000, 100_000])
def test_reflector_configurations_are_consistent(n, num_rows, dtype):
    for k in (0, 1, 7, n):
        block_size = configuration.preferred_block_size(n, k, dtype, num_rows)
        assert 4 <= block_size <= configuration.MAX_BLOCK_SIZE
        config = configuration.apply_config(n, block_size, num_rows, dtype)
        assert config.resident == (config.block_n >= n)
        assert config.block_k >= block_size
        # A warp owns runs of 32 features, and the lanes split without rest.
        assert config.block_n % (32 * config.num_warps) == 0
        assert config.block_k % (32 // config.lanes_n) == 0


def test_blocks_wider_than_a_warp_are_rejected():
    with pytest.raises(ValueError, match="at most 32 reflectors, got 64"):
        configuration.apply_config(512, 64, 1, torch.float32)


@pytest.mark.parametrize(
    ("n", "r", "form"),
    [
        (64, 16, "dense"),
        (128, 32, "folded"),
        (128, 256, "dense"),
        (256, 64, "folded"),
        (256, 512, "dense"),
        (512, 32, "folded"),
        (512, 1024, None),
        (1024, 32, "folded"),
    ],
)
def test_recurrence_form(n, r, form):
    assert configuration.recurrence_form(n, r, torch.float32) == form


def test_pairs_only_beyond_one_sequence_per_processor():
    config = configuration.folded_config(512, 32, torch.float32, 64)
    assert config.block_b == 1
    assert configuration.folded_config(512, 32, torch.float32, 256).block_b == 2
    assert configuration.folded_config(128, 32, torch.float32, 256).block_b == 1


@pytest.mark.parametrize("entry", configuration.GRID, ids=str)
def test_grid_configurations_are_consistent(entry):
    config = configuration.GRID[entry]
    in_lanes = 32 // config.lanes_n
    assert config.rows % config.lanes_n == 0
    assert config.block_n % (config.num_warps * in_lanes) == 0
    # As many threads share an output as its partial sums can be divided among.
    copies = max(1, 32 * config.num_warps // (config.block_b * config.rows))
    assert config.num_warps * in_lanes % copies == 0
    for n in (config.block_n // 2 + 1, config.block_n):
        for batch in (1, 64, 1000):
            for processors in (108, 132, 148):
                row_tiles, batch_tiles = config.grid(n, batch, processors)
                assert (row_tiles - 1) * config.rows < n <= row_tiles * config.rows
                assert batch_tiles == 1 or row_tiles * batch_tiles <= processors
                assert (batch_tiles - 1) * config.block_b < batch


def test_a_grid_serves_what_one_processor_cannot_and_only_if_forced():
    assert configuration.dense_unserved(256, torch.float32) is None
    assert "inside use_backend" in configuration.dense_unserved(257, torch.float32)
    assert configuration.dense_unserved(2048, torch.float32, forced=True) is None
    assert "of all (n <= 2048)" in configuration.dense_unserved(2049, torch.float32, forced=True)
    assert "n <= 1024" in configuration.dense_unserved(1025, torch.float64, forced=True)
    assert configuration.recurrence_form(512, 1024, torch.float32) is None
    assert configuration.recurrence_form(512, 1024, torch.float32, forced=True) == "dense"
