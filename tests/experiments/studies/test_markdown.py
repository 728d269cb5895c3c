import pytest

from spectral_triton.experiments.studies.markdown import duration, number, spread, table


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.97654, "97.65 %"),
        ("recall", 1.0, "100.00 %"),
        ("recall", 0.99999, "99.99 %"),
        ("mse", 0.00076581, "0.000766"),
        ("loss", 1e-7, "1e-07"),
        ("perplexity", 169.96, "170.0"),
        ("perplexity", 99.96, "100"),
    ],
)
def test_number(metric, value, text):
    assert number(metric, value) == text


def test_spread_of_one_and_of_several():
    assert spread("mse", [0.25]) == "0.25"
    assert spread("mse", [0.2, 0.3, 0.1]) == "0.2 (0.1 to 0.3)"


def test_table():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3601, "60:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text
