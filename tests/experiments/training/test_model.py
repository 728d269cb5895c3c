import pytest
import torch
from torch import nn

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.tasks.adding import Adding
from spectral_triton.experiments.tasks.copying import Copying
from spectral_triton.experiments.tasks.networks import MODELS
from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.experiments.training.model import (
    GATED_LAYERS,
    build_model,
    count_parameters,
    detach_state,
    lipschitz_bound,
)

CPU = torch.device("cpu")


def make(name, task=None, dtype=torch.float32, **settings):
    settings = Settings(**{"steps": 1, "hidden_size": 6, "num_reflectors": (2, 3), **settings})
    task = task or Adding(5, 4, seed=0, dtype=dtype)
    torch.manual_seed(0)
    return build_model(name, settings, task, device=CPU, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "rnn"])
def test_splitting_the_sequence_changes_nothing(name, layers, dtype):
    task = Copying(5, 4, seed=0, dtype=dtype)
    model = make(name, task, dtype, num_layers=layers)
    inputs = task.train_batch(0).inputs
    whole, end = model(inputs)
    first, state = model(inputs[:7])
    second, state = model(inputs[7:], state)
    assert whole.dtype == dtype
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "rnn"])
def test_same_seed_same_model(name):
    first, second = make(name).state_dict(), make(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_answer_comes_from_the_last_step():
    model = make("lstm")
    inputs = torch.randn(5, 4, 2, dtype=torch.float32)
    outputs, _ = model(inputs)
    hidden, _ = model.encoder(inputs)
    torch.testing.assert_close(outputs, model.head(hidden[-1]))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "rnn"])
def test_both_ways_the_answer_comes_from_both_ends(name, layers):
    model = make(name, bidirectional=True, num_layers=layers)
    inputs = torch.randn(5, 4, 2, dtype=torch.float32)
    hidden, _ = model.encoder(inputs)
    ends = torch.cat((hidden[-1, :, :6], hidden[0, :, 6:]), -1)
    torch.testing.assert_close(model(inputs)[0], model.head(ends))
    assert (model.singular_values() is None) == (name in ("lstm", "gru"))


def test_answers_of_every_step_are_not_read_ahead():
    task = Copying(3, 4, seed=0, dtype=torch.float32)
    with pytest.raises(UsageError, match="bidirectional would read the answers"):
        make("spectral", task, bidirectional=True)


def test_identity_start():
    model = make("irnn")
    assert torch.equal(model.encoder.weight_hh_l0, torch.eye(6, dtype=torch.float32))
    torch.testing.assert_close(model.singular_values(), torch.ones(6, dtype=torch.float32))
    assert not model.encoder.bias_ih_l0.any()
    assert not model.encoder.bias_hh_l0.any()


@pytest.mark.parametrize("name", GATED_LAYERS)
def test_gates_that_keep_the_state_begin_open(name):
    encoder = make(name).encoder
    state = torch.full((1, 1, 6), 0.9, dtype=torch.float32)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() == 2:
                parameter.zero_()
        bias = (encoder.bias_ih_l0 + encoder.bias_hh_l0).reshape(-1, 6)
        inputs = torch.zeros(1, 1, 2, dtype=torch.float32)
        _, carried = encoder(inputs, (state, state) if name.endswith("lstm") else state)
    torch.testing.assert_close(bias[1], torch.ones(6, dtype=torch.float32))
    kept = carried[1] if name.endswith("lstm") else carried
    assert (kept / 0.9).mean() > 0.6


@pytest.mark.parametrize("name", ["spectral", "orthogonal"])
def test_singular_values_are_those_of_the_transition(name):
    model = make(name, nonlinearity="identity", margin=0.3, init="haar")
    for name_, parameter in model.encoder.named_parameters():
        if name_.endswith("raw_singular_values"):
            nn.init.normal_(parameter)
    basis = torch.eye(6, dtype=torch.float32).unsqueeze(0)
    zeros = torch.zeros(1, 6, 2, dtype=torch.float32)
    with torch.no_grad():
        moved = model.encoder(zeros, basis)[1] - model.encoder(zeros, 0 * basis)[1]
    expected = torch.linalg.svdvals(moved[0])
    torch.testing.assert_close(model.singular_values(), expected, rtol=1e-5, atol=1e-6)
    low, high = (0.7, 1.3) if name == "spectral" else (1.0, 1.0)
    assert low - 1e-6 <= float(expected.min()) <= float(expected.max()) <= high + 1e-6


