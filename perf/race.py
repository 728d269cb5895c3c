"""Timing of two things in turn, so that whatever else the machine does hits both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

FEWEST, MOST = 5, 300


def quantile(values: list[float], share: float) -> float:
    """Linear interpolation between the ordered values."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


class Race:
    """Every timed round of the contender follows a round of the reference.

    pytest-benchmark keeps the contender's times; beside them go the reference's median and the
    quantiles of the ratios of neighboring rounds, contender over reference. Both run at least twice
    before, and as often as fits into ``seconds``, five times at least.
    """

    def __init__(self, benchmark: Any, seconds: float) -> None:
        self.benchmark, self.seconds = benchmark, seconds

    def __call__(
        self,
        work: Callable[[], object],
        reference: Callable[[], object],
        /,
        *,
        against: str,
        **description: Any,
    ) -> None:
        once = [0.0, 0.0]
        for _ in range(2):
            once = [_seconds(reference), _seconds(work)]
        if self.benchmark.disabled:
            return
        rounds = int(min(MOST, max(FEWEST, self.seconds / sum(once))))
        before: list[float] = []
        self.benchmark.extra_info.update(description)
        gc.collect()
        gc.disable()
        try:
            self.benchmark.pedantic(
                work, setup=lambda: before.append(_seconds(reference)), rounds=rounds
            )
        finally:
            gc.enable()
        own = self.benchmark.stats.stats.data
        ratios = [a / b for a, b in zip(own, before, strict=True)]
        self.benchmark.extra_info.update(
            against=against,
            reference_seconds=statistics.median(before),
            ratio=statistics.median(ratios),
            ratio_low=quantile(ratios, 0.1),
            ratio_high=quantile(ratios, 0.9),
        )

    def note(self, **facts: Any) -> None:
        """Adds facts to the report."""
        self.benchmark.extra_info.update(facts)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory PyTorch's CPU allocator holds during a call, beyond what it held before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        result = work()
    del result
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    peak = held = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
