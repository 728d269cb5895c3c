import math

import pytest
import torch
from torch import nn

from spectral_triton import FixedSpectrum, SigmoidSpectrum, SoftplusSpectrum, SpectralRNN
from spectral_triton.analysis.bounds import (
    classification_margins,
    generalization_order,
    gradient_bound,
    jacobian_norms,
    step_factor,
)
from spectral_triton.analysis.gradient_flow import gradient_norms

T, F, N = 12, 2, 5


def network(nonlinearity="identity", *, center=1.0, margin=0.2, raw=None, **options):
    rnn = SpectralRNN(
        F,
        N,
        nonlinearity=nonlinearity,
        spectrum=SigmoidSpectrum(center=center, margin=margin),
        init="haar",
        **options,
    )
    with torch.no_grad():
        values = rnn.svd_weight().raw_singular_values
        values.normal_(std=3) if raw is None else values.fill_(raw)
        rnn.weight_ih_l0.normal_()
    return rnn


def dense_jacobians(rnn, inputs, phi):
    """∂h_T/∂h_t for all t by autograd on the dense formula."""

    def last(h, t):
        for x in inputs[t + 1 :]:
            h = phi(rnn.weight_ih_l0 @ x + rnn.bias_ih_l0 + rnn.bias_hh_l0 + rnn.weight_hh_l0 @ h)
        return h

    states, h = [], torch.zeros(N)
    for x in inputs:
        h = phi(rnn.weight_ih_l0 @ x + rnn.bias_ih_l0 + rnn.bias_hh_l0 + rnn.weight_hh_l0 @ h)
        states.append(h.detach())
    return [
        torch.autograd.functional.jacobian(lambda h, t=t: last(h, t), state)
        for t, state in enumerate(states)
    ]


PHI = {
    "identity": lambda z: z,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": nn.functional.leaky_relu,
}


@pytest.mark.parametrize("nonlinearity", PHI)
def test_measured_jacobians_are_those_of_the_dense_formula(nonlinearity):
    rnn, inputs = network(nonlinearity), torch.randn(T, F)
    expected = [
        torch.linalg.matrix_norm(j, 2) for j in dense_jacobians(rnn, inputs, PHI[nonlinearity])
    ]
    torch.testing.assert_close(jacobian_norms(rnn, inputs), torch.stack(expected))


@pytest.mark.parametrize(("kind", "parts"), [(nn.LSTM, 2), (nn.GRU, 1)])
def test_measured_jacobians_of_gated_networks(kind, parts):
    plain, inputs = kind(F, N, 2, batch_first=True), torch.randn(3, F)
    states = []
    for t in range(3):
        _, state = plain(inputs[None, : t + 1])
        states.append(torch.cat(state if parts == 2 else (state,)).detach())

    def last(flat, t):
        state = flat.split(2) if parts == 2 else flat
        _, state = plain(inputs[None, t + 1 :], state)
        return torch.cat(state if parts == 2 else (state,))

    size = parts * 2 * N
    expected = [
        torch.autograd.functional.jacobian(lambda s, t=t: last(s, t), state).reshape(size, size)
        for t, state in enumerate(states[:2])
    ]
    norms = [torch.linalg.matrix_norm(j, 2) for j in expected] + [torch.ones(())]
    torch.testing.assert_close(jacobian_norms(plain, inputs), torch.stack(norms))
    assert plain.training


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("nonlinearity", PHI)
def test_bound_holds_for_random_networks(nonlinearity, seed):
    torch.manual_seed(seed)
    rnn = network(nonlinearity)
    norms = jacobian_norms(rnn, torch.randn(T, F))
    bound = step_factor(rnn) ** torch.arange(T - 1, -1, -1.0)
    assert (norms <= bound * (1 + 1e-12)).all()


@pytest.mark.parametrize("raw", [1e3, -1e3])
def test_bound_is_attained_at_the_edge_of_the_band(raw):
    rnn = network(raw=raw)
    factor = step_factor(rnn) if raw > 0 else 0.8
    expected = factor ** torch.arange(T - 1, -1, -1.0)
    torch.testing.assert_close(jacobian_norms(rnn, torch.randn(T, F)), expected)


