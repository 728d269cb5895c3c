"""Which runs a study consists of, in which order, and when a task counts as solved."""

import pytest

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.studies.plan import Case, Goal, Recipe, Search
from spectral_triton.experiments.studies.reproduction import BudgetLine, Selection

LEAVES = [f"{model}/seed-{seed}" for seed in (0, 1) for model in ("spectral", "lstm")]


def test_seeds_come_before_models_so_that_one_seed_of_all_is_there_first(tiny_study):
    assert [job.folder.as_posix() for job in tiny_study().jobs(Selection())] == LEAVES


def test_selection(tiny_study):
    cases = {"short": Case({"length": 4}, 4), "long": Case({"length": 8}, 8)}
    study = tiny_study(cases=cases)
    chosen = Selection(models=["lstm"], seeds=[7], cases=["long"])
    assert [job.folder.as_posix() for job in study.jobs(chosen)] == ["long/lstm/seed-7"]
    with pytest.raises(UsageError, match="tiny has no model 'gru': choose from spectral, lstm"):
        study.jobs(Selection(models=["gru"]))
    with pytest.raises(UsageError, match="tiny has no case 'wide': choose from short, long"):
        study.jobs(Selection(cases=["wide"]))


def test_budget_counts_what_is_selected(tiny_study):
    cases = {"short": Case({"length": 4}, 4), "long": Case({"length": 8}, 8)}
    study = tiny_study(cases=cases)
    assert study.budget(Selection()) == [
        BudgetLine("spectral", 4, 24, pytest.approx(2 * 6 * 12 * 100 / 60e6)),
        BudgetLine("lstm", 4, 24, pytest.approx(2 * 6 * 12 * 200 / 60e6)),
    ]
    (line,) = study.budget(Selection(models=["lstm"], seeds=[0], cases=["long"], search=True))
    assert (line.runs, line.steps) == (2, 8)


def test_goals():
    assert Goal("mse", 0.1).reached(0.1)
    assert not Goal("mse", 0.1).reached(0.2)
    assert Goal("recall", 0.9, higher_is_better=True).reached(0.95)
    assert not Goal("recall", 0.9, higher_is_better=True).reached(0.8)


def test_recipes_are_laid_over_what_is_common(tiny_study):
    study = tiny_study(recipes={"lstm": Recipe({"hidden_size": 6}, 1)})
    assert study.jobs(Selection())[0].config.settings.hidden_size == 6


def test_search_on_folds_of_the_training_part(tiny_study):
    study = tiny_study(
        task="ucr",
        cases={name: Case({"dataset": name}, 4) for name in ("CBF", "Car")},
        search=Search(steps=4, evaluations=1, seed=100, folds=3),
    )
    jobs = study.jobs(Selection(models=["lstm"], cases=["Car"], search=True))
    assert [job.folder.as_posix() for job in jobs] == [
        f"search/Car/lstm/candidate-{number}/fold-{fold}" for number in (0, 1) for fold in (0, 1, 2)
    ]
    assert [(job.config.options["fold"], job.config.seed) for job in jobs[:3]] == [
        (0, 100),
        (1, 101),
        (2, 102),
    ]
    assert jobs[0].config.options["dataset"] == "Car"
