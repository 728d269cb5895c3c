import json
import math
import os
import signal

import pytest
import torch

from spectral_triton.experiments.errors import Interrupted, TrainingStopped
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.training.checkpoint import load_checkpoint
from spectral_triton.experiments.training.config import make_config
from spectral_triton.experiments.training.run_folder import RunFolder
from spectral_triton.experiments.training.training import Training

RUNS = {
    "adding, spectral": ("adding", "spectral", {"length": 6}, {"num_layers": 2, "dropout": 0.2}),
    "adding, rebased": (
        "adding",
        "spectral",
        {"length": 6},
        {"rebase": 2, "num_reflectors": (2, 2)},
    ),
    "adding, orthogonal": ("adding", "orthogonal", {"length": 6}, {}),
    "copying, gru": ("copying", "gru", {"length": 3}, {"schedule": "linear"}),
    "copying, spectral-lstm": ("copying", "spectral-lstm", {"length": 3}, {"num_layers": 2}),
    "sequential-mnist, irnn": ("sequential-mnist", "irnn", {"rows": True}, {}),
    "ptb, spectral": ("ptb", "spectral", {"window": 3}, {"dropout": 0.2, "batch_size": 3}),
    "ptb, lstm": ("ptb", "lstm", {"window": 3}, {"batch_size": 3, "weight_decay": 0.1}),
    "ucr, spectral": ("ucr", "spectral", {"dataset": "Tiny"}, {}),
    "ucr, both ways": (
        "ucr",
        "spectral",
        {"dataset": "Tiny", "fold": 0, "mask": True},
        {"bidirectional": True, "num_layers": 2},
    ),
}
STEPS = 13


@pytest.fixture
def small_evaluations(monkeypatch):
    from spectral_triton.experiments.tasks import adding, copying

    for module in (adding, copying):
        monkeypatch.setattr(module, "HELD_OUT", {"validation": 8, "test": 8})
        monkeypatch.setattr(module, "EVALUATION_BATCH", 4)


@pytest.fixture
def train(tmp_path, small_evaluations, tiny_mnist, tiny_text, tiny_series, listener):
    """A function that runs one of RUNS in a folder, to its end or to a kill."""

    def run(name, folder, *, fail_at=None, **changes):
        task, model, options, overrides = RUNS[name]
        settings = {"hidden_size": 5, "batch_size": 4, "steps": STEPS, "evaluations": 3}
        overrides = {**settings, **overrides, **changes}
        config = make_config(task, model, options=options, overrides=overrides)
        report = listener(fail_at=fail_at)
        data = DataFolder(tmp_path / "data")
        training = Training(config, config.build_task(data), RunFolder(tmp_path / folder), report)
        return training, report

    return run


def outcome(training):
    """Everything about a finished run that must not depend on interruptions."""
    summary = json.loads(training.folder.summary_file.read_text())
    summary.pop("seconds"), summary.pop("timed_steps")
    last = load_checkpoint(training.folder.last)
    last.pop("clock")
    flow = training.folder.read_json(training.folder.gradient_flow_file)
    return summary, training.folder.metrics_file.read_bytes(), last, flow


def assert_same(first, second):
    assert first[:2] == second[:2]
    assert first[3] == second[3]
    tensors = [torch.utils._pytree.tree_flatten(content[2]) for content in (first, second)]
    assert tensors[0][1] == tensors[1][1]
    for left, right in zip(tensors[0][0], tensors[1][0], strict=True):
        assert torch.equal(left, right) if torch.is_tensor(left) else left == right


def interrupt_at(step, report):
    """Sends Ctrl-C after a step."""

    def advance(now, loss):
        if now == step:
            os.kill(os.getpid(), signal.SIGINT)

    report.advance = advance


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_is_as_if_never_killed(train, name):
    whole, _ = train(name, "whole")
    whole.run()
    for kill in (2, 7, 11):
        killed, _ = train(name, "killed", fail_at=kill)
        with pytest.raises(RuntimeError, match="killed"):
            killed.run()
    resumed, report = train(name, "killed")
    resumed.run()
    assert report.begun == (whole.config.label, STEPS, 9)
    assert_same(outcome(resumed), outcome(whole))


def test_rebased_every_so_many_steps(train):
    training, _ = train("adding, rebased", "whole")
    first = training.model.encoder.svd_hh_l0.left_base.detach().clone()
    training.run()
    last = load_checkpoint(training.folder.last)
    assert last["rebase"]["count"] == STEPS
    base = last["model"]["encoder.svd_hh_l0.left_base"]
    assert (base - first).norm() > 1e-3
    assert (base.mT @ base - torch.eye(5)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["adding, spectral", "ptb, lstm"])
def test_interrupted_and_resumed_is_as_if_never_interrupted(train, name):
    whole, _ = train(name, "whole")
    whole.run()
    stopped, report = train(name, "stopped")
    interrupt_at(6, report)
    with pytest.raises(Interrupted, match="stopped at step 6 of 13 and saved"):
        stopped.run()
    resumed, report = train(name, "stopped")
    resumed.run()
    assert report.begun[2] == 6
    assert_same(outcome(resumed), outcome(whole))


