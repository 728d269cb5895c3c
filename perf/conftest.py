"""What every benchmark shares: threads, machine, the race fixture, and the report's file."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# The benches import their neighbors by plain names, as scripts do.
sys.path.insert(0, str(Path(__file__).parent))

from peers.contender import Absent, Contender, WrongResult, prove, verify
from race import Race
from records import machine_folder

PEERS = ("geotorch", "torch-householder", "nflows", "deel-torchlip", "orthogonium")
_LEFT_OUT = pytest.StashKey[list[dict[str, str]]]()
_LOAD = pytest.StashKey[tuple[float, ...]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("perf")
    group.addoption("--threads", type=int, default=2, help="threads of PyTorch")
    group.addoption("--quick", action="store_true", help="the small selection, about a minute")
    group.addoption("--seconds", type=float, default=None, help="time for each race")
    group.addoption("--label", default=None, help="writes perf/reports/<machine>/<label>.json")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: part of the selection of --quick")
    config.stash[_LEFT_OUT] = []
    config.stash[_LOAD] = os.getloadavg()
    torch.set_num_threads(config.getoption("threads"))
    # Gradients that vanish end as denormals, which make an LSTM seven times slower:
    # a property of the weights drawn, not of what is compared.
    torch.set_flush_denormal(True)
    label = config.getoption("label")
    if label and hasattr(config.option, "benchmark_json"):
        folder = machine_folder()
        folder.mkdir(parents=True, exist_ok=True)
        config.option.benchmark_json = folder / f"{label}.json"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        kept = [item for item in items if item.get_closest_marker("quick")]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info.pop("node", None)
    machine_info.get("cpu", {}).pop("flags", None)
    machine_info["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine_info["torch"] = torch.__version__
    machine_info["triton"] = _version("triton")
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cores"] = os.cpu_count()
    machine_info["blas"] = "mkl" if torch.backends.mkl.is_available() else "other"
    machine_info["peers"] = {name: _version(name) for name in PEERS}


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    output_json["load_average"] = {"start": config.stash[_LOAD], "end": os.getloadavg()}
    output_json["left_out"] = config.stash[_LEFT_OUT]
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark: Any) -> Race:
    """Times a contender in turn with what it is compared to; see :class:`Race`."""
    seconds = request.config.getoption("seconds")
    if seconds is None:
        seconds = 0.4 if request.config.getoption("quick") else 1.2
    return Race(benchmark, seconds)


_PROVEN: dict[tuple[Any, ...], str | None] = {}


@pytest.fixture
def enter(request: pytest.FixtureRequest) -> Callable[..., Contender]:
    """Builds a contender: first small and in float64 to be proven, then as it is timed."""

    def build(builder: Callable[..., Contender], small: tuple[int, ...], *sizes: int) -> Contender:
        name = request.node.callspec.params["name"]
        try:
            if (name, builder, small) not in _PROVEN:
                _PROVEN[name, builder, small] = None
                torch.manual_seed(0)
                _PROVEN[name, builder, small] = prove(builder(*small, torch.float64))
            if _PROVEN[name, builder, small]:
                raise WrongResult(_PROVEN[name, builder, small])
            torch.manual_seed(0)
            contender = builder(*sizes, torch.float32)
            if problem := verify(contender):
                raise WrongResult(problem)
        except (Absent, WrongResult) as reason:
            why = f"{type(reason).__name__}: {reason}"
            request.config.stash[_LEFT_OUT].append({"contender": name, "reason": why})
            if isinstance(reason, Absent):
                pytest.skip(why)
            if name.startswith("spectral_triton"):
                raise
            pytest.xfail(why)
        return contender

    return build
