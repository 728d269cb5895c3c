import json
import shutil

import pytest

from spectral_triton.experiments.errors import DataError
from spectral_triton.experiments.studies.plan import Goal
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.studies.results import (
    RESULTS,
    case_means,
    collect,
    mean_ranks,
    read_results,
    result_of,
    solved_step,
    write_results,
)
from spectral_triton.experiments.tasks.storage import DataFolder


@pytest.fixture
def finished(tiny_study, tmp_path, listener):
    """A study, and the folder it was run in with a search."""
    study = tiny_study()
    for search in (False, True):
        study.run(tmp_path / "out", Selection(search=search), DataFolder(tmp_path), listener())
    return study, tmp_path / "out"


def test_results_are_what_the_run_folders_say(finished):
    study, folder = finished
    results = collect(study, folder)
    runs = [r for r in results if r["candidate"] is None]
    places = [(r["model"], r["seed"]) for r in runs]
    assert places == [("spectral", 0), ("spectral", 1), ("lstm", 0), ("lstm", 1)]
    for result in runs:
        leaf = folder / result["model"] / f"seed-{result['seed']}"
        summary = json.loads((leaf / "summary.json").read_text())
        assert result["test"] == summary["test"]
        assert result_of(result) == summary["test"]["mse"]
        assert result["parameters"] == summary["parameters"]
        lines = [json.loads(line) for line in (leaf / "metrics.jsonl").read_text().splitlines()]
        curve = [(r["step"], r["mse"]) for r in lines if r["kind"] == "validation"]
        assert [step for step, _ in curve] == [2, 4, 6]
        assert [tuple(point) for point in result["curve"]] == [
            (step, pytest.approx(value, rel=1e-5)) for step, value in curve
        ]
        assert result["solved_step"] == 2
    candidates = [(r["model"], r["candidate"]) for r in results if r["candidate"] is not None]
    assert candidates == [("spectral", 0), ("lstm", 0), ("spectral", 1), ("lstm", 1)]


def test_results_outlive_the_run_folders(finished, tmp_path):
    study, folder = finished
    results = collect(study, folder)
    write_results(folder / RESULTS, results)
    shutil.rmtree(folder / "lstm")
    assert collect(study, folder) == results
    write_results(tmp_path / RESULTS, results)
    assert collect(study, tmp_path) == results


def test_runs_replace_older_results(finished):
    study, folder = finished
    results = collect(study, folder)
    old = [{**r, "step": 1, "finished": False} for r in results]
    write_results(folder / RESULTS, old)
    assert collect(study, folder) == results


def test_damaged_results_are_named(tmp_path):
    path = tmp_path / RESULTS
    assert read_results(path) == []
    for line in ("{", "[1]", '{"case": ""}'):
        path.write_text(line + "\n")
        with pytest.raises(DataError, match=r"results\.jsonl is damaged: line 1"):
            read_results(path)


def test_solved_step_is_the_first_beyond_the_goal():
    records = [{"step": s, "mse": v} for s, v in ((1, 0.5), (2, 0.1), (3, 0.3), (4, 0.05))]
    assert solved_step(records, Goal("mse", 0.1)) == 2
    assert solved_step(records, Goal("mse", 0.01)) is None


def test_case_means_are_over_finished_seeds():
    def result(case, model, value, finished=True):
        return {
            "case": case,
            "model": model,
            "finished": finished,
            "metric": {"name": "mse"},
            "test": {"mse": value},
        }

    results = [
        result("a", "x", 1.0),
        result("a", "x", 2.0),
        result("a", "y", 5.0),
        result("b", "x", 9.0, finished=False),
    ]
    assert case_means(results) == {"a": {"x": 1.5, "y": 5.0}}


def test_mean_ranks_share_ties_and_leave_out_incomplete_rows():
    table = {
        "a": {"x": 0.9, "y": 0.5, "z": 0.5},
        "b": {"x": 0.1, "y": 0.2, "z": 0.3},
        "c": {"x": 1.0},
    }
    assert mean_ranks(table) == {"x": 2.0, "y": 2.25, "z": 1.75}
    assert mean_ranks({"c": {"x": 1.0}, "d": {"y": 1.0}}) == {}
