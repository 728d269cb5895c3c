import pytest
import torch

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.tasks import adding
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.tasks.task import Metric
from spectral_triton.experiments.training.comparison import Comparison, curve_of
from spectral_triton.experiments.training.config import make_config


@pytest.fixture
def compare(tmp_path, monkeypatch):
    monkeypatch.setattr(adding, "HELD_OUT", {"validation": 8, "test": 8})
    monkeypatch.setattr(adding, "EVALUATION_BATCH", 4)

    def make(*models, seeds=(0,), resume=False, output=tmp_path / "out", **overrides):
        overrides = {"hidden_size": 4, "steps": 6, "evaluations": 2, **overrides}
        configs = [
            make_config("adding", model, options={"length": 4}, overrides=overrides, seed=seed)
            for seed in seeds
            for model in models
        ]
        return Comparison(configs, output, DataFolder(tmp_path), resume=resume)

    return make


def test_runs_lie_side_by_side(compare, listener, tmp_path):
    metric, summaries = compare("spectral", "lstm", seeds=(0, 3)).run(listener())
    assert metric.name == "mse"
    names = ["spectral-seed0", "lstm-seed0", "spectral-seed3", "lstm-seed3"]
    assert [f"{s['model']}-seed{s['seed']}" for s in summaries] == names
    output = tmp_path / "out"
    pictures = {"comparison.png", "gradient_flow.png", "summary.md"}
    assert {path.name for path in output.iterdir()} == {*names, *pictures}
    inside = {path.name for path in (output / "spectral-seed0").iterdir()}
    assert inside == {
        ".lock",
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "best.pt",
        "last.pt",
        "summary.json",
        "gradient_flow.json",
        "learning_curve.png",
        "singular_values.png",
        "gradient_flow.png",
    }
    table = (output / "summary.md").read_text().splitlines()
    assert table[0].startswith("| model | seed | params | test mse |")
    assert len(table) == 2 + len(names)


def test_runs_do_not_influence_each_other_or_the_caller(compare, listener, tmp_path):
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    _, together = compare("lstm", "gru").run(listener())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    _, alone = compare("gru", output=tmp_path / "alone").run(listener())
    assert together[1]["test"] == alone[0]["test"]


def test_resume_finishes_what_is_missing(compare, listener, tmp_path):
    _, whole = compare("lstm", "gru").run(listener())
    with pytest.raises(RuntimeError, match="killed"):
        compare("lstm", "gru", output=tmp_path / "b").run(listener(fail_at=5))
    with pytest.raises(UsageError, match="--resume"):
        compare("lstm", "gru", output=tmp_path / "b")
    _, resumed = compare("lstm", "gru", output=tmp_path / "b", resume=True).run(listener())
    assert [s["test"] for s in resumed] == [s["test"] for s in whole]


def test_nothing_is_written_before_all_is_checked(compare, listener, tmp_path):
    compare("lstm").run(listener())
    with pytest.raises(UsageError, match="hidden_size is 4 there and 5 here"):
        compare("gru", "lstm", resume=True, hidden_size=5)
    assert not (tmp_path / "out" / "gru-seed0").exists()


def test_foreign_output_is_refused(compare, tmp_path):
    (tmp_path / "out").mkdir()
    compare("lstm")
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"holds thesis.tex, which is no run"):
        compare("lstm", resume=True)
    with pytest.raises(UsageError, match="not a folder"):
        compare("lstm", output=tmp_path / "out" / "thesis.tex")


def test_curve_of_one_kind():
    records = [
        {"kind": "train", "step": 1, "mse": 0.5},
        {"kind": "validation", "step": 1, "mse": 0.4},
        {"kind": "train", "step": 2, "mse": 0.3},
    ]
    metric = Metric("mse", "", 0.0, "")
    assert curve_of(records, "train", metric) == [(1, 0.5), (2, 0.3)]
