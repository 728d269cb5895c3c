import json

import pytest
import torch

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.tasks.adding import Adding
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.training.config import continued_config, make_config


def test_defaults_are_those_of_the_task():
    config = make_config("adding", "spectral")
    assert config.options == {"length": 200}
    assert config.settings == Adding.defaults("spectral", {"length": 200})
    assert config.torch_dtype == torch.float32
    assert config.label == "spectral-seed0"


def test_learning_rates_keep_their_ratio():
    usual = make_config("adding", "spectral").settings
    doubled = make_config("adding", "spectral", overrides={"lr": 2 * usual.lr}).settings
    assert doubled.reflectors_lr == pytest.approx(2 * usual.reflectors_lr)
    assert doubled.singular_values_lr == pytest.approx(2 * usual.singular_values_lr)
    both = {"lr": 1.0, "singular_values_lr": 3.0}
    assert make_config("adding", "spectral", overrides=both).settings.singular_values_lr == 3.0


def test_steps_and_epochs_replace_each_other():
    settings = make_config("sequential-mnist", "lstm", overrides={"steps": 5}).settings
    assert (settings.steps, settings.epochs) == (5, None)
    settings = make_config("ptb", "lstm", overrides={"epochs": 2}).settings
    assert (settings.steps, settings.epochs) == (None, 2)
    with pytest.raises(UsageError, match="either --steps or --epochs"):
        make_config("ptb", "lstm", overrides={"epochs": 2, "steps": 2})


def test_default_reflectors_fit_a_small_hidden_size():
    settings = make_config("adding", "spectral", overrides={"hidden_size": 4}).settings
    assert settings.num_reflectors == (4, 4)
    overrides = {"hidden_size": 4, "num_reflectors": (5, 5)}
    with pytest.raises(UsageError, match="not 5"):
        make_config("adding", "spectral", overrides=overrides)


def test_dictionary_is_flat_json_of_what_the_model_uses():
    spectral = make_config("adding", "spectral").as_dict()
    assert json.loads(json.dumps(spectral)) == spectral
    assert spectral["length"] == 200
    assert spectral["num_reflectors"] == [16, 16]
    lstm = make_config("adding", "lstm").as_dict()
    assert spectral.keys() - lstm.keys() == {
        "num_reflectors",
        "margin",
        "nonlinearity",
        "init",
        "reflectors_lr",
        "singular_values_lr",
    }
    assert "margin" not in make_config("adding", "orthogonal").as_dict()
    # Runs of before there was the setting are continued.
    assert "rebase" not in spectral
    assert make_config("adding", "spectral", overrides={"rebase": 20}).as_dict()["rebase"] == 20
    series = make_config("ucr", "gru", options={"dataset": "CBF"}).as_dict()
    assert not {"bidirectional", "fold", "mask"} & series.keys()
    asked = {"fold": 0, "mask": True, "dataset": "CBF"}
    series = make_config("ucr", "gru", options=asked, overrides={"bidirectional": True}).as_dict()
    assert [series[name] for name in ("bidirectional", "fold", "mask")] == [True, 0, True]
    assert continued_config(series, {}, {}, {}).as_dict() == series


@pytest.mark.parametrize("task", ["ptb", "copying"])
def test_what_is_answered_at_every_step_is_not_read_both_ways(task):
    with pytest.raises(UsageError, match="bidirectional would read the answers"):
        make_config(task, "spectral", overrides={"bidirectional": True})


def test_gates_do_not_begin_as_one_transition_does():
    assert make_config("adding", "spectral").settings.init == "cayley"
    gates = make_config("adding", "spectral-gru").settings
    assert gates.init == "haar"
    assert gates.reflectors_lr == gates.lr
    settings = make_config("adding", "spectral-gru", overrides={"init": "henaff"}).settings
    assert settings.init == "henaff"
    assert "nonlinearity" not in make_config("adding", "spectral-lstm").as_dict()


def test_torchs_rnn_keeps_its_own_nonlinearity():
    assert make_config("adding", "rnn").settings.nonlinearity == "tanh"
    overrides = {"nonlinearity": "relu"}
    assert make_config("adding", "rnn", overrides=overrides).settings.nonlinearity == "relu"


@pytest.mark.parametrize(
    ("task", "options", "title"),
    [
        ("adding", {}, "adding, length 200"),
        ("sequential-mnist", {}, "sequential-mnist"),
        ("sequential-mnist", {"permuted": True}, "sequential-mnist, permuted"),
        ("ucr", {"dataset": "CBF"}, "ucr CBF"),
        ("ptb", {}, "ptb, window 35"),
    ],
)
def test_title(task, options, title):
    assert make_config(task, "lstm", options=options).title == title


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "sorting"}, "no task 'sorting': choose from adding"),
        ({"model": "urnn"}, "no model 'urnn': choose from spectral"),
        ({"dtype": "float16"}, "dtype .* 'float16'"),
        ({"threads": 0}, "threads .* 0"),
        ({"device": "toaster"}, "no device 'toaster'"),
        ({"options": {"rows": True}}, "--rows is no option of adding"),
    ],
)
def test_bad_values_are_named(change, message):
    arguments = {"task": "adding", "model": "lstm", **change}
    with pytest.raises(UsageError, match=message):
        make_config(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what is absent")
@pytest.mark.parametrize("name", ["meta", "xpu", "mps", "cuda:99"])
def test_device_without_numbers(name):
    with pytest.raises(UsageError, match=f"device '{name}'"):
        make_config("adding", "lstm", device=name)


def test_absent_device():
    with pytest.raises(UsageError, match="sees no CUDA device"):
        make_config("adding", "lstm", device="cuda")


def test_build_task(tmp_path):
    config = make_config("adding", "lstm", options={"length": 5}, dtype="float64", seed=3)
    task = config.build_task(DataFolder(tmp_path))
    assert (task.length, task.seed, task.dtype) == (5, 3, torch.float64)
