"""What one report file holds, as records that can be looked up by what was timed."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "spectral_triton"


@dataclass(frozen=True)
class Record:
    """One contender at one size: seconds, and the ratio of its rounds to those of ``against``."""

    op: str
    way: str
    contender: str
    against: str
    sizes: dict[str, int]
    seconds: float
    quartiles: tuple[float, float]
    rounds: int
    ratio: float
    ratio_range: tuple[float, float]
    reference_seconds: float
    notes: dict[str, Any]

    @property
    def case(self) -> tuple[Any, ...]:
        """What all contenders of one table share."""
        return self.op, self.way, tuple(self.sizes.items())


@dataclass(frozen=True)
class Report:
    """A report file: the records, and what is known about the run."""

    path: Path
    raw: dict[str, Any]
    records: list[Record]

    def find(self, op: str, contender: str = OURS, way: str | None = None, **sizes: int) -> Record:
        """The one record with these sizes; KeyError where there is none."""
        for record in self.select(op, contender, way):
            if sizes.items() <= record.sizes.items():
                return record
        raise KeyError(f"{contender} on {op} at {sizes}")

    def select(self, op: str, contender: str, way: str | None = None) -> Iterable[Record]:
        """All sizes of one contender."""
        for record in self.records:
            if (record.op, record.contender) == (op, contender) and way in (None, record.way):
                yield record


def machine_folder() -> Path:
    """Where reports of this machine lie: named after its processor and its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1] for line in lines if line.startswith("model name")), "cpu")
    name = re.sub(r"[^a-z0-9]+", "-", f"{model} {os.cpu_count()} cores".lower()).strip("-")
    return Path(__file__).parent / "reports" / name


def load(path: Path) -> Report:
    """Reads a report of pytest-benchmark."""
    raw = json.loads(path.read_text())
    # An interrupted run ends with a race without a ratio.
    finished = [entry for entry in raw["benchmarks"] if "ratio" in entry["extra_info"]]
    return Report(path, raw, [_record(entry) for entry in finished])


def _record(entry: dict[str, Any]) -> Record:
    info, stats = dict(entry["extra_info"]), entry["stats"]
    ratio_range = info.pop("ratio_low"), info.pop("ratio_high")
    known = ("op", "way", "contender", "against", "sizes", "ratio", "reference_seconds")
    fields = {name: info.pop(name) for name in known}
    return Record(
        **fields,
        ratio_range=ratio_range,
        seconds=stats["median"],
        quartiles=(stats["q1"], stats["q3"]),
        rounds=stats["rounds"],
        notes=info,
    )


def exponent(records: Iterable[Record], size: str) -> float | None:
    """The slope of log time over log size by least squares; None for fewer than three sizes."""
    points = [(math.log(r.sizes[size]), math.log(r.seconds)) for r in records]
    if len({x for x, _ in points}) < 3:
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return above / sum((x - mean_x) ** 2 for x, _ in points)
