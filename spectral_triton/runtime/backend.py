"""Which implementation runs: the Triton kernels or plain PyTorch, decided in one place."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_triton.runtime.validation import full_precision

OPS = ("apply_reflectors", "folded_recurrence", "dense_recurrence")

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Once: torch.compile of PyTorch 2.11 refuses to trace the search.
_INSTALLED = importlib.util.find_spec("triton") is not None
_forced: ContextVar[str | None] = ContextVar("spectral_triton_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces one implementation inside a ``with`` block, for the current thread or task only.

    ``"torch"`` never launches a kernel. ``"triton"`` launches one or raises; under
    ``TRITON_INTERPRET=1`` it also takes CPU tensors, which the interpreter then runs, slowly.
    Operations decide when they are called: what a forward pass chose, its backward pass keeps
    only where the operation hands the choice on (autograd runs CUDA backward passes in threads
    of its own, which do not see this block).

    Args:
        name: ``"triton"`` or ``"torch"``.

    Raises:
        ValueError: if ``name`` is neither.
        RuntimeError: if Triton is asked for and cannot run at all, with the reason; and, inside
            the block, from any operation whose device, dtype or size no kernel serves.

    Example:
        >>> with use_backend("torch"):
        ...     use_triton("apply_reflectors", torch.ones(2, 3), n=3, k=1)
        False
    """
    if name not in ("triton", "torch"):
        raise ValueError(f'the backend is "triton" or "torch", got {name!r}')
    if name == "triton" and (reason := _no_triton()):
        raise RuntimeError(f'use_backend("triton"): {reason}')
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def use_triton(op: str, *tensors: Tensor | None, **sizes: int) -> bool:
    """Whether ``op`` on these tensors runs as a Triton kernel; the only place that decides.

    Without ``use_backend``: on CUDA (and ROCm) tensors, wherever ``unserved_reason`` has nothing
    to say. Call it on real tensors, inside the operation.

    Raises:
        RuntimeError: inside ``use_backend("triton")``, if no kernel serves the call.
    """
    forced = _forced.get()
    if forced == "torch":
        return False
    if forced is None and not any(tensor is not None and tensor.is_cuda for tensor in tensors):
        return False
    reason = unserved_reason(op, *tensors, **sizes)
    if reason is not None and forced == "triton":
        raise RuntimeError(f'use_backend("triton"): {op}: {reason}')
    return reason is None


def forced_backend() -> str | None:
    """What ``use_backend`` forces here; None while a program is traced, which knows no blocks."""
    return None if torch.compiler.is_compiling() else _forced.get()


def hand_on(forced: str | None) -> AbstractContextManager[object]:
    """Forces in a backward pass what ``forced_backend`` said in its forward pass."""
    return nullcontext() if forced is None else use_backend(forced)


def may_launch(tensor: Tensor) -> bool:
    """Whether a kernel could be asked for at all: what can be told while a program is traced."""
    if tensor.is_cuda or torch.compiler.is_compiling():
        return tensor.is_cuda
    return _forced.get() == "triton"


def recurrence_form(x: Tensor, n: int, r: int) -> str | None:
    """The form of W, "folded" or "dense", that its kernel wants; None without a kernel."""
    forced = forced_backend()
    if not may_launch(x) or forced == "torch" or _no_triton() is not None:
        return None
    from spectral_triton.kernels import configuration

    return configuration.recurrence_form(n, r, full_precision(x.dtype), forced == "triton")


def reflector_block_size(unit_reflectors: Tensor, num_vectors: int) -> int | None:
    """Reflectors per block, as the kernels want them; None where there is no Triton."""
    if _no_triton() is not None:
        return None
    from spectral_triton.kernels import configuration

    k, n = unit_reflectors.shape[-2:]
    vectors = num_vectors * unit_reflectors.shape[:-2].numel()
    return configuration.preferred_block_size(n, k, unit_reflectors.dtype, vectors)


def unserved_reason(op: str, *tensors: Tensor | None, **sizes: int) -> str | None:
    """Why no kernel serves the call, or None if one does.

    Inside ``use_backend("triton")`` more sizes are served: those of kernels that were not timed.

    Args:
        op: one of ``OPS``.
        tensors: everything the kernel would read; the widest dtype is the arithmetic's.
        sizes: ``n`` and ``k`` for reflectors; ``n`` and, where folded, ``r`` for recurrences.
    """
    if op not in OPS:
        raise ValueError(f"op is one of {OPS}, got {op!r}")
    present = [tensor for tensor in tensors if tensor is not None]
    if reason := _no_triton():
        return reason
    devices = {tensor.device for tensor in present}
    if len(devices) > 1:
        return f"tensors on several devices: {', '.join(sorted(map(str, devices)))}"
    for device in devices:
        if reason := _no_kernels_on(device):
            return reason
    floating = {tensor.dtype for tensor in present if not _is_index(tensor.dtype)}
    for dtype in floating:
        if dtype not in _DTYPES:
            return f"dtype {dtype}: kernels take {', '.join(str(d)[6:] for d in _DTYPES)}"
    dtype = torch.float64 if torch.float64 in floating else torch.float32
    from spectral_triton.kernels import configuration

    if op == "apply_reflectors":
        return None
    if op == "folded_recurrence":
        return configuration.folded_unserved(sizes["n"], sizes["r"], dtype)
    return configuration.dense_unserved(sizes["n"], dtype, _forced.get() == "triton")


