import pytest
import torch

from spectral_triton.experiments.errors import TrainingStopped
from spectral_triton.experiments.tasks import adding
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.training.config import make_config
from spectral_triton.experiments.training.run_folder import RunFolder
from spectral_triton.experiments.training.short_run import measure, short_run
from spectral_triton.experiments.training.training import Training


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(adding, "HELD_OUT", {"validation": 8, "test": 8})
    monkeypatch.setattr(adding, "EVALUATION_BATCH", 4)

    def make(model="spectral", **overrides):
        config = make_config(
            "adding",
            model,
            options={"length": 6},
            overrides={"steps": 5, "hidden_size": 4, "num_reflectors": (2, 2), **overrides},
            dtype="float64",
        )
        return config, config.build_task(DataFolder(tmp_path))

    return make


def test_it_trains_as_training_does(small, listener, tmp_path):
    config, task = small()
    model = short_run(config, task, listener())
    with torch.random.fork_rng():
        training = Training(config, task, RunFolder(tmp_path / "run"), listener())
        summary = training.run()
    # The best checkpoint may be an earlier one; ``last_test`` is that of the same weights.
    assert measure(model, task, "test", "cpu") == pytest.approx(summary["last_test"], rel=1e-12)


def test_watch_sees_the_moments_it_asked_for(small, listener):
    config, task = small("lstm")
    seen, report = {}, listener()

    def watch(step, model):
        seen[step] = model.head.bias.detach().clone()

    model = short_run(config, task, report, watch=watch, at={0, 3, 5})
    assert list(seen) == [0, 3, 5]
    assert torch.equal(seen[5], model.head.bias)
    assert not torch.equal(seen[0], seen[3])
    assert [step for step, _ in report.losses] == [1, 2, 3, 4, 5]


def test_a_loss_that_is_not_finite_ends_it(small, listener):
    config, task = small("irnn", lr=1e200)
    with pytest.raises(TrainingStopped, match=r"at step [2345]"):
        short_run(config, task, listener())
