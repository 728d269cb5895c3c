import pytest
import torch
from torch import nn

from spectral_triton import SpectralRNN
from spectral_triton.analysis.gradient_flow import gradient_norms

T, B, F, N = 6, 3, 2, 5
NETWORKS = {
    "spectral": lambda **k: SpectralRNN(F, N, init="haar", **k),
    "rnn": lambda **k: nn.RNN(F, N, **k),
    "lstm": lambda **k: nn.LSTM(F, N, **k),
    "gru": lambda **k: nn.GRU(F, N, **k),
}
CELLS = {"spectral": nn.RNNCell, "rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}


def cells_of(kind, network):
    """torch's cells with the same weights, the transition as a dense matrix."""
    cells = []
    for layer in range(network.num_layers):
        cell = CELLS[kind](F if layer == 0 else N, N)
        with torch.no_grad():
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(cell, name).copy_(getattr(network, f"{name}_l{layer}"))
        cells.append(cell)
    return cells


def unrolled(kind, cells, inputs):
    """All states (layers, parts) of every step and the last layer's outputs, step by step."""
    lstm = kind == "lstm"
    zeros = torch.zeros(inputs.shape[1], N)
    states = [[(zeros, zeros) if lstm else (zeros,) for _ in cells]]
    for x in inputs:
        now = []
        for cell, before in zip(cells, states[-1], strict=True):
            after = cell(x, before if lstm else before[0])
            now.append(after if lstm else (after,))
            x = now[-1][0]
        states.append(now)
    return states[1:], torch.stack([state[-1][0] for state in states[1:]])


def weigh(hidden):
    """A loss that reads steps 2 and T, each in its own way."""
    return hidden[-1].square().sum() + hidden[1].sin().sum()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", NETWORKS)
def test_norms_are_those_of_the_unrolled_network(kind, layers):
    network, inputs = NETWORKS[kind](num_layers=layers), torch.randn(T, B, F)
    norms, direct = gradient_norms(network, inputs, weigh)
    states, hidden = unrolled(kind, cells_of(kind, network), inputs)
    # h_t as one leaf: from it on, all that follows depends on every layer's part at once.
    for t, state in enumerate(states):
        leaves = [tuple(p.detach().requires_grad_() for p in parts) for parts in state]
        expected = state_gradient(kind, network, leaves, hidden, inputs, t)
        assert norms[t] == pytest.approx(expected, rel=1e-10)
    assert direct[0] == direct[2] == 0
    expected = (2 * hidden[-1]).norm(), hidden[1].cos().norm()
    assert (direct[-1], direct[1]) == pytest.approx(tuple(e.item() for e in expected))


def state_gradient(kind, network, leaves, hidden, inputs, t):
    lstm, cells = kind == "lstm", cells_of(kind, network)
    outputs = [*hidden[:t].detach(), leaves[-1][0]]
    state = leaves
    for x in inputs[t + 1 :]:
        now = []
        for cell, before in zip(cells, state, strict=True):
            after = cell(x, before if lstm else before[0])
            now.append(after if lstm else (after,))
            x = now[-1][0]
        state = now
        outputs.append(state[-1][0])
    flat = [part for parts in leaves for part in parts]
    gradients = torch.autograd.grad(weigh(torch.stack(outputs)), flat, allow_unused=True)
    return float(torch.cat([g.flatten() for g in gradients if g is not None]).norm())


def test_batch_first_and_a_given_state():
    plain, first = nn.GRU(F, N), nn.GRU(F, N, batch_first=True)
    first.load_state_dict(plain.state_dict())
    inputs, state = torch.randn(T, B, F), torch.randn(1, B, N)
    expected = gradient_norms(plain, inputs, weigh, state)
    assert gradient_norms(first, inputs.transpose(0, 1), weigh, state) == expected
    assert expected != gradient_norms(plain, inputs, weigh)


def test_nothing_is_left_behind():
    network = nn.LSTM(F, N, 2, dropout=0.5)
    random = torch.get_rng_state()
    with torch.no_grad():
        once = gradient_norms(network, torch.ones(T, B, F), weigh)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert once == gradient_norms(network, torch.ones(T, B, F), weigh)


def test_what_was_in_evaluation_mode_stays_so():
    network = nn.LSTM(F, N)
    network.frozen = nn.Dropout().eval()
    gradient_norms(network, torch.ones(T, B, F), weigh)
    assert network.training
    assert not network.frozen.training


def test_frozen_weights():
    network = nn.RNN(F, N)
    inputs = torch.randn(T, B, F)
    expected = gradient_norms(network, inputs, weigh)
    assert gradient_norms(network.requires_grad_(False), inputs, weigh) == expected


@pytest.mark.parametrize(
    ("network", "inputs", "error", "match"),
    [
        (nn.RNN(F, N), torch.zeros(T, F), ValueError, r"batch of sequences .* got \(6, 2\)"),
        (nn.RNN(F, N), torch.zeros(0, B, F), ValueError, "batch of sequences"),
        (nn.RNN(F, N), torch.zeros(T, B, F).long(), TypeError, "inputs must be a real floating"),
        (nn.RNN(F, N, bidirectional=True), torch.zeros(T, B, F), ValueError, "one direction"),
    ],
)
def test_refusals(network, inputs, error, match):
    with pytest.raises(error, match=match):
        gradient_norms(network, inputs, weigh)


@pytest.mark.parametrize(
    "loss", [lambda h: h[-1], lambda h: h.detach().sum(), lambda h: h.sum().item()]
)
def test_a_loss_without_one_gradient_is_refused(loss):
    with pytest.raises(ValueError, match="loss must return a scalar with a gradient, got"):
        gradient_norms(nn.RNN(F, N), torch.zeros(T, B, F), loss)
