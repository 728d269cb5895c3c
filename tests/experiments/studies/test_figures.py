import math

import numpy as np
import pytest

from spectral_triton.experiments.studies import figures
from spectral_triton.experiments.studies.deep_mlp import KINDS
from spectral_triton.experiments.training import plots
from spectral_triton.experiments.training.plots import plt


@pytest.fixture
def drawn(monkeypatch):
    """Keeps figures open in place of saving them."""
    kept = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: kept.append(figure))
    yield kept
    plt.close("all")


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_every_kind_has_a_color_and_a_marker():
    assert set(figures.KIND_COLORS) == set(figures.KIND_MARKERS) == set(KINDS)


def test_accuracy_over_depth(drawn):
    curves = {"plain": {20: [0.4], 5: [0.8, 0.9]}, "svd": {5: [0.7]}}
    figures.accuracy_over_depth(None, curves, chance=0.1)
    (axes,) = drawn[0].axes
    data = [line.get_xydata().tolist() for line in axes.lines]
    assert data[0] == [[5, pytest.approx(0.85)], [20, 0.4]]
    assert data[1] == [[5, 0.8], [5, 0.9]]
    assert labels(drawn[0]) == ["plain", "svd", "chance"]
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["5", "20"]


def test_gradient_moments(drawn):
    flow = {
        when: {"norms": [1e-30, 1e-3, 1.0], "bound": [4.0, 2.0, 1.0]} for when in figures.MOMENTS
    }
    bare = {when: {"norms": [1e-2, 1e-1, 1.0]} for when in figures.MOMENTS}
    figures.gradient_moments(None, {"spectral": flow, "rnn": bare})
    left, right = drawn[0].axes
    assert np.isnan(left.lines[0].get_ydata()[0])
    assert left.lines[0].get_ydata()[1:].tolist() == [1e-3, 1.0]
    assert left.lines[1].get_ydata().tolist() == [4.0, 2.0, 1.0]
    assert len(right.lines) == 3
    assert left.get_ylim() == right.get_ylim()
    assert left.get_yscale() == right.get_yscale() == "log"
    assert len(labels(drawn[0])) == 6


def test_gradient_moments_are_multiples_of_the_last_steps(drawn):
    flow = {when: {"norms": [1e-3, 5e-3], "bound": [6e-3, 5e-3]} for when in figures.MOMENTS}
    figures.gradient_moments(None, {"spectral": flow})
    (axes,) = drawn[0].axes
    assert axes.lines[0].get_ydata().tolist() == [0.2, 1.0]
    assert axes.lines[1].get_ydata().tolist() == [1.2, 1.0]


def test_spectra_shows_each_gate_in_its_color(drawn):
    values = {f"w[{i}]": [[i + 1.0, i + 2.0], [i + 1.0, i + 2.0]] for i in range(3)}
    figures.spectra(None, {"gru": {"steps": [0, 10], "values": values}})
    (axes,) = drawn[0].axes
    assert axes.get_title("left") == "gru, 3 gates"
    assert axes.lines[0].get_xydata().tolist() == [[0, 1.5], [10, 1.5]]
    assert len({line.get_color() for line in axes.lines}) == 3
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["r", "z", "n"]
    assert labels(drawn[0]) == ["median", "10 % to 90 %", "all"]


def test_sensitivity(drawn):
    cells = {0.1: [0.01, 0.04], 1.0: [0.1, math.inf]}
    figures.sensitivity(None, "margin", cells, 0.1, 1 / 6, 0.003)
    (axes,) = drawn[0].axes
    assert axes.lines[0].get_ydata().tolist() == [0.01, 0.04]
    assert axes.lines[1].get_ydata().tolist() == [0.1]
    assert axes.lines[2].get_ydata().tolist() == [1 / 3]
    means = axes.lines[3].get_ydata()
    assert means[0] == pytest.approx(0.02)
    assert np.isnan(means[1])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylim() == pytest.approx((0.002, 1 / 3))
    figures.sensitivity(None, "start", {"haar": [0.1], "identity": [0.2]}, "haar", 1 / 6, 0.1)
    (axes,) = drawn[1].axes
    assert axes.get_xscale() == "linear"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["haar", "identity"]


def test_jacobians_count_steps_back(drawn):
    figures.jacobians(None, {"relu": {"random σ": [0.5, 1.0]}}, [1.02, 1.0])
    (axes,) = drawn[0].axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.5], [0, 1.0]]
    assert axes.lines[1].get_xydata().tolist() == [[1, 1.02], [0, 1.0]]


def test_pictures_are_written(tmp_path):
    figures.accuracy_over_depth(tmp_path / "a.png", {"svd": {5: [0.7]}}, chance=0.1)
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not plt.get_fignums()
