"""Models compared on one task, or on several cases of it, over several seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectral_triton.experiments.config import RunConfig, make_config
from spectral_triton.experiments.errors import (
    DataError,
    ExperimentError,
    FolderInUse,
    Interrupted,
    TrainingStopped,
    UsageError,
)
from spectral_triton.experiments.progress import ProgressReport
from spectral_triton.experiments.provenance import provenance
from spectral_triton.experiments.reproduction import BudgetLine, Selection
from spectral_triton.experiments.run_folder import RunFolder
from spectral_triton.experiments.storage import DataFolder

RECORD = "reproduction.json"
SEARCH = "search"


@dataclass(frozen=True)
class Case:
    """One variant of a task: its options, and how many steps a sequence has there."""

    options: Mapping[str, Any]
    length: int


@dataclass(frozen=True)
class Recipe:
    """Settings of one model, and what a step of a sequence costs on one CPU core.

    ``candidates`` are the settings tried in the search; each is laid over ``settings``.
    """

    settings: Mapping[str, Any]
    microseconds: float
    candidates: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Goal:
    """When a run counts as having solved the task: a validation result beyond a value."""

    result: str
    value: float
    higher_is_better: bool = False

    def reached(self, value: float) -> bool:
        """Whether ``value`` is beyond the goal."""
        return value >= self.value if self.higher_is_better else value <= self.value


@dataclass(frozen=True)
class Published:
    """A number somebody reported, to be read beside ours."""

    what: str
    value: str
    source: str


@dataclass(frozen=True)
class Search:
    """How candidates are compared: on validation data, each with the same few steps."""

    steps: int
    evaluations: int = 20
    seed: int = 100
    cases: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Study:
    """A reproduction made of ordinary runs, one folder ``[case/]model/seed-s`` for each.

    Args:
        name: What the command line calls it.
        title: A line for people.
        task: A key of ``TASKS``.
        cases: Variants of the task by name; a single one needs no name ("").
        recipes: Settings by model.
        seeds: What the runs are repeated with.
        steps: Optimizer steps of each run.
        goal: When a run has solved the task.
        also: Test results to show beside the task's metric.
        published: Numbers of others.
        search: How ``candidates`` of the recipes are compared.
        common: Settings of all models, under those of the recipes.
    """

    name: str
    title: str
    task: str
    cases: Mapping[str, Case]
    recipes: Mapping[str, Recipe]
    steps: int
    seeds: tuple[int, ...] = (0, 1, 2)
    goal: Goal | None = None
    also: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    search: Search | None = None
    common: Mapping[str, Any] = field(default_factory=dict)

    def budget(self, selection: Selection) -> list[BudgetLine]:
        """Runs, steps and minutes of each model that is selected."""
        lines = []
        for model in self._models(selection):
            jobs = [job for job in self.jobs(selection) if job.config.model == model]
            steps = sum(job.config.settings.total_steps(None) for job in jobs)
            cost = self.recipes[model].microseconds / 60e6
            minutes = sum(
                job.config.settings.total_steps(None) * self.cases[job.case].length * cost
                for job in jobs
            )
            lines.append(BudgetLine(model, len(jobs), steps, minutes))
        return lines

    def jobs(self, selection: Selection) -> list[Job]:
        """The runs that are selected, all models and cases of one seed before the next seed.

        Raises:
            UsageError: names a model or case that this study does not have.
        """
        cases = self._cases(selection)
        if selection.search:
            return list(self._search_jobs(selection, cases))
        return [
            Job(
                Path(case) / model / f"seed-{seed}",
                case,
                self._config(case, model, seed, {}, selection),
            )
            for seed in (self.seeds if selection.seeds is None else selection.seeds)
            for case in cases
            for model in self._models(selection)
        ]

    def _search_jobs(self, selection: Selection, cases: Sequence[str]) -> Iterator[Job]:
        search = self.search
        if search is None:
            raise UsageError(f"{self.name} has no search: its settings are those of the task")
        for case in cases:
            if search.cases is not None and case not in search.cases:
                continue
            for model in self._models(selection):
                for number, candidate in enumerate(self.recipes[model].candidates):
                    changes = {**candidate, "steps": search.steps}
                    changes["evaluations"] = search.evaluations
                    folder = Path(SEARCH) / case / model / f"candidate-{number}"
                    config = self._config(case, model, search.seed, changes, selection)
                    yield Job(folder, case, config)

    def _config(
        self, case: str, model: str, seed: int, changes: Mapping[str, Any], selection: Selection
    ) -> RunConfig:
        overrides = {
            "steps": self.steps,
            **self.common,
            **self.recipes[model].settings,
            **changes,
        }
        return make_config(
            self.task,
            model,
            options=self.cases[case].options,
            overrides=overrides,
            seed=seed,
            device=selection.device,
            threads=selection.threads,
        )

    def _models(self, selection: Selection) -> list[str]:
        return _chosen(selection.models, self.recipes, f"{self.name} has no model")

    def _cases(self, selection: Selection) -> list[str]:
        return _chosen(selection.cases, self.cases, f"{self.name} has no case")

    def run(
        self, folder: Path, selection: Selection, data: DataFolder, report: ProgressReport
    ) -> list[str]:
        """Runs what is selected and not finished yet; returns what went wrong on the way.

        A run that another process is at is passed over, and said so at the end.

        Raises:
            UsageError: if a run's folder holds other settings, before anything is run.
            Interrupted: at Ctrl-C, after saving.
        """
        jobs = self.jobs(selection)
        for job in jobs:
            RunFolder(folder / job.folder).check(job.config, resume=True)
        failures = []
        for job in jobs:
            try:
                job.run(folder, data, report)
            except (Interrupted, UsageError):
                raise
            except ExperimentError as error:
                failures.append(f"{self.name}/{job.folder}: {error}")
                if isinstance(error, DataError):
                    break
        return failures

    def write_page(self, folder: Path, target: Path) -> None:
        """README.md, results.jsonl and pictures of everything found in ``folder`` or ``target``.

        A ``notes.md`` in ``target`` becomes part of the page.
        """
        from spectral_triton.experiments.page import write_page
        from spectral_triton.experiments.results import collect

        write_page(self, collect(self, folder, target), target)


@dataclass(frozen=True)
class Job:
    """One run, and the folder it has below that of its study."""

    folder: Path
    case: str
    config: RunConfig

    def run(self, root: Path, data: DataFolder, report: ProgressReport) -> None:
        """Begins, continues or skips the run; keeps beside it where and when it was made."""
        import torch

        from spectral_triton.experiments.training import Training

        folder = RunFolder(root / self.folder)
        record = folder.path / RECORD
        if folder.summary_file.is_file() and record.is_file():
            return
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        task = self.config.build_task(data)
        earlier = (folder.read_json(record) or {}).get("sessions", [])
        # Before the run: while it goes on, a commit may be made that it knows nothing of.
        sessions = [*earlier, provenance(self.config.device)]
        kept = {"metric": dataclasses.asdict(task.metric), "failure": None, "sessions": sessions}
        try:
            Training(self.config, task, folder, report).run()
        except FolderInUse:
            raise
        except BaseException as error:
            if folder.config_file.is_file():
                folder.write_json(record, {**kept, "failure": _failure(error)})
            raise
        folder.write_json(record, kept)


def _failure(error: BaseException) -> str | None:
    if isinstance(error, TrainingStopped):
        return error.reason
    known = isinstance(error, ExperimentError) and not isinstance(error, Interrupted)
    return str(error) if known else None


def _chosen(asked: Sequence[str] | None, known: Iterable[str], message: str) -> list[str]:
    known = list(known)
    if asked is None:
        return known
    for name in asked:
        if name not in known:
            # A single case has no name.
            choice = f": choose from {', '.join(known)}" if any(known) else ""
            raise UsageError(f"{message} {name!r}{choice}")
    return [name for name in known if name in asked]
