import json
import math

import pytest
import torch

from spectral_triton.experiments.errors import TrainingStopped
from spectral_triton.experiments.studies import figures
from spectral_triton.experiments.studies import sensitivity as module
from spectral_triton.experiments.studies.investigation import Surroundings
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.studies.sensitivity import BASE, LENGTH, LEVELS, Sensitivity, learn
from spectral_triton.experiments.tasks import adding
from spectral_triton.experiments.tasks.adding import Adding
from spectral_triton.experiments.tasks.storage import DataFolder


@pytest.fixture
def surroundings(monkeypatch, tmp_path, listener):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(adding, "HELD_OUT", {"validation": 8, "test": 8})
    monkeypatch.setattr(adding, "EVALUATION_BATCH", 4)
    return Surroundings(DataFolder(tmp_path), "cpu", listener())


def test_base_is_what_the_task_itself_uses():
    settings = Adding.defaults("spectral", {"length": LENGTH})
    assert settings.num_reflectors == (BASE["num_reflectors"],) * 2
    assert settings.singular_values_lr / settings.lr == pytest.approx(BASE["singular_values_lr"])
    assert settings.lr == module.RATE
    assert settings.reflectors_lr == pytest.approx(module.RATE * BASE["reflectors_lr"])
    for name in ("margin", "nonlinearity", "init"):
        assert getattr(settings, name) == BASE[name]


@pytest.mark.parametrize("factor", LEVELS)
def test_one_setting_is_changed(factor, surroundings):
    assert BASE[factor] in LEVELS[factor]
    level = next(level for level in LEVELS[factor] if level != BASE[factor])
    sizes = {"length": 4, "steps": 2}
    plain, changed = (learn(c, 0, surroundings, **sizes) for c in ({}, {factor: level}))
    differing = {k for k in plain["config"] if plain["config"][k] != changed["config"][k]}
    assert differing == {factor}
    assert changed["mse"] != plain["mse"]
    low, high = changed["sigma"]
    assert abs(low - 1) <= changed["config"]["margin"] + 1e-6
    assert abs(high - 1) <= changed["config"]["margin"] + 1e-6
    json.dumps(changed)


def test_a_run_that_broke_off_is_a_result(surroundings, monkeypatch):
    def burst(*_):
        raise TrainingStopped("loss nan")

    monkeypatch.setattr(module, "short_run", burst)
    result = learn({}, 0, surroundings, length=4, steps=2)
    assert (result["mse"], result["failure"]) == (None, "loss nan")


def test_study_measures_the_shared_settings_once():
    lines = Sensitivity().budget(Selection(seeds=[0]))
    counts = {line.what: line.runs for line in lines}
    assert counts == {"base": 1, **{name: len(levels) - 1 for name, levels in LEVELS.items()}}


def test_page(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        figures, "sensitivity", lambda path, label, cells, *_: drawn.update({label: cells})
    )
    results = [
        {"model": m, "case": c, "seed": seed, "mse": error, "sigma": None if error is None else s}
        for m, c, errors, s in (
            ("base", "base", (0.01, 0.04), (0.99, 1.02)),
            ("margin", "0.001", (0.16, 0.16), (0.999, 1.001)),
            ("init", "haar", (0.08, None), (0.98, 1.01)),
        )
        for seed, error in enumerate(errors)
    ]
    page = "\n\n".join(Sensitivity().text(results, tmp_path))
    assert "| margin | 0.02 (0.02) | 0.001 (0.16) | 8.0 | 2.0 |" in page
    assert "| test mse | 0.16 / 0.16 | 0.01 / 0.04 |" in page
    assert "| σ at the end | 0.999 to 1.001 | 0.990 to 1.020 |" in page
    assert "| test mse | 0.08 / broke off | 0.01 / 0.04 |" in page
    assert drawn["margin r"] == {0.001: [0.16, 0.16], 0.02: [0.01, 0.04]}
    assert drawn["start of W"]["haar"] == [0.08, math.inf]
