"""On which machine, with which versions and from which commit a run was made."""

from __future__ import annotations

import datetime
import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def provenance(device: str) -> dict[str, Any]:
    """What a result has to be quoted with; ``commit`` is None outside of a git checkout."""
    import spectral_triton

    return {
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "version": spectral_triton.__version__,
        "commit": commit(Path(spectral_triton.__file__).parent, *_kernels()),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def hardware(device: str) -> str:
    """The name of the GPU, or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor(Path("/proc/cpuinfo"))


def processor(cpuinfo: Path) -> str:
    """The processor as Linux names it, elsewhere as Python does."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _kernels() -> list[Path]:
    """The folder of the kernels, which in a checkout lies beside the package."""
    spec = importlib.util.find_spec("spectral_triton.kernels")
    return [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []


def commit(folder: Path, *others: Path) -> str | None:
    """The commit of ``folder``, with ``+`` where tracked files there or in ``others`` differ."""
    head = _git(folder, "rev-parse", "--short=10", "HEAD")
    if head is None or _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    places = [".", *map(str, others)]
    return head + ("+" if _git(folder, "status", "--porcelain", "-uno", "--", *places) else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
