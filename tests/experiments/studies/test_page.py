import re
import shutil
from pathlib import Path
from statistics import fmean

import pytest
from PIL import Image

from spectral_triton.experiments.studies.markdown import number, spread
from spectral_triton.experiments.studies.page import write_page
from spectral_triton.experiments.studies.plan import Case, Published, Search
from spectral_triton.experiments.studies.recipes import REPRODUCTIONS
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.studies.results import collect, mean_ranks, read_results
from spectral_triton.experiments.tasks.storage import DataFolder


@pytest.fixture
def page(tmp_path, listener):
    """Runs a study, writes its page to another folder, gives page, results and that folder."""

    def make(study, *selections):
        for selection in selections or (Selection(),):
            study.run(tmp_path / "out", selection, DataFolder(tmp_path), listener())
        target = tmp_path / "page"
        target.mkdir()
        study.write_page(tmp_path / "out", target)
        return (target / "README.md").read_text(), read_results(target / "results.jsonl"), target

    return make


def cells(text, first, heading=""):
    """The cells of the row that begins with ``first``, after ``heading``."""
    rest = text[text.index(heading) :]
    line = next(line for line in rest.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_numbers_are_those_of_the_raw_results(tiny_study, page):
    text, results, target = page(tiny_study(published=(Published("theirs", "0.1", "a paper"),)))
    for model in ("spectral", "lstm"):
        mine = [r for r in results if r["model"] == model]
        values = [r["test"]["mse"] for r in mine]
        row = cells(text, model)
        assert row[:4] == [model, f"{mine[0]['parameters']:,}", "2", spread("mse", values)]
        assert row[4:7] == ["2 of 2", "2", "6"]
        for result in mine:
            row = cells(text, f"{model}, seed {result['seed']}")
            expected = result["validation"], result["test"]["mse"]
            assert row[1:3] == [number("mse", value) for value in expected]
    assert cells(text, "theirs") == ["theirs", "0.1", "a paper"]
    assert {path.name for path in target.iterdir()} == {"README.md", "results.jsonl", "curves.png"}
    Image.open(target / "curves.png").verify()


def test_page_can_be_made_again_from_the_raw_results_alone(tiny_study, page):
    study = tiny_study()
    text, _, target = page(study)
    before = (target / "results.jsonl").read_bytes()
    (target / "README.md").unlink()
    study.write_page(target, target)
    assert (target / "README.md").read_text() == text
    (target / "notes.md").write_text("It was easy.\n")
    study.write_page(target, target)
    assert "\n\nIt was easy.\n\n## Every run" in (target / "README.md").read_text()
    assert (target / "results.jsonl").read_bytes() == before


def test_published_results_are_kept_beside_those_of_other_runs(tiny_study, tmp_path, listener):
    study, target = tiny_study(), tmp_path / "page"
    target.mkdir()
    for folder, seed in (("one", 0), ("two", 1)):
        chosen = Selection(models=["lstm"], seeds=[seed])
        study.run(tmp_path / folder, chosen, DataFolder(tmp_path), listener())
        study.write_page(tmp_path / folder, target)
    assert [r["seed"] for r in read_results(target / "results.jsonl")] == [0, 1]
    assert cells((target / "README.md").read_text(), "lstm")[2] == "2"


def test_several_cases_are_ranked(tiny_study, page):
    cases = {name: Case({"length": length}, length) for name, length in (("one", 4), ("two", 6))}
    text, results, target = page(tiny_study(cases=cases, goal=None), Selection(seeds=[0]))
    values = {
        case: {r["model"]: r["test"]["mse"] for r in results if r["case"] == case} for case in cases
    }
    for case, row in values.items():
        best = min(row, key=row.get)
        printed = dict(zip(("spectral", "lstm"), cells(text, case)[1:], strict=True))
        assert printed[best] == f"**{number('mse', row[best])}**"
    ranks = mean_ranks({c: {m: -v for m, v in row.items()} for c, row in values.items()})
    assert cells(text, "mean rank")[1:] == [f"{ranks[m]:.2f}" for m in ("spectral", "lstm")]
    means = [number("mse", fmean(row[m] for row in values.values())) for m in ("spectral", "lstm")]
    assert cells(text, "mean mse")[1:] == means
    assert (target / "cases.png").is_file()


def test_unfinished_runs_have_no_test_result(tiny_study, page, tmp_path, listener):
    study = tiny_study()
    study.run(tmp_path / "out", Selection(), DataFolder(tmp_path), listener())
    (tmp_path / "out/lstm/seed-1/summary.json").unlink()
    target = tmp_path / "page"
    target.mkdir()
    write_page(study, collect(study, tmp_path / "out"), target)
    text = (target / "README.md").read_text()
    assert cells(text, "lstm, seed 1", "## Not finished")[1] == "6 of 6"
    assert cells(text, "lstm")[2] == "1"
    assert not re.search(r"\| lstm, seed 1", text[text.index("## Every run") :])


def test_one_model_is_ahead_of_nobody(tiny_study, page):
    cases = {"a": Case({"length": 4}, 4), "b": Case({"length": 5}, 5)}
    recipes = {"lstm": tiny_study().recipes["lstm"]}
    text, results, _ = page(tiny_study(cases=cases, recipes=recipes))
    mean = fmean(result["test"]["mse"] for result in results)
    assert cells(text, "mean mse") == ["mean mse", number("mse", mean)]
    assert "mean rank" not in text
    assert "best or equal" not in text
    assert "**" not in text[: text.index("## ")]


def test_search_log_marks_the_best_candidate(tiny_study, page):
    text, results, _ = page(tiny_study(), Selection(search=True))
    tried = {r["config"]["lr"]: r["validation"] for r in results if r["model"] == "lstm"}
    best = min(tried, key=tried.get)
    rows = re.findall(r"\| lstm \| lr (\S+) \| (\S+) \|", text)
    expected = {rate: number("mse", value) for rate, value in tried.items()}
    expected[best] = f"**{expected[best]}**"
    assert {float(rate): value for rate, value in rows} == expected
    assert "No run yet." in text


def test_search_on_folds_shows_the_mean_of_each_candidate(tiny_study, page, tiny_series, tmp_path):
    tiny_series.rename(tmp_path / "ucr")
    study = tiny_study(
        task="ucr",
        cases={"Tiny": Case({"dataset": "Tiny"}, 5)},
        goal=None,
        search=Search(steps=4, evaluations=1, folds=3),
    )
    text, results, _ = page(study, Selection(search=True))
    assert len(results) == 2 * 2 * 3
    assert "4 steps on each of 3 folds of the training part of 1 data sets" in text
    means = {
        rate: fmean(
            r["validation"] for r in results if r["model"] == "lstm" and r["config"]["lr"] == rate
        )
        for rate in (1e-3, 1e-2)
    }
    shown = dict(re.findall(r"\| lstm \| lr (\S+) \| \**([\d.]+) %", text))
    assert {float(rate): value for rate, value in shown.items()} == {
        rate: f"{100 * mean:.2f}" for rate, mean in means.items()
    }


PUBLISHED = Path(__file__).parents[3] / "perf" / "experiments"


@pytest.mark.parametrize("name", sorted(p.parent.name for p in PUBLISHED.glob("*/results.jsonl")))
def test_published_pages_are_those_of_their_raw_results(name, tmp_path):
    # If this fails: spectral-triton reproduce all --page-only --output perf/experiments
    published = PUBLISHED / name
    if (published / "notes.md").is_file():
        shutil.copy(published / "notes.md", tmp_path)
    REPRODUCTIONS[name].write_page(published, tmp_path)
    for file in ("README.md", "results.jsonl"):
        assert (tmp_path / file).read_text() == (published / file).read_text()
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in published.iterdir()}