def test_finished_run_is_not_run_again(train):
    training, _ = train("adding, orthogonal", "run")
    summary = training.run()
    again, report = train("adding, orthogonal", "run")
    assert again.run() == summary
    assert report.begun is None


def test_what_is_recorded(train):
    training, report = train("adding, spectral", "run")
    summary = training.run()
    records = training.folder.metrics()
    kinds = {kind: [r for r in records if r["kind"] == kind] for kind in ("train", "validation")}
    assert [r["step"] for r in kinds["train"]] == list(range(1, STEPS + 1))
    assert [r["step"] for r in kinds["validation"]] == [5, 9, 13]
    assert kinds["train"][0]["mse"] == report.losses[0][1]
    assert [r["mse"] for r in kinds["validation"]] == [value for _, value in report.evaluations]
    best = min(kinds["validation"], key=lambda r: r["mse"])
    assert (summary["tested_step"], summary["validation"]) == (best["step"], best["mse"])
    spectra = [r for r in records if r["kind"] == "spectrum"]
    assert [r["step"] for r in spectra] == [0, 5, 9, 13]
    assert all(0.98 <= s <= 1.02 for r in spectra for s in r["singular_values"])


def test_best_weights_are_the_ones_tested(train):
    training, _ = train("adding, orthogonal", "run")
    measure, values = training._measure, iter([0.3, 0.1, 0.2])

    def scripted(split):
        return {"mse": next(values)} if split == "validation" else measure(split)

    training._measure = scripted
    summary = training.run()
    best = load_checkpoint(training.folder.best)
    assert best["step"] == summary["tested_step"] == 9
    assert summary["validation"] == 0.1
    training.model.load_state_dict(best["model"])
    assert measure("test") == summary["test"]
    training.model.load_state_dict(load_checkpoint(training.folder.last)["model"])
    assert measure("test") == summary["last_test"] != summary["test"]


def test_nothing_is_dropped_while_it_is_measured(train):
    training, _ = train("adding, spectral", "run", dropout=0.5)
    assert training._measure("test") == training._measure("test")
    assert training.model.training


def test_training_learns(train):
    training, report = train("ucr, spectral", "run", steps=60, lr=0.02)
    training.run()
    losses = [loss for _, loss in report.losses]
    assert losses[-1] < 0.5 * losses[0]


def test_loss_that_is_no_number_stops_the_run(train):
    training, _ = train("adding, orthogonal", "run")
    step = training.task.train_batch

    def poisoned(index):
        batch = step(index)
        if index == 6:
            batch.targets.fill_(math.nan)
        return batch

    training.task.train_batch = poisoned
    with pytest.raises(TrainingStopped, match=r"loss is nan at step 7 of 13.*last.pt.*--lr"):
        training.run()
    last = load_checkpoint(training.folder.last)
    assert last["step"] == 5
    assert all(torch.isfinite(value).all() for value in last["model"].values())


def test_a_stop_during_the_last_step_is_kept_until_the_run_is_finished(train):
    whole, _ = train("adding, orthogonal", "whole")
    whole.run()
    stopped, report = train("adding, orthogonal", "stopped")
    interrupt_at(STEPS, report)
    with pytest.raises(Interrupted, match="finished, stopped after it"):
        stopped.run()
    assert_same(outcome(stopped), outcome(whole))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_result_that_is_no_number_stops_the_run(train, split):
    training, _ = train("adding, orthogonal", "run")
    batches = training.task.batches

    def poisoned(asked):
        for batch in batches(asked):
            if asked == split:
                batch.targets.fill_(math.nan)
            yield batch

    training.task.batches = poisoned
    with pytest.raises(TrainingStopped, match=f"the {split} mse is nan at step"):
        training.run()
    assert not training.folder.summary_file.is_file()
    assert not training.folder.best.is_file() or split == "test"


def test_gradient_that_is_no_number_stops_before_the_step(train):
    training, _ = train("adding, orthogonal", "run")
    training.model.head.weight.register_hook(lambda grad: grad * math.inf)
    before = training.model.head.weight.detach().clone()
    with pytest.raises(TrainingStopped, match="norm of the gradient is"):
        training.run()
    assert torch.equal(training.model.head.weight, before)


def test_clipping_limits_the_step(train):
    free, _ = train("adding, orthogonal", "free", clip=0.0)
    tight, _ = train("adding, orthogonal", "tight", clip=1e-9)
    free.run(), tight.run()
    first = [training.folder.metrics()[1] for training in (free, tight)]
    assert first[0] == first[1]
    assert first[0]["gradient_norm"] > 1e-6
    moved = [load_checkpoint(t.folder.last)["model"]["head.bias"] for t in (free, tight)]
    assert not torch.equal(*moved)


def test_state_is_carried_where_the_text_goes_on(train):
    training, _ = train("ptb, lstm", "run")
    begun = [batch.fresh for batch in map(training.task.train_batch, range(STEPS))]
    assert begun[0]
    assert not all(begun)
    seen = []
    forward = training.model.forward

    def watched(inputs, state=None):
        if torch.is_grad_enabled():
            seen.append(state is None)
            assert state is None or not state[0].requires_grad
        return forward(inputs, state)

    training.model.forward = watched
    training.run()
    assert seen == begun
