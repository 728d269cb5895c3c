import json
from functools import partial

import pytest

from spectral_triton.experiments.errors import DataError, Interrupted, TrainingStopped, UsageError
from spectral_triton.experiments.studies.investigation import (
    PAGE,
    RESULTS,
    Investigation,
    Measurement,
)
from spectral_triton.experiments.studies.markdown import table
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.training.lock import locked


class Squares(Investigation):
    """Squares of small numbers; what happens for 3 can be chosen."""

    name = "squares"
    title = "Squares"

    def __init__(self, third=None):
        self.third, self.calls = third, []

    def measurements(self):
        return [
            Measurement("square", str(n), seed, partial(self.square, n), 10, 0.5)
            for seed in (0, 1)
            for n in (2, 3)
        ] + [Measurement("cube", "2", 0, partial(self.square, 2), 1, 0.25)]

    def square(self, n, surroundings):
        self.calls.append(n)
        if n == 3 and self.third is not None:
            raise self.third
        return {"value": n * n, "device": surroundings.device, "seconds": 30.0}

    def text(self, results, target):
        (target / "picture.png").write_bytes(b"")
        return [table(["n", "value"], [[r["case"], str(r["value"])] for r in results])]


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(study, folder, **selection):
    return study.run(folder, Selection(**selection), None, None)


def test_results_are_kept_one_a_line(tmp_path):
    study = Squares()
    assert run(study, tmp_path) == []
    lines = [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()]
    assert [(r["model"], r["case"], r["seed"], r["value"]) for r in lines] == [
        ("square", "2", 0, 4),
        ("square", "3", 0, 9),
        ("square", "2", 1, 4),
        ("square", "3", 1, 9),
        ("cube", "2", 0, 4),
    ]
    assert all(r["device"] == "cpu" and r["session"]["hardware"] for r in lines)


def test_what_was_measured_is_not_measured_again(tmp_path):
    study = Squares()
    run(study, tmp_path, seeds=[1])
    assert study.calls == [2, 3]
    run(study, tmp_path)
    assert study.calls == [2, 3, 2, 3, 2]
    run(study, tmp_path)
    assert len(study.calls) == 5


def test_two_processes_do_not_measure_in_one_folder(tmp_path):
    study = Squares()
    with locked(tmp_path):
        assert run(study, tmp_path) == [f"squares: {tmp_path} is in use by another process"]
    assert study.calls == []
    assert run(study, tmp_path) == []


def test_a_failure_does_not_keep_the_rest_from_going_on(tmp_path):
    failures = run(Squares(TrainingStopped("burst")), tmp_path, models=["square"])
    assert failures == ["squares/square/3/0: burst", "squares/square/3/1: burst"]
    assert [r["value"] for r in read_lines(tmp_path / RESULTS)] == [4, 4]


@pytest.mark.parametrize(
    ("raised", "seen"), [(KeyboardInterrupt(), Interrupted), (DataError("gone"), DataError)]
)
def test_what_ends_a_run(tmp_path, raised, seen):
    with pytest.raises(seen):
        run(Squares(raised), tmp_path)
    assert [r["value"] for r in read_lines(tmp_path / RESULTS)] == [4]


def test_selection_and_budget():
    study = Squares()
    (square, cube) = study.budget(Selection())
    assert (square.what, square.runs, square.steps, square.minutes) == ("square", 4, 40, 2.0)
    assert (cube.what, cube.runs, cube.steps, cube.minutes) == ("cube", 1, 1, 0.25)
    (only,) = study.budget(Selection(models=["square"], cases=["3"], seeds=[0]))
    assert only.runs == 1


@pytest.mark.parametrize(
    ("selection", "match"),
    [
        ({"models": ["root"]}, "squares has no model 'root': choose from square, cube"),
        ({"cases": ["9"]}, "squares has no case '9': choose from 2, 3"),
        ({"search": True}, "squares has no search"),
    ],
)
def test_unknown_selections_are_named(selection, match):
    with pytest.raises(UsageError, match=match):
        Squares().budget(Selection(**selection))


def test_page_is_made_from_the_results_alone(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    target.mkdir()
    (target / "notes.md").write_text("Squares grow.\n")
    run(Squares(), source, models=["cube"])
    run(Squares(), source)
    Squares().write_page(source, target)
    page = (target / PAGE).read_text()
    assert page.startswith("# Squares\n\nMade by `spectral-triton reproduce squares`")
    assert "\n\nSquares grow.\n\n| n | value |\n" in page
    assert "| 2 | 4 |\n| 3 | 9 |" in page
    assert "2.5 minutes in all" in page
    # In the order of the measurements, whatever the order of the runs was.
    assert [r["model"] for r in read_lines(target / RESULTS)] == ["square"] * 4 + ["cube"]
    assert (target / "picture.png").exists()
    again = tmp_path / "c"
    again.mkdir()
    (again / "notes.md").write_text("Squares grow.")
    Squares().write_page(target, again)
    assert (again / PAGE).read_text() == page


def test_a_measurement_that_is_there_twice_counts_once(tmp_path):
    run(Squares(), tmp_path)
    lines = (tmp_path / RESULTS).read_text()
    with (tmp_path / RESULTS).open("a") as file:
        file.write(lines)
    (tmp_path / "page").mkdir()
    Squares().write_page(tmp_path, tmp_path / "page")
    assert (tmp_path / "page" / RESULTS).read_text() == lines


def test_a_page_does_not_take_away_what_another_process_measured_meanwhile(tmp_path):
    class Slow(Squares):
        def text(self, results, target):
            with (tmp_path / RESULTS).open("a") as file:
                file.write(json.dumps({**results[0], "seed": 1}) + "\n")
            return super().text(results, target)

    run(Squares(), tmp_path, seeds=[0], cases=["2"], models=["square"])
    Slow().write_page(tmp_path, tmp_path)
    assert [line["seed"] for line in read_lines(tmp_path / RESULTS)] == [0, 1]


def test_page_of_nothing(tmp_path):
    Squares().write_page(tmp_path, tmp_path)
    assert "Nothing was measured yet." in (tmp_path / PAGE).read_text()


@pytest.mark.parametrize("line", ["{", '{"model": "square"}', "[]"])
def test_damaged_results_name_their_line(tmp_path, line):
    run(Squares(), tmp_path, models=["cube"])
    with (tmp_path / RESULTS).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"results\.jsonl is damaged: line 2"):
        Squares().write_page(tmp_path, tmp_path)
