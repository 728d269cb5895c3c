"""An experiment made of many small measurements, each one line of a JSONL file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from spectral_triton.experiments.errors import (
    DataError,
    ExperimentError,
    FolderInUse,
    Interrupted,
    UsageError,
)
from spectral_triton.experiments.studies.markdown import table
from spectral_triton.experiments.studies.reproduction import BudgetLine, Selection
from spectral_triton.experiments.studies.results import read_results
from spectral_triton.experiments.training.checkpoint import write_text
from spectral_triton.experiments.training.lock import locked
from spectral_triton.experiments.training.provenance import provenance

if TYPE_CHECKING:
    from spectral_triton.experiments.tasks.storage import DataFolder
    from spectral_triton.experiments.training.progress import ProgressReport

RESULTS, PAGE, NOTES = "results.jsonl", "README.md", "notes.md"

Result = dict[str, Any]


@dataclass(frozen=True)
class Surroundings:
    """What a measurement is given: data, device, and somebody to tell about every step."""

    data: DataFolder
    device: str
    report: ProgressReport


@dataclass(frozen=True)
class Measurement:
    """One line of results: who is measured, under what, how, and what it costs.

    ``measure`` returns what JSON can hold. Its numbers depend on the fields and nothing else.
    """

    model: str
    case: str
    seed: int
    measure: Callable[[Surroundings], dict[str, Any]]
    steps: int = 0
    minutes: float = 0.0

    @property
    def place(self) -> tuple[str, str, int]:
        """What tells it from the others."""
        return self.model, self.case, self.seed


class Investigation(ABC):
    """A reproduction that is a table of measurements; subclasses list them and write the text."""

    name: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def measurements(self) -> list[Measurement]:
        """All that is stored, in the order in which they run."""

    @abstractmethod
    def text(self, results: Sequence[Result], target: Path) -> list[str]:
        """Paragraphs of the page; the pictures they show are written to ``target``."""

    def selected(self, selection: Selection) -> list[Measurement]:
        """Those measurements that were asked for.

        Raises:
            UsageError: names a model or case that there is not.
        """
        if selection.search:
            raise UsageError(f"{self.name} has no search")
        everything = self.measurements()
        for field, asked in (("model", selection.models), ("case", selection.cases)):
            known = dict.fromkeys(getattr(m, field) for m in everything)
            for name in asked or ():
                if name not in known:
                    raise UsageError(
                        f"{self.name} has no {field} {name!r}: choose from {', '.join(known)}"
                    )
        return [
            m
            for m in everything
            if (selection.models is None or m.model in selection.models)
            and (selection.cases is None or m.case in selection.cases)
            and (selection.seeds is None or m.seed in selection.seeds)
        ]

    def budget(self, selection: Selection) -> list[BudgetLine]:
        """One line for each model."""
        rows: dict[str, list[Measurement]] = {}
        for measurement in self.selected(selection):
            rows.setdefault(measurement.model, []).append(measurement)
        return [
            BudgetLine(model, len(row), sum(m.steps for m in row), sum(m.minutes for m in row))
            for model, row in rows.items()
        ]

    def run(
        self, folder: Path, selection: Selection, data: DataFolder, report: ProgressReport
    ) -> list[str]:
        """Measures what is selected and not in ``folder/results.jsonl`` yet, line by line."""
        try:
            with locked(folder):
                return self._run(folder, selection, data, report)
        except FolderInUse as error:
            return [f"{self.name}: {error}"]

    def _run(
        self, folder: Path, selection: Selection, data: DataFolder, report: ProgressReport
    ) -> list[str]:
        import torch

        done = {_place(result) for result in read_results(folder / RESULTS, _place)}
        missing = [m for m in self.selected(selection) if m.place not in done]
        if selection.threads is not None:
            torch.set_num_threads(selection.threads)
        failures = []
        for measurement in missing:
            surroundings = Surroundings(data, selection.device, report)
            session = provenance(selection.device)  # Before: a commit may be made meanwhile.
            try:
                with torch.random.fork_rng():
                    values = measurement.measure(surroundings)
            except KeyboardInterrupt:
                raise Interrupted(f"{self.name} stopped; what was measured is kept") from None
            except (DataError, UsageError):
                raise
            except ExperimentError as error:
                failures.append(f"{self.name}/{'/'.join(map(str, measurement.place))}: {error}")
                continue
            names = ("model", "case", "seed")
            line = dict(zip(names, measurement.place, strict=True))
            line |= {**values, "session": session}
            with (folder / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return failures

    def write_page(self, folder: Path, target: Path) -> None:
        """README.md and pictures from the raw results in ``folder``, which are copied beside.

        What a person has to say about them is in ``notes.md`` there, and comes first.
        """
        order = {m.place: number for number, m in enumerate(self.measurements())}
        # Files from several machines, put together, may hold the same twice.
        known = {_place(r): r for r in read_results(folder / RESULTS, _place)}
        results = [known[place] for place in sorted(known.keys() & order, key=order.__getitem__)]
        lines = "".join(json.dumps(result) + "\n" for result in results)
        notes = target / NOTES
        parts = [
            f"# {self.title}",
            f"Made by `spectral-triton reproduce {self.name}` from [{RESULTS}]({RESULTS}).",
            *([notes.read_text(encoding="utf-8").strip()] if notes.is_file() else []),
            *(self.text(results, target) if results else ["Nothing was measured yet."]),
            *_sessions(results),
        ]
        # Not to the folder itself, to which another process may be adding.
        if target.resolve() != folder.resolve():
            write_text(target / RESULTS, lines)
        write_text(target / PAGE, "\n\n".join(parts) + "\n")


def _place(result: Mapping[str, Any]) -> tuple[str, str, int]:
    return result["model"], result["case"], result["seed"]


def _sessions(results: Sequence[Result]) -> list[str]:
    names = ("hardware", "threads", "torch", "commit", "date")
    rows = sorted({tuple(str(r["session"][name]) for name in names) for r in results})
    if not rows:
        return []
    seconds = sum(r.get("seconds", 0.0) for r in results)
    note = f"{seconds / 60:.1f} minutes in all; the machine had other work. " if seconds else ""
    return ["## Where and when", table(names, rows), f"{note}A + marks uncommitted changes."]
