"""Tensors that hooks compute are those of the parameters as they are, in every layer."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from spectral_triton.layers.conv import SVDConv1d
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.layers.residual import SVDResidualBlock
from spectral_triton.recurrent.cell import RecurrentCell
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.gru_cell import SpectralGRUCell
from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.recurrent.rnn_cell import SpectralRNNCell
from spectral_triton.runtime.cached import cached
from spectral_triton.runtime.computed_tensors import compute_tensors, computing_hooks
from spectral_triton.svd.weight import SVDWeight

LAYERS = [
    (lambda: SVDWeight(3, 3), (2, 3)),
    (lambda: SVDLinear(3, 3), (2, 3)),
    (lambda: SVDConv1d(3, 3, 2), (2, 3, 5)),
    (lambda: SVDResidualBlock(3), (2, 3)),
    (lambda: SpectralRNN(3, 3), (4, 2, 3)),
    (lambda: SpectralGRU(3, 3), (4, 2, 3)),
    (lambda: SpectralLSTM(3, 3), (4, 2, 3)),
    (lambda: SpectralRNNCell(3, 3), (2, 3)),
    (lambda: SpectralGRUCell(3, 3), (2, 3)),
]


def output(layer, x):
    # From a state of zero a cell would have no use for its transition.
    y = layer(x, torch.ones_like(x)) if isinstance(layer, RecurrentCell) else layer(x)
    return y[0] if isinstance(y, tuple) else y


def pruned(make):
    layer = make()
    for part in layer.modules():
        if isinstance(part, SVDWeight):
            for name in ("left", "raw_singular_values"):
                prune.l1_unstructured(part, name, 0.6)
    return layer


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_pruned_factors_follow_their_parameters(make, shape):
    first, second, x = pruned(make), pruned(make), torch.randn(shape)
    output(first, x), output(second, x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(output(second, x), output(first, x))
    with cached():
        assert torch.equal(output(second, x), output(first, x))


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_pruned_factors_train(make, shape):
    layer, x = pruned(make), torch.randn(shape)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    outputs = []
    for _ in range(3):
        optimizer.zero_grad()
        # Not the norm alone, which an orthogonal W does not change.
        loss = (output(layer, x) - 1).square().sum()
        loss.backward()
        optimizer.step()
        outputs.append(loss.item())
    assert len(set(outputs)) == 3
    for part in layer.modules():
        if isinstance(part, SVDWeight):
            assert part.left_orig.grad.abs().sum() > 0
            # Of the triangle that acts, six entries of each matrix.
            assert ((part.left.triu() != 0).sum((-2, -1)) < 6).any()


def test_only_hooks_that_compute_a_tensor_are_run():
    linear, seen = nn.Linear(3, 3), []
    linear.register_forward_pre_hook(lambda *_: seen.append(1))
    prune.identity(linear, "weight")
    assert len(computing_hooks(linear)) == 1
    linear.weight_orig.data.fill_(2.0)
    compute_tensors(linear)
    assert (linear.weight == 2).all()
    assert seen == []
