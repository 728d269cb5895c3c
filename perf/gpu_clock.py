"""Times single calls on a GPU: medians and quartiles from a cold cache, and their peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

# Five times the L2 cache of an H200: writing it puts out what a call before has left there.
FLUSH_BYTES = 1 << 28


class Seconds(float):
    """The median of some calls.

    Attributes:
        quartiles: The first and the third.
        peak_bytes: What a call holds at most beside what there was before; 0 on a CPU.
    """

    quartiles: tuple[float, float]
    peak_bytes: int


class Clock:
    """Median seconds of single calls, within a budget for each and a deadline for all.

    Before each call a buffer larger than the L2 cache is written. While that lasts the host runs
    ahead, so of a short call only the Python that takes longer counts.
    """

    def __init__(self, device: torch.device, minutes: float, seconds_each: float) -> None:
        self.device, self.seconds_each = device, seconds_each
        self.deadline = time.monotonic() + 60 * minutes
        size = FLUSH_BYTES if device.type == "cuda" else 0
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)

    @property
    def expired(self) -> bool:
        return time.monotonic() > self.deadline

    def __call__(self, work: Callable[[], object]) -> Seconds:
        work()
        peak = self._peak(work)
        times: list[float] = []
        start = time.monotonic()
        while len(times) < 3 or (time.monotonic() - start < self.seconds_each and len(times) < 100):
            times.append(self._once(work))
        result = Seconds(statistics.median(times))
        low, _, high = statistics.quantiles(times, n=4, method="inclusive")
        result.quartiles, result.peak_bytes = (low, high), peak
        return result

    def _peak(self, work: Callable[[], object]) -> int:
        if self.device.type == "cpu":
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _once(self, work: Callable[[], object]) -> float:
        if self.device.type == "cpu":
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        before.record()
        work()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3