@dataclass(frozen=True)
class BackendInfo:
    """What ``backend_info`` found; ``print`` it."""

    spectral_triton: str
    torch: str
    triton: str
    interpreted: bool
    forced: str | None
    devices: dict[str, str]
    kernels: dict[str, str]

    @property
    def summary(self) -> str:
        """What all of it comes to, in a sentence or two."""
        gpus = [state for name, state in self.devices.items() if name != "cpu"]
        if any(state.endswith(": kernels run") for state in gpus):
            return "Triton kernels run on the GPU wherever one serves the call, else PyTorch."
        if gpus:
            return "Everything runs in PyTorch. The kernels do not run: see the devices below."
        if self.interpreted:
            return "Everything runs in PyTorch on the CPU; kernels are interpreted where forced."
        return (
            "Everything runs in PyTorch on the CPU. Nothing is missing: the kernels are for "
            "NVIDIA and AMD GPUs."
        )

    def __str__(self) -> str:
        lines = [self.summary, f"spectral_triton  {self.spectral_triton}"]
        lines += [f"torch   {self.torch}", f"triton  {self.triton}"]
        lines += [f"interpreter  {'on (TRITON_INTERPRET=1)' if self.interpreted else 'off'}"]
        lines += [f"forced by use_backend  {self.forced or 'nothing'}", "devices"]
        lines += [f"  {name}: {state}" for name, state in self.devices.items()]
        lines += ["kernels"]
        lines += [f"  {name}: {state}" for name, state in self.kernels.items()]
        return "\n".join(lines)


def backend_info() -> BackendInfo:
    """Reports versions, devices, and which kernels run where, or why they do not.

    Starts Triton on every visible device to find out, so the first call can take seconds.

    Example:
        >>> "torch" in str(backend_info())
        True
    """
    devices = {"cpu": _no_kernels_on(torch.device("cpu")) or "kernels run (interpreted)"}
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        state = _no_triton() or _no_kernels_on(device) or "kernels run"
        devices[str(device)] = f"{torch.cuda.get_device_name(device)}: {state}"
    kernels = dict.fromkeys(OPS, _no_triton() or "")
    if _no_triton() is None:
        from spectral_triton.kernels import configuration

        kernels = dict(zip(OPS, configuration.describe(), strict=True))
    return BackendInfo(
        spectral_triton=_version("spectral-triton"),
        torch=torch.__version__,
        triton=_version("triton", "pytorch-triton-rocm", "triton-windows")
        if _INSTALLED
        else "not installed",
        interpreted=_interpreting(),
        forced=_forced.get(),
        devices=devices,
        kernels=kernels,
    )


def _is_index(dtype: torch.dtype) -> bool:
    return dtype in (torch.int32, torch.int64)


def _version(*names: str) -> str:
    """Of the first of these distributions that is there."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _interpreting() -> bool:
    """Whether the kernels are, or on import would be, interpreted."""
    if "spectral_triton.kernels._launch" in sys.modules:
        from spectral_triton.kernels._launch import INTERPRETED

        return INTERPRETED
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _no_triton() -> str | None:
    if not _INSTALLED:
        return "Triton is not installed"
    if not torch.cuda.is_available() and not _interpreting():
        return "no CUDA or ROCm device; set TRITON_INTERPRET=1 before Triton is imported"
    return None


def _no_kernels_on(device: torch.device) -> str | None:
    if device.type == "cuda":
        return _failure_on(device.index if device.index is not None else 0)
    if device.type == "cpu" and _interpreting():
        return None
    return f"no kernels for {device.type} tensors" + (
        "; TRITON_INTERPRET=1 interprets them" if device.type == "cpu" else ""
    )


@functools.lru_cache
def _failure_on(index: int) -> str | None:
    """Builds and launches the smallest kernel once: a missing compiler or an old GPU shows here.

    A full memory, or a graph capture that does not let a module be loaded, passes: it raises, and
    is not kept as a reason.
    """
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < (7, 5):
        return "compute capability below 7.5"
    from spectral_triton.kernels.t_factor import t_factor_fwd

    try:
        with torch.cuda.device(index):
            t_factor_fwd(torch.ones(1, 1, 1, dtype=torch.float32, device="cuda"), 1)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if "out of memory" in str(error) or torch.cuda.is_current_stream_capturing():
            raise
        return f"Triton fails to build or launch a kernel: {type(error).__name__}: {error}"
    return None
