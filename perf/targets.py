"""What the library set out to reach on two CPU cores, checked against a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from records import OURS, Report

BOTH = "forward+backward"
CAYLEY = "GeoTorch almost_orthogonal, Cayley"


@dataclass(frozen=True)
class Target:
    """A sentence, the figure it is about, and what the figure has to be."""

    text: str
    measure: Callable[[Report], float]
    at_least: float | None = None
    at_most: float | None = None

    def line(self, report: Report) -> tuple[str, str, str, str] | None:
        """Sentence, aim, figure and verdict; None where the report lacks the sizes."""
        try:
            value = self.measure(report)
        except KeyError:
            return None
        if self.at_least is not None:
            aim, met = f"≥ {self.at_least:g}", value >= self.at_least
        else:
            aim, met = f"≤ {self.at_most:g}", value <= self.at_most
        return self.text, aim, f"{value:.2f}", "reached" if met else "**missed**"


def _linear(contender: str, k: int) -> Callable[[Report], float]:
    return lambda report: report.find("linear", contender, BOTH, n=512, k=k, batch=32).ratio


def _product(contender: str, n: int) -> Callable[[Report], float]:
    return lambda report: report.find("householder_product", contender, n=n).ratio


def _fastest_product(n: int) -> Callable[[Report], float]:
    """The smallest ratio of any peer to ours."""

    def measure(report: Report) -> float:
        ratios = [
            record.ratio
            for record in report.records
            if record.op == "householder_product"
            and record.sizes["n"] == n
            and not record.contender.startswith(OURS)
        ]
        if len(ratios) < 3:
            raise KeyError(n)
        return min(ratios)

    return measure


def _fastest_linear(k: int, exact: bool) -> Callable[[Report], float]:
    def measure(report: Report) -> float:
        ratios = [
            record.ratio
            for record in report.records
            if (record.op, record.way) == ("linear", BOTH)
            and record.sizes == {"n": 512, "k": k, "batch": 32}
            and record.contender not in (OURS, "nn.Linear")
            and not (exact and ("approximate" in record.contender or "σ = 1" in record.contender))
        ]
        if len(ratios) < 3:
            raise KeyError(k)
        return min(ratios)

    return measure


def _above_floor(report: Report) -> float:
    ours = report.find("householder_product", n=1024)
    return ours.ratio / ours.notes["floor"]


def _apply_over_ormqr(report: Report) -> float:
    found = report.find("apply_reflectors", "torch ormqr", "forward", n=512, k=512, batch=32)
    return 1 / found.ratio


def _rnn(n: int, k: int, steps: int, batch: int) -> Callable[[Report], float]:
    """How often ours runs in the time of nn.RNN."""
    return lambda report: 1 / report.find("rnn", n=n, k=k, T=steps, batch=batch).ratio


def _slowest_rnn(full: bool) -> Callable[[Report], float]:
    def measure(report: Report) -> float:
        ratios = [
            record.ratio
            for record in report.select("rnn", OURS)
            if (record.sizes["k"] == record.sizes["n"]) == full and record.sizes["T"] >= 200
        ]
        if not ratios:
            raise KeyError("rnn")
        return max(ratios)

    return measure


def _import_cost(report: Report) -> float:
    found = report.find("import")
    return found.seconds - found.reference_seconds


LAYER = "SVDLinear(512, 512), batch 32"
PRODUCT = "householder_product"
TARGETS = (
    Target(f"{LAYER}, full: times faster than {CAYLEY}", _linear(CAYLEY, 512), 5),
    Target(f"{LAYER}, full: the same, second aim", _linear(CAYLEY, 512), 7),
    Target(
        f"{LAYER}, full: times faster than two torch householder_product",
        _linear("torch householder_product, twice", 512),
        40,
    ),
    Target(
        f"{LAYER}, full: times faster than the fastest peer that keeps σ exactly",
        _fastest_linear(512, exact=True),
        1,
    ),
    Target(
        f"{LAYER}, full: times faster than deel-torchlip's approximate layer",
        _linear("deel-torchlip SpectralLinear (approximate)", 512),
        1,
    ),
    Target(f"{LAYER}, 16 reflectors: times nn.Linear", _linear(OURS, 16), at_most=3),
    Target(f"{LAYER}, 16 reflectors: the same, second aim", _linear(OURS, 16), at_most=2),
    Target(
        f"{LAYER}, 16 reflectors: times faster than the fastest peer",
        _fastest_linear(16, exact=False),
        1,
    ),
    Target(
        f"{PRODUCT}, n = k = 1024: times faster than torch's",
        _product("torch householder_product", 1024),
        12,
    ),
    *(
        Target(
            f"{PRODUCT}, n = k = {n}: times faster than torch's Cayley map",
            _product("torch orthogonal, Cayley", n),
            1,
        )
        for n in (64, 256, 1024)
    ),
    *(
        Target(
            f"{PRODUCT}, n = k = {n}: times faster than the fastest peer", _fastest_product(n), 1
        )
        for n in (64, 256, 1024)
    ),
    Target(f"{PRODUCT}, n = k = 1024: times the GEMM floor", _above_floor, at_most=2.5),
    Target("apply_reflectors, 512, batch 32, forward: times ormqr", _apply_over_ormqr, at_most=1),
    Target(
        "SpectralRNN, n = 128, k = 16, T = 784, B = 100: times faster than nn.RNN",
        _rnn(128, 16, 784, 100),
        1,
    ),
    Target("SpectralRNN, n = 512, k = 16, T = 200, B = 64: the same", _rnn(512, 16, 200, 64), 1.5),
    Target(
        "SpectralRNN, n = 1024, k = 16, T = 200, B = 64: the same", _rnn(1024, 16, 200, 64), 2.5
    ),
    Target(
        "SpectralRNN, k = 16, T ≥ 200: times nn.RNN at the worst size timed",
        _slowest_rnn(full=False),
        at_most=1,
    ),
    Target(
        "SpectralRNN, full, T ≥ 200: times nn.RNN at the worst size timed",
        _slowest_rnn(full=True),
        at_most=1.3,
    ),
    Target("import spectral_triton: seconds added to import torch", _import_cost, at_most=0.3),
)
