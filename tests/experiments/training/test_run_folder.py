import json

import pytest

from spectral_triton.experiments.errors import DataError, UsageError
from spectral_triton.experiments.training.config import make_config
from spectral_triton.experiments.training.run_folder import RunFolder


@pytest.fixture
def config():
    return make_config("adding", "spectral")


def started(path, config):
    folder = RunFolder(path)
    folder.open(config, metrics_bytes=0, step=0)
    folder.close()
    return folder


def test_new_and_empty_folders_are_taken(tmp_path, config):
    RunFolder(tmp_path / "new").check(config, resume=False)
    RunFolder(tmp_path).check(config, resume=True)


def test_a_process_that_died_before_its_first_file_leaves_a_folder_that_is_taken(tmp_path, config):
    with RunFolder(tmp_path / "run").locked():
        pass
    RunFolder(tmp_path / "run").check(config, resume=False)


def test_foreign_folders_are_refused(tmp_path, config):
    (tmp_path / "thesis.tex").write_text("")
    for resume in (False, True):
        with pytest.raises(UsageError, match="not empty and holds no run"):
            RunFolder(tmp_path).check(config, resume=resume)
    with pytest.raises(UsageError, match="is not a folder"):
        RunFolder(tmp_path / "thesis.tex").check(config, resume=False)


def test_a_run_is_continued_only_on_request(tmp_path, config):
    folder = started(tmp_path / "run", config)
    with pytest.raises(UsageError, match="--resume"):
        folder.check(config, resume=False)
    folder.check(config, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overrides": {"margin": 0.5}}, "margin is 0.02 there and 0.5 here"),
        ({"options": {"length": 9}}, "length is 200 there and 9 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"dtype": "float64"}, "dtype is 'float32' there and 'float64' here"),
        ({"overrides": {"num_reflectors": None}}, r"num_reflectors is \[16, 16\] there and None"),
    ],
)
def test_another_configuration_is_refused_by_field(tmp_path, config, change, message):
    folder = started(tmp_path / "run", config)
    with pytest.raises(UsageError, match=message):
        folder.check(make_config("adding", "spectral", **change), resume=True)


def test_damaged_configuration(tmp_path, config):
    folder = started(tmp_path / "run", config)
    folder.config_file.write_text("{")
    with pytest.raises(DataError, match=r"config.json is damaged"):
        folder.check(config, resume=True)


def test_metrics_go_on_where_the_checkpoint_was(tmp_path, config):
    folder = RunFolder(tmp_path / "run")
    folder.open(config, metrics_bytes=0, step=0)
    folder.log({"kind": "train", "step": 1, "mse": 0.1})
    kept = folder.flush()
    folder.log({"kind": "train", "step": 2, "mse": 0.2})
    folder.log({"kind": "spectrum", "step": 2, "singular_values": [1.0, 0.5]})
    folder.close()
    assert [record["step"] for record in folder.metrics()] == [1, 2, 2]
    with folder.metrics_file.open("a") as file:
        file.write('{"half a li')
    folder.open(config, metrics_bytes=kept, step=1)
    folder.log({"kind": "train", "step": 2, "mse": 0.3})
    folder.close()
    assert folder.metrics() == [
        {"kind": "train", "step": 1, "mse": 0.1},
        {"kind": "train", "step": 2, "mse": 0.3},
    ]
    with pytest.raises(DataError, match="shorter than its checkpoint"):
        folder.open(config, metrics_bytes=10_000, step=1)
    folder.close()


def test_tensorboard_holds_the_same_numbers(tmp_path, config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path / "run")
    folder.open(config, metrics_bytes=0, step=0)
    for step in (1, 2):
        folder.log({"kind": "train", "step": step, "mse": step / 8})
    folder.log({"kind": "spectrum", "step": 2, "singular_values": [1.0, 0.5]})
    folder.close()
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/mse")]
    assert scalars == [(1, 0.125), (2, 0.25)]
    (histogram,) = events.Histograms("spectrum/singular_values")
    assert (histogram.step, histogram.histogram_value.num) == (2, 2)


def test_json_files(tmp_path, config):
    folder = started(tmp_path / "run", config)
    assert json.loads(folder.config_file.read_text()) == config.as_dict()
    assert folder.read_json(folder.summary_file) is None
    folder.write_json(folder.summary_file, {"a": [1]})
    assert folder.read_json(folder.summary_file) == {"a": [1]}
