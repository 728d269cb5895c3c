"""What the launchers of all kernels share: the arithmetic dtype and how kernels will run."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

if TYPE_CHECKING:
    from spectral_triton.kernels.configuration import GridConfig, RecurrenceConfig

# Fixed when the kernels are decorated, so later changes of the environment do not count.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)

LOW_PRECISION = (torch.bfloat16, torch.float16)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a kernel computes in: half precision only ever describes storage."""
    return torch.float32 if dtype in LOW_PRECISION else dtype


def require_contiguous(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@functools.lru_cache
def architecture(device: torch.device) -> str:
    """The nearest one of those that the kernels' configurations know."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip is not None:
        wide = torch.cuda.get_device_properties(device).warp_size == 64
        return "gfx942" if wide else "gfx1100"
    major, _ = torch.cuda.get_device_capability(device)
    return "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"


def launch_options(num_warps: int, arch: str) -> dict[str, int | bool]:
    """For ``num_warps`` groups of 32 lanes, which is what the kernels' layouts count."""
    if arch == "gfx942":  # its wavefronts have 64 lanes
        num_warps = max(1, num_warps // 2)
    # Fused multiply-adds, said outright: Triton 3.10 will leave them out unless they are asked for.
    options = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": True}
    # Told its limit, ptxas spills what does not fit; left alone it has fallen back to 32 registers.
    limited = arch.startswith("sm_") and num_warps >= 16
    return options | {"maxnreg": 128} if limited else options


def num_steps(x: Tensor, offsets: Tensor | None) -> int:
    return x.shape[0] if offsets is None else offsets.shape[0] - 1


def recurrence_options(
    device: torch.device,
    config: RecurrenceConfig | GridConfig,
    nonlinearity: str,
    slope: float,
    offsets: Tensor | None,
    reverse: bool,
) -> dict[str, object]:
    """The constants that every kernel of a recurrence takes, and how to launch it."""
    return {
        "NONLINEARITY": nonlinearity,
        # A constant: Triton passes a Python float as float32, which float64 would notice.
        "SLOPE": float(slope) if nonlinearity == "leaky_relu" else 0.0,
        "PACKED": offsets is not None,
        "REVERSE": reverse,
        **config.constants(),
        **launch_options(config.num_warps, architecture(device)),
    }


def num_processors(device: torch.device) -> int:
    """SMs, or compute units; two where kernels are interpreted."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def cooperates(device: torch.device, num_programs: int) -> bool:
    """Whether all programs run at once, one to an SM, so that they may wait for each other.

    Their barrier is written for NVIDIA, and the interpreter runs one program after another.
    """
    if device.type != "cuda" or torch.version.hip is not None or INTERPRETED:
        return False
    return num_programs <= num_processors(device)
