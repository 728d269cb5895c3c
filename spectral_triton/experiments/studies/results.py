"""Raw results of a study, one JSON object a run, and the numbers its page is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from spectral_triton.experiments.errors import DataError
from spectral_triton.experiments.former_names import current_result
from spectral_triton.experiments.studies.plan import CANDIDATE, RECORD, SEARCH, Goal, Plan
from spectral_triton.experiments.training.checkpoint import write_text
from spectral_triton.experiments.training.run_folder import RunFolder

RESULTS = "results.jsonl"

Result = dict[str, Any]


def collect(study: Plan, folder: Path, published: Path | None = None) -> list[Result]:
    """All runs found below ``folder``, and those in its ``results.jsonl`` that are not there.

    Results that only ``published`` has in its own ``results.jsonl`` are kept as well. Sorted by
    search, case, model and seed, so that the same runs give the same file.

    Raises:
        DataError: if ``results.jsonl`` is damaged.
    """
    places = [place for place in (published, folder) if place is not None]
    known = [result for place in places for result in read_results(place / RESULTS)]
    found = {_place(result): result for result in known}
    for record in sorted(folder.rglob(RECORD)):
        run = RunFolder(record.parent)
        result = _result(study, run, record.parent.relative_to(folder))
        found[_place(result)] = result
    models, cases = list(study.recipes), list(study.cases)
    return sorted(
        (r for r in found.values() if r["model"] in models and r["case"] in cases),
        key=lambda r: (
            -1 if r["candidate"] is None else r["candidate"],
            cases.index(r["case"]),
            models.index(r["model"]),
            r["seed"],
        ),
    )


def _place(result: Result) -> tuple[Any, ...]:
    return tuple(result[name] for name in ("case", "model", "seed", "candidate"))


def _result(study: Plan, run: RunFolder, place: Path) -> Result:
    parts = [part for part in place.parts if part != SEARCH]
    candidate = next((part for part in parts if part.startswith(CANDIDATE)), None)
    record = run.read_json(run.path / RECORD) or {}
    config = run.config() or {}
    summary = run.read_json(run.summary_file)
    metrics = run.metrics()
    metric = record["metric"]["name"]
    validation = [r for r in metrics if r["kind"] == "validation"]
    searched = SEARCH in place.parts
    return {
        "study": study.name,
        "case": parts[0] if parts[0] in study.cases else "",
        "model": config["model"],
        "seed": config["seed"],
        "candidate": None if candidate is None else int(candidate.removeprefix(CANDIDATE)),
        "finished": summary is not None,
        "failure": record["failure"],
        "step": metrics[-1]["step"] if metrics else 0,
        "solved_step": None if study.goal is None else solved_step(validation, study.goal),
        "curve": [] if searched else [[r["step"], _short(r[metric])] for r in validation],
        **{name: (summary or {}).get(name) for name in SUMMARY},
        "metric": record["metric"],
        "config": config,
        "sessions": record["sessions"],
    }


SUMMARY = ("parameters", "tested_step", "validation", "test", "last_test", "seconds", "timed_steps")


def _short(value: float) -> float:
    # Enough for a picture, at a third of the length in the file.
    return float(f"{value:.6g}")


def solved_step(validation: Iterable[Mapping[str, Any]], goal: Goal) -> int | None:
    """The first step whose validation result is beyond the goal."""
    return next((r["step"] for r in validation if goal.reached(r[goal.result])), None)


def read_results(path: Path, place: Callable[[Result], object] = _place) -> list[Result]:
    """The objects of a JSONL file; none where there is no file.

    Raises:
        DataError: if a line is no object with what ``place`` reads; names it.
    """
    results: list[Result] = []
    if not path.is_file():
        return results
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            result = json.loads(line)
            place(result)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: line {number}: {error}") from error
        results.append(current_result(result))
    return results


def write_results(path: Path, results: Sequence[Result]) -> None:
    """One line for each run."""
    write_text(path, "".join(json.dumps(result) + "\n" for result in results))


def result_of(result: Result, name: str | None = None) -> float:
    """A finished run's result on test data, by default that of its task's metric."""
    return result["test"][name or result["metric"]["name"]]


def case_means(results: Iterable[Result]) -> dict[str, dict[str, float]]:
    """{case: {model: mean test result over its finished seeds}}, in the order of the results."""
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        if result["finished"]:
            row = values.setdefault(result["case"], {})
            row.setdefault(result["model"], []).append(result_of(result))
    return {
        case: {model: fmean(found) for model, found in row.items()} for case, row in values.items()
    }


def mean_ranks(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean rank of each model over the rows of {case: {model: accuracy}} that have all models.

    Rank 1 is the highest accuracy; equal ones share the mean of their ranks.

    Example:
        >>> mean_ranks({"a": {"x": 0.9, "y": 0.8}, "b": {"x": 0.5, "y": 0.5}})
        {'x': 1.25, 'y': 1.75}
    """
    models = list(dict.fromkeys(model for row in table.values() for model in row))
    values = np.array(
        [[row[m] for m in models] for row in table.values() if len(row) == len(models)]
    )
    if values.size == 0:
        return {}
    better = (values[:, None, :] > values[:, :, None]).sum(-1)
    equal = (values[:, None, :] == values[:, :, None]).sum(-1)
    ranks = better + (equal + 1) / 2
    return dict(zip(models, ranks.mean(0).tolist(), strict=True))
