"""Writing to a dense weight that a layer returns: told where it can be, and never by mistake."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn

from spectral_triton import (
    SpectralGRU,
    SpectralGRUCell,
    SpectralLSTM,
    SpectralLSTMCell,
    SpectralRNN,
    SpectralRNNCell,
    SVDConv2d,
    SVDLinear,
    SVDTransposedLinear,
    SVDWeight,
    cached,
)
from spectral_triton.svd.handed_out import forget, hand_out, warn_of_writing

LAYERS = {
    "linear": (lambda: SVDLinear(3, 3), (2, 3), "weight"),
    "transposed linear": (lambda: SVDTransposedLinear(3, 3), (2, 3), "weight"),
    "convolution": (lambda: SVDConv2d(3, 3, 2), (3, 4, 4), "weight"),
    "convolution in groups": (lambda: SVDConv2d(4, 4, 2, groups=2), (4, 4, 4), "weight"),
    "rnn": (lambda: SpectralRNN(3, 3, 2), (2, 3), "weight_hh_l1"),
    "lstm": (lambda: SpectralLSTM(3, 3, bidirectional=True), (2, 3), "weight_hh_l0_reverse"),
    "gru": (lambda: SpectralGRU(3, 3), (2, 3), "weight_hh_l0"),
    "rnn cell": (lambda: SpectralRNNCell(3, 3), (2, 3), "weight_hh"),
    "lstm cell": (lambda: SpectralLSTMCell(3, 3), (2, 3), "weight_hh"),
    "gru cell": (lambda: SpectralGRUCell(3, 3), (2, 3), "weight_hh"),
}
WRITES = {
    "nn.init": nn.init.xavier_uniform_,
    "no_grad": lambda w: torch.no_grad()(w.fill_)(0),
    "detach": lambda w: w.detach().mul_(2),
    "a view": lambda w: torch.no_grad()(w[0].zero_)(),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture
def silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@each_layer
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_is_told_once_at_the_next_use(name, write):
    make, shape, weight = LAYERS[name]
    layer = make()
    before = getattr(layer, weight).detach().clone()
    write(getattr(layer, weight))
    match = f"^{weight} of {type(layer).__name__}, .* was written to, .*reset_parameters"
    with pytest.warns(UserWarning, match=match) as told:
        layer(torch.randn(shape))
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.randn(shape))
        assert torch.equal(getattr(layer, weight), before)


@each_layer
@pytest.mark.usefixtures("silence")
def test_reading_is_no_writing(name):
    make, shape, weight = LAYERS[name]
    layer = make()
    for _ in range(2):
        w = getattr(layer, weight)
        (w.square().sum() + layer(torch.randn(shape))[0].sum()).backward()
        w.detach().clone().mul_(2)
        with torch.no_grad(), cached():
            getattr(layer, weight)
            layer(torch.randn(shape))


@each_layer
@pytest.mark.usefixtures("silence")
def test_what_was_changed_can_be_assigned(name):
    make, shape, weight = LAYERS[name]
    layer = make()
    with torch.no_grad():
        w = getattr(layer, weight)
        w.neg_()
        setattr(layer, weight, w)
    torch.testing.assert_close(getattr(layer, weight), w)
    layer(torch.randn(shape))


@pytest.mark.usefixtures("silence")
def test_neither_copies_nor_pickles_know_of_it():
    layer = SVDLinear(3, 3)
    layer.weight.detach().mul_(2)
    for again in (copy.deepcopy(layer), copy.copy(layer.svd), pickle.loads(pickle.dumps(layer))):
        assert not any("_handed_out" in vars(part) for part in again.modules())
        again(torch.randn(3))


def test_what_was_handed_out_is_not_kept():
    layer = SVDLinear(3, 3)
    w = layer.weight
    alive, storage = weakref.ref(w), weakref.ref(w.untyped_storage())
    del w
    gc.collect()
    assert alive() is None
    assert storage() is None


@pytest.mark.usefixtures("silence")
def test_what_counts_no_changes_is_handed_out_as_it_is():
    layer = SVDLinear(3, 3)
    with torch.inference_mode():
        layer.weight.mul_(2)
    layer(torch.randn(3))
    state = {k: torch.stack([v, v]) for k, v in layer.state_dict(keep_vars=True).items()}

    def weight_of(parameters):
        with torch.no_grad():
            return torch.func.functional_call(
                _Weight(layer), {f"layer.{k}": v for k, v in parameters.items()}
            )

    assert torch.vmap(weight_of)(state).shape == (2, 3, 3)


class _Weight(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.weight


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_forgetting(device):
    weight = SVDWeight(3, 3, device=device)
    dense = weight.to_dense()
    assert hand_out(weight, dense, "w") is dense
    dense.detach().mul_(2)
    forget(weight)
    warn_of_writing(weight)
    forget(weight)
