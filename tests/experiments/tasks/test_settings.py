import pytest

from spectral_triton.experiments.errors import UsageError, option
from spectral_triton.experiments.tasks.settings import Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("num_layers", 0),
        ("batch_size", -1),
        ("evaluations", 0),
        ("steps", 0),
        ("lr", 0.0),
        ("reflectors_lr", -1.0),
        ("singular_values_lr", float("nan")),
        ("weight_decay", -1.0),
        ("clip", float("inf")),
        ("margin", -0.1),
        ("rebase", 0),
        ("dropout", 1.0),
        ("schedule", "step"),
    ],
)
def test_bad_value_is_named(field, value):
    with pytest.raises(UsageError, match=f"{option(field)}.*{value}"):
        Settings(**{"steps": 1, field: value})


def test_reflectors_fit_the_hidden_size():
    assert Settings(steps=1, hidden_size=4, num_reflectors=(0, 4)).num_reflectors == (0, 4)
    with pytest.raises(UsageError, match="from 0 to the hidden size 4, not 5"):
        Settings(steps=1, hidden_size=4, num_reflectors=(1, 5))


@pytest.mark.parametrize("length", [{}, {"steps": 1, "epochs": 1}])
def test_steps_or_epochs(length):
    with pytest.raises(UsageError, match="either --steps or --epochs"):
        Settings(**length)


def test_total_steps():
    assert Settings(steps=7).total_steps(None) == 7
    assert Settings(epochs=3).total_steps(5) == 15
    with pytest.raises(UsageError, match="give --steps"):
        Settings(epochs=3).total_steps(None)


def test_rate_factor():
    assert Settings(steps=1, schedule="constant").rate_factor(9, 10) == 1
    assert Settings(steps=1, schedule="linear").rate_factor(5, 10) == 0.5
    cosine = Settings(steps=1, schedule="cosine")
    assert cosine.rate_factor(0, 10) == 1
    assert cosine.rate_factor(5, 10) == pytest.approx(0.5)
    assert cosine.rate_factor(10, 10) == 0
