import dataclasses
import json

import pytest

from spectral_triton.experiments import former_names
from spectral_triton.experiments.studies.recipes import REPRODUCTIONS, find
from spectral_triton.experiments.studies.results import read_results
from spectral_triton.experiments.tasks.catalog import TASKS
from spectral_triton.experiments.tasks.settings import Settings


def test_every_name_of_now_is_one():
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert set(former_names.SETTINGS.values()) <= fields
    assert not set(former_names.SETTINGS) & fields
    assert set(former_names.TASKS.values()) <= set(TASKS)
    assert set(former_names.REPRODUCTIONS.values()) <= set(REPRODUCTIONS)


def test_results_saved_under_former_names_are_read(tmp_path):
    config = {"task": "pixel-mnist", "layers": 2, "learning_rate": 0.5, "sigma_rate": 0.25}
    line = {"case": "", "model": "rnn", "seed": 0, "candidate": None, "config": config}
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"study": "pixel-mnist-permuted", **line}))
    (result,) = read_results(path)
    assert result["study"] == "permuted-mnist"
    expected = {"task": "sequential-mnist", "num_layers": 2, "lr": 0.5, "singular_values_lr": 0.25}
    assert result["config"] == expected


def test_what_was_measured_of_a_setting_is_filed_under_its_name_of_now():
    assert former_names.current_result({"model": "sigma_rate"}) == {"model": "singular_values_lr"}
    old = {"model": "svd", "config": None, "learning_rate": 0.5}
    assert former_names.current_result(old) == {"model": "svd", "config": None, "lr": 0.5}


@pytest.mark.parametrize("name", former_names.REPRODUCTIONS)
def test_reproductions_are_found_by_their_former_names(name):
    (found,) = find(name)
    assert found.name == former_names.REPRODUCTIONS[name]
