"""The page of a study: README.md, raw results and pictures, made from the raw results alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from spectral_triton.experiments.studies.markdown import duration, number, spread, table
from spectral_triton.experiments.studies.plan import Plan
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.studies.results import (
    RESULTS,
    Result,
    case_means,
    mean_ranks,
    result_of,
    write_results,
)
from spectral_triton.experiments.tasks.task import Metric
from spectral_triton.experiments.training import plots
from spectral_triton.experiments.training.checkpoint import write_text

PAGE, NOTES, CURVES, CASES = "README.md", "notes.md", "curves.png", "cases.png"
IDENTITY = ("task", "model", "seed", "device", "dtype", "threads", "dataset")
"""What a run's configuration holds beside its settings."""


def write_page(study: Plan, results: Sequence[Result], target: Path) -> None:
    """Writes the page of ``results`` to ``target``, with the results themselves.

    What a person has to say about them is in ``notes.md`` there, and is put below the table.
    """
    write_results(target / RESULTS, results)
    runs = [r for r in results if r["candidate"] is None]
    tried = [r for r in results if r["candidate"] is not None]
    parts = [f"# {study.title}", _introduction(study)]
    if not runs:
        parts.append("No run yet.")
    elif len(study.cases) == 1:
        parts += _single(study, runs, target)
    else:
        parts += _several(study, runs, target)
    notes = target / NOTES
    parts += [notes.read_text(encoding="utf-8").strip()] if notes.is_file() else []
    parts += [*_unfinished(runs), *_published(study), *_each(study, runs)]
    parts += [*_settings(runs), *_search(study, tried), *_sessions(results), _again(study)]
    text = "\n\n".join(parts) + "\n"
    write_text(target / PAGE, text)


def _introduction(study: Plan) -> str:
    text = (
        f"Made by `spectral-triton reproduce {study.name}` from the raw results in "
        f"[{RESULTS}]({RESULTS}). Test results are those of the checkpoint that was best on "
        "validation data, or of the last one where there are none to spare."
    )
    if study.goal is not None:
        sign = "at least" if study.goal.higher_is_better else "at most"
        value = number(study.goal.result, study.goal.value)
        text += f" Solved means a validation {study.goal.result} of {sign} {value}."
    return text


def _single(study: Plan, runs: Sequence[Result], target: Path) -> list[str]:
    metric = Metric(**runs[0]["metric"])
    curves = {}
    for model in study.recipes:
        mine = [r for r in runs if r["model"] == model and r["curve"]]
        done = [r for r in mine if r["finished"]]
        if mine:
            curves[model] = [[tuple(point) for point in r["curve"]] for r in done or mine]
    parts = []
    if curves:
        plots.comparison(target / CURVES, study.title, metric, curves, "validation")
        parts.append(f"![Validation {metric.label} during training]({CURVES})")
    also = [name for name in study.also if name != metric.name]
    header = ["model", "parameters", "seeds", f"test {metric.name}", *(f"test {a}" for a in also)]
    if study.goal is not None:
        header += ["solved", "steps to solve"]
    rows = []
    for model in study.recipes:
        done = [r for r in runs if r["model"] == model and r["finished"]]
        if not done:
            continue
        row = [model, f"{done[0]['parameters']:,}", str(len(done))]
        row += [spread(name, [result_of(r, name) for r in done]) for name in (metric.name, *also)]
        if study.goal is not None:
            steps = [r["solved_step"] for r in done if r["solved_step"] is not None]
            row += [f"{len(steps)} of {len(done)}", f"{median(steps):,.0f}" if steps else "never"]
        rows.append([*row, f"{done[0]['step']:,}", duration(fmean(r["seconds"] for r in done))])
    if rows:
        parts.append(table([*header, "steps", "time of a run"], rows))
        baseline = number(metric.name, metric.baseline)
        seeds = "Mean over the seeds (lowest to highest)"
        if study.goal is not None:
            seeds += ", steps to solve the median of those that did"
        parts.append(f"{seeds}; {metric.baseline_label}: {baseline}.")
    return parts


def _several(study: Plan, runs: Sequence[Result], target: Path) -> list[str]:
    metric = Metric(**runs[0]["metric"])
    values = case_means(runs)
    if not values:
        return ["No run is finished yet."]
    models = [m for m in study.recipes if any(m in row for row in values.values())]
    sign = 1 if metric.higher_is_better else -1
    ranks = mean_ranks({c: {m: sign * v for m, v in row.items()} for c, row in values.items()})
    best_of = max if metric.higher_is_better else min
    complete = [row for row in values.values() if len(row) == len(models)]
    rows = []
    for case, row in values.items():
        best = best_of(row.values())
        cells = {m: number(metric.name, value) for m, value in row.items()}
        if len(models) > 1:
            cells |= {m: f"**{cells[m]}**" for m, value in row.items() if value == best}
        rows.append([case, *(cells.get(m, "-") for m in models)])
    head = []
    if complete:
        means = [fmean(row[m] for row in complete) for m in models]
        wins = [sum(row[m] == best_of(row.values()) for row in complete) for m in models]
        head = [
            ["mean rank", *(f"{ranks[m]:.2f}" for m in models)],
            [f"mean {metric.name}", *(number(metric.name, mean) for mean in means)],
            ["best or equal", *map(str, wins)],
        ]
        if len(models) == 1:  # Ahead of nobody.
            head = head[1:2]
    sizes = []
    for model in models:
        counts = [r["parameters"] for r in runs if r["model"] == model and r["finished"]]
        sizes.append(f"{min(counts):,} to {max(counts):,}" if len(counts) > 1 else f"{counts[0]:,}")
    seeds = len({r["seed"] for r in runs if r["finished"]})
    plots.cases(target / CASES, study.title, metric, values)
    return [
        f"![Test {metric.label} of every data set]({CASES})",
        table(["", *models], [*head, ["parameters", *sizes]]),
        f"Over {len(complete)} data set{'s' * (len(complete) != 1)} that all models have finished, "
        f"{seeds} seed{'s' * (seeds > 1)}.",
        table([f"test {metric.name}", *models], rows),
    ]


