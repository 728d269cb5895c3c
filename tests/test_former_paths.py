"""Models and state dicts that were saved before the package had wings."""

from pathlib import Path

import pytest
import torch

SAVED = Path(__file__).parent / "data" / "models_before_wings.pt"


@pytest.fixture(scope="module")
def saved():
    return torch.load(SAVED, weights_only=False)


def output(model, x):
    y = model(x)
    while isinstance(y, tuple):
        y = y[0]
    return y


def test_pickled_models_compute_what_they_did(saved):
    assert len(saved["calls"]) == 16
    for name, (x, expected) in saved["calls"].items():
        torch.testing.assert_close(output(saved["models"][name], x), expected, msg=name)


def test_saved_states_fit_the_models_of_today(saved):
    for name, (x, expected) in saved["calls"].items():
        model = saved["models"][name]
        # The file holds each tensor once, for the model and for its state.
        state = {key: value.clone() for key, value in saved["states"][name].items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-0.5)
        assert not torch.allclose(output(model, x), expected), name
        model.load_state_dict(state, strict=True)
        torch.testing.assert_close(output(model, x), expected, msg=name)


def test_pickled_factors_are_the_matrix_they_were(saved):
    factors = saved["factors"]
    sigma = torch.linalg.svdvals(factors.to_dense())
    torch.testing.assert_close(factors.singular_values.abs().sort(descending=True).values, sigma)
