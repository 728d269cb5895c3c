import copy
import io
import tempfile
import warnings
from collections import OrderedDict

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from spectral_triton import (
    SVDMLP,
    SpectralGRU,
    SpectralLSTM,
    SpectralRNN,
    SpectralRNNCell,
    SVDConv2d,
    SVDLinear,
    bake,
    parametrizations,
)
from spectral_triton.spectra.spectrum import (
    FixedSpectrum,
    SigmoidSpectrum,
    SignedSpectrum,
    Spectrum,
)
from spectral_triton.svd.weight import SVDWeight


class Exponential(Spectrum):
    """One of a user, whose repr holds an address."""

    bounds, initial = (0.0, float("inf")), 1.0

    def __call__(self, raw):
        return raw.exp()

    def inverse(self, singular_values):
        return singular_values.log()


def model(spectrum):
    with warnings.catch_warnings():
        # Of the weight, which the bounds change.
        warnings.simplefilter("ignore")
        parametrized = parametrizations.svd(
            nn.Linear(3, 3), spectrum=spectrum, out_of_bounds="clip"
        )
    return nn.Sequential(SVDLinear(3, 3, spectrum=spectrum), parametrized)


def through_safetensors(state):
    safetensors = pytest.importorskip("safetensors.torch")
    return safetensors.load(safetensors.save(dict(state)))


def without_prefix(state):
    prefixed = OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
    prefixed._metadata = OrderedDict((f"module.{k}", v) for k, v in state._metadata.items())
    bare = OrderedDict((name.removeprefix("module."), t) for name, t in prefixed.items())
    bare._metadata = prefixed._metadata
    return bare


def through_checkpoint(state):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of DCP, that there is one process.
        dcp.save(dict(state), checkpoint_id=folder)
        read = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        dcp.load(read, checkpoint_id=folder)
    return read


LOSSES = {
    "dict": dict,
    "safetensors": through_safetensors,
    "prefix": without_prefix,
    "checkpoint": through_checkpoint,
    "bfloat16": lambda state: {name: tensor.bfloat16() for name, tensor in state.items()},
    "half": lambda state: {name: tensor.half() for name, tensor in state.items()},
    "mean of bfloat16": lambda state: {
        name: 0.3 * t.bfloat16() + 0.7 * t.bfloat16() for name, t in state.items()
    },
    "mean": lambda state: {name: 0.3 * t + 0.7 * t for name, t in state.items()},
}
"""What takes the metadata from a state dict."""


def orthogonal(layer):
    nn.init.orthogonal_(layer.weight)
    return layer


LAYERS = {
    "linear": lambda s: SVDLinear(3, 2, spectrum=s),
    "linear of one": lambda s: SVDLinear(4, 1, spectrum=s),
    "few reflectors": lambda s: SVDLinear(6, 4, num_reflectors=(1, 0), spectrum=s),
    "base": lambda s: SVDLinear(6, 4, num_reflectors=1, spectrum=s, base="haar"),
    "conv": lambda s: SVDConv2d(4, 6, 3, groups=2, spectrum=s),
    "rnn": lambda s: SpectralRNN(2, 3, 2, bidirectional=True, spectrum=s),
    "lstm": lambda s: SpectralLSTM(2, 3, spectrum=s),
    "gru": lambda s: SpectralGRU(2, 3, spectrum=s),
    "cell": lambda s: SpectralRNNCell(2, 3, spectrum=s),
    "mlp": lambda s: SVDMLP([3, 4, 2], spectrum=s),
    "parametrized": lambda s: parametrizations.svd(orthogonal(nn.Linear(3, 3)), spectrum=s),
    "half": lambda s: SVDLinear(3, 2, spectrum=s, dtype=torch.bfloat16),
}


def wide(margin):
    return SigmoidSpectrum(center=1.0, margin=margin)


def input_of(layer):
    """One that any of LAYERS takes."""
    if isinstance(layer, SVDConv2d):
        return torch.randn(2, 4, 5, 5, dtype=torch.float64)
    first = layer[0] if isinstance(layer, nn.Sequential) else layer
    size = getattr(first, "in_features", None) or first.input_size
    return torch.randn(2, size, dtype=torch.float64)


def first_output(layer, x):
    output = layer(x)
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("lost", LOSSES)
def test_another_spectrum_warns_where_the_metadata_is_lost(lost):
    saved = LOSSES[lost](model(wide(0.5)).state_dict())
    with pytest.warns(UserWarning, match="which makes another W") as caught:
        model(wide(0.01)).load_state_dict(saved)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert all("with another spectrum" in m and "margin=0.01" in m for m in messages)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_tells_its_spectrum_in_the_tensors(layer):
    first, second, other = (LAYERS[layer](wide(margin)) for margin in (0.9, 0.9, 0.8))
    saved = dict(first.state_dict())
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(saved)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in second.state_dict().items())
    with pytest.warns(UserWarning, match="another spectrum"):
        other.load_state_dict(saved)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in saved.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # From now on it tells what W is made with.
        LAYERS[layer](wide(0.8)).load_state_dict(dict(other.state_dict()))


