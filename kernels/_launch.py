"""What the launchers of all kernels share: the arithmetic dtype and how kernels will run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

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


def launch_options(num_warps: int, hip: bool = torch.version.hip is not None) -> dict[str, int]:
    options = {"num_warps": num_warps, "num_stages": 1}
    # Told its limit, ptxas spills what does not fit; left alone it has fallen back to 32 registers.
    return options if hip or num_warps < 16 else options | {"maxnreg": 128}