def test_one_of_two_equal_biases_is_trained():
    trained = {n for n, p in make("spectral", num_layers=2).named_parameters() if p.requires_grad}
    assert {n for n in trained if "bias" in n and "encoder" in n} == {
        "encoder.bias_ih_l0",
        "encoder.bias_ih_l1",
    }


@pytest.mark.parametrize(("name", "gates"), [("spectral-lstm", 4), ("spectral-gru", 3)])
def test_singular_values_of_bounded_gates(name, gates):
    model = make(name, margin=0.3, init="haar")
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("raw_singular_values"):
            nn.init.normal_(parameter, std=3)
    weights = model.encoder.weight_hh_l0.detach().unflatten(0, (gates, 6))
    expected = torch.linalg.svdvals(weights).flatten()  # one gate after another
    torch.testing.assert_close(model.singular_values(), expected, rtol=1e-5, atol=1e-6)
    assert 0.7 - 1e-6 <= float(expected.min()) <= float(expected.max()) <= 1.3 + 1e-6


def test_gated_models_have_no_single_transition():
    assert make("lstm").singular_values() is None
    assert make("rnn", nonlinearity="tanh").singular_values().shape == (6,)


def test_sequential_mnist_has_the_published_size():
    task = Adding(5, 4, seed=0, dtype=torch.float32)
    task.input_size, task.output_size = 1, 10
    model = make("spectral", task, hidden_size=128, num_reflectors=(16, 16))
    assert 5_000 < count_parameters(model) < 6_000


def test_dropout_acts_in_training_only():
    task = Copying(3, 4, seed=0, dtype=torch.float32)
    model = make("gru", task, dropout=0.5)
    inputs = task.train_batch(0).inputs
    first, second = model(inputs)[0], model(inputs)[0]
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(inputs)[0], model(inputs)[0])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "rnn",
            {"nonlinearity": "leaky_relu"},
            "nonlinearity of rnn must be one of tanh, relu, not 'leaky_relu'",
        ),
        ("spectral", {"nonlinearity": "sine"}, "nonlinearity of spectral must be one of .*'sine'"),
        ("orthogonal", {"init": "zeros"}, "init must be one of identity, .*'zeros'"),
        ("spectral-gru", {"init": "zeros"}, "init must be one of identity, .*'zeros'"),
        ("spectral", {"margin": 0.0}, "margin 0 leaves nothing to learn: use --model orthogonal"),
        ("spectral-lstm", {"margin": 0.0}, "nothing to learn: spectral-lstm needs a positive"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(UsageError, match=message):
        make(name, **settings)


def test_detached_state_is_equal_and_free():
    state = torch.ones(2, requires_grad=True) * 2
    pair = detach_state((state, state))
    assert torch.equal(pair[0], state)
    assert not pair[0].requires_grad
    assert not detach_state(state).requires_grad
    assert detach_state(None) is None


def test_lipschitz_bound():
    settings = Settings(steps=1, margin=0.05)
    assert lipschitz_bound("spectral", settings) == 1.05
    assert lipschitz_bound("orthogonal", settings) == 1.0
    assert lipschitz_bound("lstm", settings) is None
    assert lipschitz_bound("spectral-lstm", settings) is None
    assert lipschitz_bound("spectral", Settings(steps=1, nonlinearity="modrelu")) is None
    assert lipschitz_bound("spectral", Settings(steps=1, num_layers=2)) is None
    assert lipschitz_bound("spectral", Settings(steps=1, bidirectional=True)) is None