def test_state_dicts_of_before_mean_the_same_weight_and_tell_nothing():
    old, new = SVDLinear(5, 4, spectrum=wide(0.5)), SVDLinear(5, 4, spectrum=wide(0.5))
    weight = old.weight.detach().clone()
    state = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    state["svd.signs"] = state["svd.signs"].sign()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SVDLinear(5, 4, spectrum=wide(0.1)).load_state_dict(state)
        new.load_state_dict(state, assign=True)
    assert torch.equal(new.weight, weight)
    assert set(state["svd.signs"].abs().tolist()) == {1.0}
    assert torch.equal(new.svd.signs, old.svd.signs)
    # Also where a program computes with the tensors themselves.
    x = torch.randn(3, 5)
    torch.testing.assert_close(torch.func.functional_call(old, state, x), old(x))


def test_only_the_signs_enter_the_weight():
    for make in LAYERS.values():
        layer = make(wide(0.5)).double()
        buffers = [b for name, b in layer.named_buffers() if name.endswith("signs")]
        x = input_of(layer)
        before = first_output(layer, x)
        with torch.no_grad():
            for signs in buffers:
                signs.copy_(signs.sign() * 1.5)
        assert torch.equal(first_output(layer, x), before)


def test_new_bounds_are_what_the_tensors_tell():
    layer, other = SVDLinear(3, 3, spectrum=wide(0.2)), SVDLinear(3, 3, spectrum=wide(0.5))
    before = layer.svd.signs.clone()
    layer.svd.set_spectrum_(wide(0.5))
    assert not torch.equal(layer.svd.signs, before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(dict(layer.state_dict()))
        other.svd.set_dense_(torch.diag(torch.tensor([-1.0, 1.0, 1.2])))
        layer.load_state_dict(dict(other.state_dict()))


def test_a_state_dict_shares_its_memory_with_the_layer():
    # Moving averages write into it in place.
    layer, other = SVDLinear(3, 3), SVDLinear(3, 3)
    for mine, theirs in zip(layer.state_dict().values(), other.state_dict().values(), strict=True):
        mine.copy_(theirs)
    assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize(
    "spectrum",
    [SigmoidSpectrum(center=0.5, margin=0.1), SignedSpectrum(), FixedSpectrum(0.7), Exponential()],
)
def test_the_same_spectrum_loads_in_silence(spectrum):
    saved = io.BytesIO()
    torch.save(model(spectrum).state_dict(), saved)
    saved.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(copy.deepcopy(spectrum)).load_state_dict(torch.load(saved))
        for lost in LOSSES.values():
            model(copy.deepcopy(spectrum)).load_state_dict(lost(model(spectrum).state_dict()))


def test_another_spectrum_warns_and_names_both():
    saved = model(SigmoidSpectrum(center=1.0, margin=0.5)).state_dict()
    with pytest.warns(UserWarning, match="which makes another W") as caught:
        model(SigmoidSpectrum(center=1.0, margin=0.01)).load_state_dict(saved)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert messages[0].startswith("0.svd was saved with the spectrum SigmoidSpectrum(center=1.0, m")
    assert messages[1].startswith("1.parametrizations.weight.0 was saved")
    assert all("margin=0.5" in m and "margin=0.01" in m for m in messages)


def test_stacked_spectra_are_compared_too():
    several = [SigmoidSpectrum(), SigmoidSpectrum(center=0.5, margin=0.1)]
    weight = SVDWeight(3, 3, spectrum=several, num_blocks=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SVDWeight(3, 3, spectrum=several, num_blocks=2).load_state_dict(weight.state_dict())
    state = weight.state_dict()
    for saved in (state, dict(state)):
        with pytest.warns(UserWarning, match="the weight was saved with"):
            SVDWeight(3, 3, spectrum=several[::-1], num_blocks=2).load_state_dict(saved)


def test_one_spectrum_for_all_is_the_same_as_one_for_each():
    equal = SVDWeight(3, 3, spectrum=[Exponential(), Exponential()], num_blocks=2)
    one = SVDWeight(3, 3, spectrum=Exponential(), num_blocks=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for first, second in ((equal, one), (one, equal)):
            first.load_state_dict(second.state_dict())
            first.load_state_dict(dict(second.state_dict()))


def test_scripting_says_what_to_use_instead():
    layers = [SVDLinear(4, 4), SVDConv2d(2, 2, 1), SpectralLSTM(2, 3), SVDMLP([4, 4, 2])]
    layers.append(parametrizations.svd(nn.Linear(3, 3), out_of_bounds="clip"))
    for layer in layers:
        for model in (layer, nn.Sequential(layer, nn.ReLU())):
            with pytest.raises(TypeError, match=r"torch.export.*bake"):
                torch.jit.script(model)
    x = torch.randn(2, 4)
    torch.testing.assert_close(torch.jit.trace(layers[0], x)(x), layers[0](x))
    torch.testing.assert_close(torch.jit.script(bake(layers[0]))(x), layers[0](x))
