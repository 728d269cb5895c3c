import json

import pytest
import torch

from spectral_triton.experiments.studies import figures
from spectral_triton.experiments.studies.gradient_study import MICROSECONDS, GradientStudy, observe
from spectral_triton.experiments.studies.investigation import Surroundings
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.tasks import adding
from spectral_triton.experiments.tasks.storage import DataFolder


@pytest.fixture
def surroundings(monkeypatch, tmp_path, listener):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(adding, "HELD_OUT", {"validation": 8, "test": 8})
    monkeypatch.setattr(adding, "EVALUATION_BATCH", 4)
    return Surroundings(DataFolder(tmp_path), "cpu", listener())


@pytest.mark.parametrize("model", MICROSECONDS)
def test_what_is_seen(model, surroundings):
    seen = observe(model, 0, surroundings, length=6, steps=4, hidden_size=4)
    assert list(seen["flow"]) == ["start", "middle", "end"]
    assert [seen["flow"][when]["step"] for when in seen["flow"]] == [0, 2, 4]
    assert seen["spectra"]["steps"] == [0, 1, 2, 3, 4]
    for record in seen["flow"].values():
        assert len(record["norms"]) == 6
        if model in ("spectral", "orthogonal"):
            pairs = zip(record["norms"], record["bound"], strict=True)
            assert all(norm <= limit * (1 + 1e-4) for norm, limit in pairs)
        else:
            assert "bound" not in record
    for history in seen["spectra"]["values"].values():
        assert len(history) == 5
        (lowest, highest) = min(map(min, history)), max(map(max, history))
        if model == "spectral":
            assert 0.98 <= lowest <= highest <= 1.02
        elif model != "orthogonal":
            assert history[0] != history[-1]
    assert seen["factor"] == {"spectral": 1.02, "orthogonal": 1.0}.get(model)
    json.dumps(seen)


def test_study_covers_its_models():
    lines = GradientStudy().budget(Selection())
    assert [(line.what, line.runs) for line in lines] == [(model, 1) for model in MICROSECONDS]


def test_page(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "gradient_moments", lambda path, flows: None)
    monkeypatch.setattr(figures, "spectra", lambda path, histories: None)
    flow = {
        when: {"norms": [norm, 2.0, 4.0], "bound": [5.0, 4.5, 4.0]}
        for when, norm in (("start", 1.0), ("middle", 2.0), ("end", 4.0))
    }
    result = {
        "model": "spectral",
        "flow": flow,
        "factor": 1.0,
        "spectra": {"steps": [0, 1], "values": {"w": [[1.0, 0.5, 2.0], [3.0, 1.0, 2.0]]}},
        "test": {"mse": 0.0123},
    }
    plain = {when: {"norms": [0.5, 1.0]} for when in flow}
    results = [result, {**result, "model": "rnn", "factor": None, "flow": plain}]
    page = "\n\n".join(GradientStudy().text(results, tmp_path))
    assert "| spectral | 0.25 | 0.5 | 1 | 1 | 0.8 | 0.0123 |" in page
    assert "| rnn | 0.5 | 0.5 | 0.5 | none | - | 0.0123 |" in page
    assert "| spectral | w | 0.500 / 1.000 / 2.000 | 1.000 / 2.000 / 3.000 |" in page
