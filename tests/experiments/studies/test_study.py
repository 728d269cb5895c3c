import json

import pytest
import torch

from spectral_triton.experiments.errors import Interrupted, TrainingStopped, UsageError
from spectral_triton.experiments.studies import study
from spectral_triton.experiments.studies.plan import RECORD, Case
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.training.lock import LOCK, locked

LEAVES = [f"{model}/seed-{seed}" for seed in (0, 1) for model in ("spectral", "lstm")]


@pytest.fixture
def run(tmp_path, listener):
    """Runs a study in a folder below tmp_path; gives its failures."""

    def call(study, selection=None, *, folder="out", report=None):
        torch.set_num_threads(1)
        selection, report = selection or Selection(), report or listener()
        return study.run(tmp_path / folder, selection, DataFolder(tmp_path), report)

    return call


def files(folder, name):
    return {p.parent.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob(name)}


def test_every_run_is_an_ordinary_run_folder(tiny_study, run, tmp_path):
    assert run(tiny_study()) == []
    summaries = files(tmp_path / "out", "summary.json")
    assert sorted(summaries) == sorted(LEAVES)
    config = json.loads((tmp_path / "out/spectral/seed-1/config.json").read_text())
    expected = {"margin": 0.5, "hidden_size": 4, "steps": 6, "seed": 1, "threads": 1, "length": 4}
    assert {name: config[name] for name in expected} == expected
    record = json.loads((tmp_path / "out/lstm/seed-0" / RECORD).read_text())
    assert record["metric"]["name"] == "mse"
    assert record["failure"] is None
    assert [session["torch"] for session in record["sessions"]] == [torch.__version__]


def test_interrupted_reproduction_gives_the_numbers_of_an_uninterrupted_one(
    tiny_study, run, tmp_path, listener
):
    class Stopping(listener):
        """Sends Ctrl-C to the second run."""

        def advance(self, step, loss):
            import os
            import signal

            super().advance(step, loss)
            if self.begun[0] == "lstm-seed0" and step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    run(tiny_study(), folder="whole")
    with pytest.raises(Interrupted, match="stopped at step 3 of 6"):
        run(tiny_study(), report=Stopping())
    assert sorted(files(tmp_path / "out", "summary.json")) == ["spectral/seed-0"]
    begun = []

    class Watching(listener):
        def begin(self, label, total, done):
            super().begin(label, total, done)
            begun.append((label, done))

    assert run(tiny_study(), report=Watching()) == []
    assert begun == [("lstm-seed0", 3), ("spectral-seed1", 0), ("lstm-seed1", 0)]
    assert files(tmp_path / "out", "metrics.jsonl") == files(tmp_path / "whole", "metrics.jsonl")
    record = json.loads((tmp_path / "out/lstm/seed-0" / RECORD).read_text())
    assert len(record["sessions"]) == 2


def test_a_run_that_diverges_does_not_stop_the_others(tiny_study, run, tmp_path, monkeypatch):
    from spectral_triton.experiments.training.training import Training

    whole = Training.run

    def diverging(self):
        if self.config.label == "spectral-seed0":
            self.folder.open(self.config, metrics_bytes=0, step=0)
            self.folder.close()
            raise TrainingStopped("the loss is nan", "Look into /some/folder.")
        return whole(self)

    monkeypatch.setattr(Training, "run", diverging)
    assert run(tiny_study()) == ["tiny/spectral/seed-0: the loss is nan. Look into /some/folder."]
    assert sorted(files(tmp_path / "out", "summary.json")) == sorted(LEAVES[1:])
    record = json.loads((tmp_path / "out/spectral/seed-0" / RECORD).read_text())
    assert record["failure"] == "the loss is nan"


def test_a_run_of_another_process_is_passed_over(tiny_study, run, tmp_path):
    taken = tmp_path / "out/spectral/seed-0"
    with locked(taken):
        (failure,) = run(tiny_study())
        assert failure == f"tiny/spectral/seed-0: {taken} is in use by another process"
        assert [path.name for path in taken.iterdir()] == [LOCK]
    assert sorted(files(tmp_path / "out", "summary.json")) == sorted(LEAVES[1:])
    assert run(tiny_study()) == []
    assert sorted(files(tmp_path / "out", "summary.json")) == sorted(LEAVES)


def test_a_finished_run_without_its_record_gets_one(tiny_study, run, tmp_path):
    sums = tiny_study(seeds=(0,))
    run(sums)
    record = tmp_path / "out/spectral/seed-0" / RECORD
    record.unlink()
    before = (record.parent / "metrics.jsonl").read_bytes()
    assert run(sums) == []
    assert json.loads(record.read_text())["metric"]["name"] == "mse"
    assert (record.parent / "metrics.jsonl").read_bytes() == before


def test_the_commit_is_that_of_the_beginning(tiny_study, run, tmp_path, listener, monkeypatch):
    made = []

    class Committing(listener):
        def advance(self, step, loss):
            super().advance(step, loss)
            made.append(step)

    monkeypatch.setattr(study, "provenance", lambda device: {"commit": len(made)})
    run(tiny_study(), Selection(models=["lstm"], seeds=[0]), report=Committing())
    record = json.loads((tmp_path / "out/lstm/seed-0" / RECORD).read_text())
    assert record["sessions"] == [{"commit": 0}]
    assert len(made) == 6


def test_missing_data_ends_the_reproduction_with_one_message(tiny_study, run):
    cases = {name: Case({"dataset": name}, 5) for name in ("One", "Two")}
    (failure,) = run(tiny_study(task="ucr", cases=cases, goal=None))
    assert "tiny/One/spectral/seed-0: missing ucr data: One_TRAIN.tsv" in failure


def test_other_settings_are_refused_before_anything_is_run(tiny_study, run, tmp_path):
    run(tiny_study(), Selection(models=["lstm"], seeds=[1]))
    with pytest.raises(UsageError, match="hidden_size is 4 there and 5 here"):
        run(tiny_study(common={"hidden_size": 5, "evaluations": 3}))
    assert sorted(files(tmp_path / "out", "config.json")) == ["lstm/seed-1"]


def test_search_runs_candidates_apart_from_the_runs(tiny_study, run, tmp_path):
    run(tiny_study(), Selection(models=["lstm"], search=True))
    configs = files(tmp_path / "out", "config.json")
    assert sorted(configs) == ["search/lstm/candidate-0", "search/lstm/candidate-1"]
    rates = [json.loads(configs[name])["lr"] for name in sorted(configs)]
    assert rates == [1e-3, 1e-2]
    with pytest.raises(UsageError, match="tiny has no search"):
        tiny_study(search=None).jobs(Selection(search=True))