def test_bound_of_gradients_is_attained_at_the_edge_of_the_band():
    rnn = network(raw=1e3)
    norms, direct = gradient_norms(rnn, torch.randn(T, 3, F), lambda h: h[-1].square().sum())
    limits = gradient_bound(direct, step_factor(rnn))
    assert norms == pytest.approx(limits, rel=1e-12)
    assert norms[0] / norms[-1] == pytest.approx(1.2 ** (T - 1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("nonlinearity", PHI)
def test_bound_of_gradients_holds_where_every_step_is_read(nonlinearity, seed):
    torch.manual_seed(seed)
    rnn = network(nonlinearity)
    norms, direct = gradient_norms(rnn, torch.randn(T, 3, F), lambda h: h.sin().sum())
    limits = gradient_bound(direct, step_factor(rnn))
    assert all(norm <= limit * (1 + 1e-12) for norm, limit in zip(norms, limits, strict=True))
    assert norms[-1] == pytest.approx(limits[-1])


def test_an_infinite_factor_bounds_what_nothing_follows():
    assert gradient_bound([0.0, 2.0, 3.0, 0.0], math.inf) == [math.inf, math.inf, 3.0, 0.0]


def test_bound_is_a_sum_of_powers():
    assert gradient_bound([0.0, 0.0, 3.0], 2.0) == [12.0, 6.0, 3.0]
    assert gradient_bound([1.0, 0.0, 3.0], 2.0) == [13.0, 6.0, 3.0]
    assert gradient_bound([], 2.0) == []


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"spectrum": SigmoidSpectrum(center=1.0, margin=0.25)}, 1.25),
        ({"spectrum": SigmoidSpectrum(center=-1.0, margin=0.25)}, 1.25),
        ({"spectrum": FixedSpectrum(0.5)}, 0.5),
        ({"spectrum": SoftplusSpectrum()}, math.inf),
        (
            {"spectrum": FixedSpectrum(0.5), "nonlinearity": "leaky_relu", "negative_slope": 3.0},
            1.5,
        ),
    ],
)
def test_step_factor(options, factor):
    assert step_factor(SpectralRNN(F, N, **options)) == factor


@pytest.mark.parametrize(
    ("rnn", "error", "match"),
    [
        (nn.RNN(F, N), TypeError, "must be a SpectralRNN, got RNN"),
        (SpectralRNN(F, N, 2), ValueError, "one layer"),
        (SpectralRNN(F, N, nonlinearity="modrelu"), ValueError, "modrelu"),
    ],
)
def test_step_factor_refuses(rnn, error, match):
    with pytest.raises(error, match=match):
        step_factor(rnn)


@pytest.mark.parametrize(
    ("encoder", "inputs", "match"),
    [
        (nn.GRU(F, N), torch.zeros(T, 1, F), "one sequence"),
        (nn.GRU(F, N, bidirectional=True), torch.zeros(T, F), "one direction"),
    ],
)
def test_jacobians_are_refused(encoder, inputs, match):
    with pytest.raises(ValueError, match=match):
        jacobian_norms(encoder, inputs)


def test_terms_of_the_order():
    rnn, head = network(center=1.0, margin=0.5, raw=1e3), nn.Linear(N, 3)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.eye(N, F) * torch.tensor([2.0, 1.0]))
        head.weight.copy_(torch.eye(3, N) * 4)
    order = generalization_order(rnn, head, steps=3, samples=100, margin=0.5)
    assert order.sizes == (F, N, 3)
    terms = order.input_norm, order.output_norm, order.transition_norm, order.power
    assert terms == pytest.approx((2.0, 4.0, 1.5, 1.5**3))
    assert order.value == pytest.approx(5 * 9 * 2 * 4 * 1.5**3 / (0.5 * 10))


def test_a_contracting_transition_counts_as_one_and_a_huge_one_as_infinite():
    plain, head = nn.RNN(F, N), nn.Linear(N, 3)
    with torch.no_grad():
        plain.weight_hh_l0.copy_(torch.eye(N) * 0.5)
    order = generalization_order(plain, head, steps=4, samples=1, margin=1)
    assert (order.transition_norm, order.power) == pytest.approx((0.5, 1.0))
    with torch.no_grad():
        plain.weight_hh_l0.mul_(200)
    assert generalization_order(plain, head, steps=1000, samples=1, margin=1).value == math.inf


def test_a_steep_nonlinearity_counts_in_every_step():
    options = {"nonlinearity": "leaky_relu", "negative_slope": 3.0, "spectrum": FixedSpectrum(0.5)}
    order = generalization_order(
        SpectralRNN(F, N, **options), nn.Linear(N, 3), steps=2, samples=1, margin=1
    )
    assert (order.transition_norm, order.power) == pytest.approx((1.5, 2.25))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"rnn": SpectralRNN(F, N, nonlinearity="modrelu")}, ValueError, "modrelu"),
        ({"rnn": nn.GRU(F, N)}, TypeError, "rnn must be"),
        ({"rnn": nn.RNN(F, N, 2)}, ValueError, "one layer"),
        ({"head": nn.Identity()}, TypeError, "head must be"),
        ({"head": nn.Linear(N + 1, 3)}, ValueError, "size 5, takes 6"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"samples": 0}, ValueError, "samples must be at least 1"),
        ({"margin": 0}, ValueError, "margin must be positive"),
    ],
)
def test_order_refuses(changes, error, match):
    arguments = {"rnn": nn.RNN(F, N), "head": nn.Linear(N, 3), "steps": 2, "samples": 3}
    arguments = {**arguments, "margin": 1.0, **changes}
    with pytest.raises(error, match=match):
        generalization_order(arguments.pop("rnn"), arguments.pop("head"), **arguments)


def test_margins():
    outputs = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 2.5], [1.0, 5.0, 1.0]])
    margins = classification_margins(outputs, torch.tensor([0, 1, 1]))
    assert margins.tolist() == [2.0, -0.5, 4.0]
    with pytest.raises(ValueError, match="shapes"):
        classification_margins(outputs, torch.tensor([0]))
