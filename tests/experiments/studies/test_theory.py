import json

import pytest
import torch

from spectral_triton.experiments.studies import figures
from spectral_triton.experiments.studies.investigation import Surroundings
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.studies.theory import (
    CLASSIFIERS,
    CONDITIONS,
    DTYPES,
    NONLINEARITIES,
    SHAPES,
    Theory,
    generalize,
    reach,
    stretch,
)
from spectral_triton.experiments.tasks.storage import DataFolder


def test_every_condition_and_dtype_is_reached():
    errors = reach(4, 3, None)["errors"]
    assert len(errors) == len(CONDITIONS) * len(DTYPES)
    assert [e["condition"] for e in errors[-len(DTYPES) :]] == [None] * len(DTYPES)
    assert all(e["reconstruction"] < 1e-6 for e in errors)
    json.dumps(errors, allow_nan=False)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_measured_norms_stay_below_the_bound(nonlinearity):
    found = stretch(nonlinearity, None, length=8, units=4)
    assert found["bound"] == pytest.approx([1.02 ** (7 - t) for t in range(8)])
    for norms in found["curves"].values():
        assert all(n <= b * (1 + 1e-12) for n, b in zip(norms, found["bound"], strict=True))
    attained = found["curves"]["every σ at the bound"] == pytest.approx(found["bound"])
    assert attained == (nonlinearity == "identity")


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_terms_and_errors(model, tiny_mnist, listener):
    torch.set_default_dtype(torch.float32)
    surroundings = Surroundings(DataFolder(tiny_mnist.parent), "cpu", listener())
    found = generalize(model, 7, surroundings, steps=3, hidden_size=5, batch_size=4)
    terms = found["terms"]
    assert (terms["sizes"], terms["steps"], terms["samples"]) == ((3, 5, 10), 4, 7)
    if model != "rnn":
        assert 1 <= terms["transition_norm"] <= (1.0 if model == "orthogonal" else 1.01) + 1e-6
    for name in ("training_error", "margin_error"):
        assert found[name] * 7 == pytest.approx(round(found[name] * 7))
    assert found["margin_error"] >= found["training_error"]
    assert found["test_error"] * 10 == pytest.approx(round(found["test_error"] * 10))
    norms = terms["input_norm"] * terms["output_norm"] * terms["power"]
    assert found["order"] == pytest.approx(10 * 16 * norms / 7**0.5)
    json.dumps(found, allow_nan=False)


def test_study_lists_all_measurements():
    assert sum(line.runs for line in Theory().budget(Selection())) == (
        len(SHAPES) + len(NONLINEARITIES) + 3 * len(CLASSIFIERS)
    )


def test_page(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "jacobians", lambda path, curves, bound: None)
    gap = {
        "model": "generalization: rnn",
        "training_error": 0.1,
        "margin_error": 0.25,
        "test_error": 0.3,
        "order": 1234.0,
        "steps": 3,
        "terms": {
            "sizes": [28, 128, 10],
            "steps": 28,
            "samples": 500,
            "input_norm": 1.0,
            "output_norm": 2.0,
            "transition_norm": 1.5,
            "power": 3.0,
        },
    }
    bound = {
        "model": "gradient bound",
        "case": "relu",
        "bound": [4.0, 2.0, 1.0],
        "curves": {"random σ": [1.0, 1.0, 1.0]},
    }
    found = {"model": "from_dense", "case": "4 x 3", **reach(4, 3, None)}
    page = "\n\n".join(Theory().text([gap, bound, found], tmp_path))
    row = (
        "| rnn | 500 | 10.00 % | 25.00 % | 30.00 % | 20.00 % | 1.00 | 2.00 | 1.500 | 3 | 1.2e+03 |"
    )
    assert row in page
    assert "| relu | random σ | 0.5 | 1 |" in page
    assert "| 4 × 3 | half rank |" in page
    assert "not proved, and false in general" in page
