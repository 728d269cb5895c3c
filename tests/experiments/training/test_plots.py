import matplotlib.pyplot as plt
import numpy as np
import pytest

from spectral_triton.experiments.tasks.networks import MODELS
from spectral_triton.experiments.tasks.task import Metric
from spectral_triton.experiments.training import plots

ERROR = Metric("mse", "mean squared error", 1 / 6, "always answering 1", log_scale=True)
ACCURACY = Metric("accuracy", "accuracy", 0.1, "chance", higher_is_better=True)


@pytest.fixture
def drawn(monkeypatch):
    """Keeps figures open in place of saving them."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    yield figures
    plt.close("all")


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_every_model_has_a_color_of_its_own():
    assert set(plots.COLORS) == set(MODELS)
    assert len({*plots.COLORS.values(), plots.BEFORE}) == len(MODELS) + 1


def test_learning_curve(drawn):
    train, validation = [(1, 0.5), (2, 0.3)], [(2, 0.2)]
    plots.learning_curve(
        None, "t", ERROR, model="lstm", train=train, validation=validation, test=(2, 0.1)
    )
    (axes,) = drawn[0].axes
    drawn_data = [line.get_xydata().tolist() for line in axes.lines[:3]]
    assert drawn_data == [[[1, 0.5], [2, 0.3]], [[2, 0.2]], [[2, 0.1]]]
    assert labels(drawn[0]) == ["training", "validation", "test mse 0.1", "always answering 1"]
    assert (axes.get_yscale(), axes.get_ylabel()) == ("log", "mean squared error")
    assert list(axes.lines[3].get_ydata()) == [1 / 6, 1 / 6]


def test_singular_values_within_their_band(drawn):
    values = [[1.0, 1.0], [1.01, 0.99]]
    plots.singular_values(
        None, "t", model="spectral", steps=[0, 5], values=values, band=(0.99, 1.01)
    )
    (axes,) = drawn[0].axes
    low, high = axes.get_ylim()
    assert low < 0.99 < 1.01 < high
    assert "band [0.99, 1.01]" in labels(drawn[0])
    plots.singular_values(None, "t", model="rnn", steps=[0, 5], values=values, band=None)
    assert labels(drawn[1]) == ["each of 2 values", "median"]


def test_singular_values_of_gates_have_colors_of_their_own(drawn):
    values = [[1.0, 0.9, 1.2, 1.1, 2.0, 1.9]] * 2
    plots.singular_values(
        None, "t", model="spectral-gru", steps=[0, 5], values=values, band=None, gates=3
    )
    (axes,) = drawn[0].axes
    assert labels(drawn[0]) == [
        *(f"each of 2 values, gate {gate}" for gate in ("r", "z", "n")),
        "median",
    ]
    assert len({axes.lines[3 * gate].get_color() for gate in range(3)}) == 3


def test_gradient_flow_leaves_out_zeros_and_draws_the_bound(drawn):
    records = {"end": {"norms": [0.0, 2e-3, 2.0], "bound": [8.0, 4.0, 2.0]}}
    plots.gradient_flow(None, "t", {"": records})
    (axes,) = drawn[0].axes
    norms, limit = (line.get_ydata() for line in axes.lines)
    assert np.isnan(norms[0])
    # In multiples of the last step's.
    assert norms[1:].tolist() == [1e-3, 1.0]
    assert limit.tolist() == [4.0, 2.0, 1.0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] == pytest.approx(1e-3 / 3)


def test_gradient_flow_before_and_after_side_by_side_on_one_scale(drawn):
    before = {name: {"norms": [0.1, 1.0]} for name in ("a", "b")}
    after = {name: {"norms": [0.5, 1.0]} for name in ("a", "b")}
    plots.gradient_flow(None, "t", {"before training": before, "after training": after})
    left, right = drawn[0].axes
    assert left.get_title("left") == "before training"
    assert right.get_title("left") == "after training"
    assert left.get_ylim() == right.get_ylim()
    assert labels(drawn[0]) == ["a", "b"]
    # Equal curves are both seen: the first is the wider one.
    assert left.lines[0].get_linewidth() > left.lines[1].get_linewidth()


@pytest.mark.parametrize(
    ("range_", "expected"),
    [
        ((0.15, 0.4), {"0.2", "0.3"}),
        ((1e-2, 1.0), {"0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"}),
        ((1e-9, 1.0), {"1", "0.001", "$10^{-8}$"}),
    ],
)
def test_ticks_are_numbers_as_they_are_written(range_, expected):
    figure, axes = plt.subplots()
    axes.set_yscale("log")
    axes.set_ylim(*range_)
    plots.plain_ticks(axes)
    figure.canvas.draw()
    ticks = {tick.get_text() for tick in axes.get_yticklabels(which="both")}
    assert not any("times" in text for text in ticks)
    assert expected - {"0.001", "$10^{-8}$"} <= ticks
    plt.close(figure)


def test_comparison_shows_means_over_seeds(drawn):
    curves = {"lstm": [[(1, 0.2), (2, 0.4)], [(1, 0.4), (2, 0.8)]], "gru": [[(1, 0.5), (2, 0.6)]]}
    plots.comparison(None, "t", ACCURACY, curves, "validation")
    (axes,) = drawn[0].axes
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.3, 0.6])
    assert labels(drawn[0]) == ["lstm, mean of 2 seeds", "gru", "chance"]
    assert axes.get_ylabel() == "validation accuracy"


def test_cases_have_a_dot_for_each_model_and_a_gap_where_one_is_missing(drawn):
    values = {"hard": {"lstm": 0.4, "gru": 0.5}, "easy": {"lstm": 0.9}}
    plots.cases(None, "t", ACCURACY, values)
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hard", "easy"]
    dots = {line.get_label(): line.get_xdata() for line in axes.lines[2:]}
    assert dots["lstm"].tolist() == [0.4, 0.9]
    assert dots["gru"][0] == 0.5
    assert np.isnan(dots["gru"][1])
    assert len(set(plots.MARKERS.values())) == len(MODELS) == len(plots.MARKERS)


def test_pictures_are_written(tmp_path):
    plots.gradient_flow(tmp_path / "a.png", "t", {"": {"end": {"norms": [0.0, 0.0]}}})
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not plt.get_fignums()