def _unfinished(runs: Sequence[Result]) -> list[str]:
    rows = [
        [
            _name(r),
            f"{r['step']:,} of {r['config']['steps']:,}",
            number(r["metric"]["name"], r["curve"][-1][1]) if r["curve"] else "-",
            r["failure"] or "stopped; the same command continues it",
        ]
        for r in runs
        if not r["finished"]
    ]
    if not rows:
        return []
    return ["## Not finished", table(["run", "steps", "last validation result", "why"], rows)]


def _published(study: Plan) -> list[str]:
    if not study.published:
        return []
    rows = [[p.what, p.value, p.source] for p in study.published]
    return ["## What others report", table(["model", "result", "source"], rows)]


def _each(study: Plan, runs: Sequence[Result]) -> list[str]:
    done = [r for r in runs if r["finished"]]
    if not done or len(study.cases) > 1:
        return []
    metric = done[0]["metric"]["name"]
    rows = []
    for r in done:
        best = "-" if r["validation"] is None else number(metric, r["validation"])
        row = [_name(r), best, number(metric, result_of(r)), f"{r['tested_step']:,}"]
        if study.goal is not None:
            row.append("never" if r["solved_step"] is None else f"{r['solved_step']:,}")
        row.append(f"{1e3 * r['seconds'] / r['timed_steps']:.1f}" if r["timed_steps"] else "-")
        rows.append(row)
    header = ["run", f"validation {metric}", f"test {metric}", "at step"]
    header += ["solved at"] * (study.goal is not None)
    return ["## Every run", table([*header, "ms a step"], rows)]


def _settings(runs: Sequence[Result]) -> list[str]:
    rows: dict[str, dict[str, None]] = {}
    for r in runs:
        rows.setdefault(r["model"], {})[_described(r["config"])] = None
    if not rows:
        return []
    lines = [[model, text] for model, texts in rows.items() for text in texts]
    return ["## Settings", table(["model", "settings"], lines)]


def _described(config: dict[str, Any], only: Iterable[str] | None = None) -> str:
    chosen = config.keys() - set(IDENTITY) if only is None else set(only)
    return ", ".join(
        f"{name} {_value(value)}"
        for name, value in config.items()
        if name in chosen and value is not None
    )


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _search(study: Plan, tried: Sequence[Result]) -> list[str]:
    done = [r for r in tried if r["finished"] and r["validation"] is not None]
    if not done:
        return []
    metric = Metric(**done[0]["metric"])
    rows = []
    for model in study.recipes:
        scores: dict[str, list[float]] = {}
        for r in done:
            if r["model"] == model:
                candidates = study.recipes[model].candidates
                names = dict.fromkeys(name for c in candidates for name in c)
                scores.setdefault(_described(r["config"], names), []).append(r["validation"])
        means = {text: fmean(values) for text, values in scores.items()}
        best = (max if metric.higher_is_better else min)(means.values(), default=None)
        for text, value in means.items():
            cell = number(metric.name, value)
            rows.append([model, text, f"**{cell}**" if value == best else cell])
    steps, cases = done[0]["config"]["steps"], sorted({r["case"] for r in done})
    where = f" on {', '.join(cases)}" if cases != [""] else ""
    how = (
        f"Every candidate had {steps:,} steps{where} with seed {done[0]['seed']}; the best "
        f"validation {metric.name} during the run, its mean where there are several data sets."
    )
    if study.search is not None and study.search.folds is not None:
        how = (
            f"Every candidate had {steps:,} steps on each of {study.search.folds} folds of the "
            f"training part of {len(cases)} data sets; the mean validation {metric.name}."
        )
    return [
        "## Search",
        how,
        table(["model", "candidate", f"validation {metric.name}"], rows),
    ]


def _sessions(results: Sequence[Result]) -> list[str]:
    sessions = {
        tuple(s[name] for name in ("hardware", "threads", "torch", "commit", "date"))
        for r in results
        for s in r["sessions"]
    }
    if not sessions:
        return []
    rows = [[str(value) for value in session] for session in sorted(sessions, key=str)]
    header = ["hardware", "threads", "torch", "commit", "date"]
    return [
        "## Where and when",
        table(header, rows),
        "Times are those of a machine that may have had other work: compare results and steps.",
    ]


def _again(study: Plan) -> str:
    lines = study.budget(Selection())
    minutes = sum(line.minutes for line in lines)
    return (
        f"## Again\n\n```bash\nspectral-triton reproduce {study.name}\n```\n\n"
        f"{sum(line.runs for line in lines)} runs, about {minutes:,.0f} minutes on one CPU core; "
        "`--models` and `--seeds` choose some, the same command goes on where it was stopped."
    )


def _name(result: Result) -> str:
    case = f"{result['case']}, " if result["case"] else ""
    return f"{case}{result['model']}, seed {result['seed']}"
