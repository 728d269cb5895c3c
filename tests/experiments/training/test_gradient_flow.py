import pytest
import torch

from spectral_triton.analysis.bounds import gradient_bound
from spectral_triton.experiments.tasks.adding import Adding
from spectral_triton.experiments.tasks.copying import Copying
from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.experiments.training.gradient_flow import gradient_norms
from spectral_triton.experiments.training.model import build_model

CPU = torch.device("cpu")


def make(name, task, **settings):
    settings = Settings(**{"steps": 1, "hidden_size": 6, "num_reflectors": (3, 3), **settings})
    return build_model(name, settings, task, device=CPU, dtype=torch.float64)


def unrolled_states(encoder, inputs):
    """h_1 .. h_T of a tanh network, written out."""
    state, states = torch.zeros(inputs.shape[1], 6), []
    for step in inputs:
        state = torch.tanh(
            step @ encoder.weight_ih_l0.mT
            + encoder.bias_ih_l0
            + state @ encoder.weight_hh_l0.mT
            + encoder.bias_hh_l0
        )
        states.append(state)
    return states


@pytest.mark.parametrize("kind", [Adding, Copying])
def test_norms_are_those_of_the_unrolled_network(kind):
    task = kind(5, 4, seed=0, dtype=torch.float64)
    model, batch = make("rnn", task, nonlinearity="tanh"), task.train_batch(0)
    states = unrolled_states(model.encoder, batch.inputs)
    outputs = model.head(torch.stack(states) if task.answers_every_step else states[-1])
    expected = torch.autograd.grad(task.loss(outputs, batch.targets), states)
    norms, direct = gradient_norms(model, task.loss, batch)
    torch.testing.assert_close(norms, [float(g.norm()) for g in expected])
    assert (direct[0] > 0) is task.answers_every_step
    assert direct[-1] == pytest.approx(norms[-1])


def test_nothing_is_left_behind():
    task = Adding(5, 4, seed=0, dtype=torch.float64)
    model = make("lstm", task, dropout=0.5)
    random = torch.get_rng_state()
    gradient_norms(model, task.loss, task.train_batch(0))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_both_states_of_an_lstm_count():
    task = Adding(5, 4, seed=0, dtype=torch.float64)
    model, batch = make("lstm", task), task.train_batch(0)
    norms, direct = gradient_norms(model, task.loss, batch)
    # The cell of the last step reaches the loss through no other step: its share is zero there.
    assert norms[-1] == pytest.approx(direct[-1])
    _, (h, c) = model.encoder(batch.inputs[:-1])
    h, c = (part.detach().requires_grad_() for part in (h, c))
    hidden, _ = model.encoder(batch.inputs[-1:], (h, c))
    loss = task.loss(model.head(hidden[-1]), batch.targets)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, (h, c))]).norm()
    assert norms[-2] == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["spectral", "orthogonal"])
@pytest.mark.parametrize("kind", [Adding, Copying])
def test_bound_holds_for_spectral_models(name, kind):
    task = kind(30, 4, seed=0, dtype=torch.float64)
    model = make(name, task, margin=0.2)
    with torch.no_grad():
        for key, parameter in model.encoder.named_parameters():
            if key.endswith("raw_singular_values"):
                parameter.normal_(std=3)
    norms, direct = gradient_norms(model, task.loss, task.train_batch(0))
    limits = gradient_bound(direct, 1.2 if name == "spectral" else 1.0)
    assert all(norm <= limit * (1 + 1e-12) for norm, limit in zip(norms, limits, strict=True))
    assert norms[-1] == pytest.approx(limits[-1])
