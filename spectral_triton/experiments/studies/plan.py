"""What a study runs: models with their settings, cases, seeds, and when a task counts as solved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.studies.reproduction import BudgetLine, Selection
from spectral_triton.experiments.training.config import RunConfig, make_config

RECORD = "reproduction.json"
SEARCH = "search"
CANDIDATE = "candidate-"


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
    """How candidates are compared: on validation data, each with the same few steps.

    With ``folds``, a run for each value of the task's option ``fold``, and a seed for each.
    """

    steps: int
    evaluations: int = 20
    seed: int = 100
    cases: tuple[str, ...] | None = None
    folds: int | None = None


@dataclass(frozen=True)
class Plan:
    """The runs of a study, ordinary ones, one folder ``[case/]model/seed-s`` for each.

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
                    folder = Path(SEARCH) / case / model / f"{CANDIDATE}{number}"
                    if search.folds is None:
                        config = self._config(case, model, search.seed, changes, selection)
                        yield Job(folder, case, config)
                        continue
                    for fold in range(search.folds):
                        options, seed = {"fold": fold}, search.seed + fold
                        config = self._config(case, model, seed, changes, selection, options)
                        yield Job(folder / f"fold-{fold}", case, config)

    def _config(
        self,
        case: str,
        model: str,
        seed: int,
        changes: Mapping[str, Any],
        selection: Selection,
        options: Mapping[str, Any] = MappingProxyType({}),
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
            options={**self.cases[case].options, **options},
            overrides=overrides,
            seed=seed,
            device=selection.device,
            threads=selection.threads,
        )

    def _models(self, selection: Selection) -> list[str]:
        return _chosen(selection.models, self.recipes, f"{self.name} has no model")

    def _cases(self, selection: Selection) -> list[str]:
        return _chosen(selection.cases, self.cases, f"{self.name} has no case")


@dataclass(frozen=True)
class Job:
    """One run, and the folder it has below that of its study."""

    folder: Path
    case: str
    config: RunConfig


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
