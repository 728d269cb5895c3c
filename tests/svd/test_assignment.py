"""A dense weight is assigned to every layer as to a plain one, and raises as set_dense_ does."""

import copy

import pytest
import torch
from torch import nn

from spectral_triton import (
    SoftplusSpectrum,
    SpectralGRU,
    SpectralGRUCell,
    SpectralLSTM,
    SpectralLSTMCell,
    SpectralRNN,
    SpectralRNNCell,
    SVDConv1d,
    SVDConv2d,
    SVDLinear,
    parametrizations,
)

WIDE = {"spectrum": SoftplusSpectrum()}
LAYERS = {
    "linear": (lambda **o: SVDLinear(4, 3, **o), "weight"),
    "conv1d": (lambda **o: SVDConv1d(4, 2, 3, groups=2, **o), "weight"),
    "conv2d": (lambda **o: SVDConv2d(2, 3, (1, 2), **o), "weight"),
    "rnn": (lambda **o: SpectralRNN(2, 3, 2, bidirectional=True, **o), "weight_hh_l1_reverse"),
    "lstm": (lambda **o: SpectralLSTM(2, 3, **o), "weight_hh_l0"),
    "gru": (lambda **o: SpectralGRU(2, 3, **o), "weight_hh_l0"),
    "rnn cell": (lambda **o: SpectralRNNCell(2, 3, **o), "weight_hh"),
    "lstm cell": (lambda **o: SpectralLSTMCell(2, 3, **o), "weight_hh"),
    "gru cell": (lambda **o: SpectralGRUCell(2, 3, **o), "weight_hh"),
    "parametrized": (lambda **o: parametrizations.svd(nn.Linear(4, 3), **o), "weight"),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


@every_layer
@pytest.mark.parametrize("wrap", [lambda w: w, nn.Parameter])
def test_assignment_factors_the_matrix(kind, wrap):
    if kind == "parametrized" and wrap is nn.Parameter:
        pytest.skip("torch registers it as a second parameter and raises")
    make, name = LAYERS[kind]
    layer = make(**WIDE)
    w = torch.randn_like(getattr(layer, name))
    setattr(layer, name, wrap(w))
    torch.testing.assert_close(getattr(layer, name).detach(), w)
    assert name not in dict(layer.named_parameters())


@every_layer
def test_what_does_not_fit_raises_and_changes_nothing(kind):
    make, name = LAYERS[kind]
    layer = make() if kind != "parametrized" else make(out_of_bounds="raise", **WIDE)
    before = copy.deepcopy(layer.state_dict())
    w = torch.randn_like(getattr(layer, name))
    wrong = [(ValueError, w[..., :-1]), (ValueError, torch.full_like(w, torch.nan))]
    if kind != "parametrized":
        wrong += [(ValueError, 10 * w), (TypeError, w.long()), (TypeError, w.tolist())]
    for error, value in wrong:
        with pytest.raises(error, match=name if kind != "parametrized" else ""):
            setattr(layer, name, value)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_layer_that_is_not_there():
    with pytest.raises(AttributeError, match="SpectralRNN has no weight_hh_l3"):
        SpectralRNN(2, 3).weight_hh_l3 = torch.eye(3)
