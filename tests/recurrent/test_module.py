"""Parameters of gated layers and cells: names, start, checkpoints of one's own and of torch's."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.gru_cell import SpectralGRUCell
from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.lstm_cell import SpectralLSTMCell
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.recurrent.rnn_cell import SpectralRNNCell
from spectral_triton.spectra.spectrum import FixedSpectrum, SigmoidSpectrum

# own, torch's, options, gates
MODULES = {
    "lstm": (SpectralLSTM, nn.LSTM, {"num_layers": 2, "bidirectional": True}, 4),
    "projected": (SpectralLSTM, nn.LSTM, {"num_layers": 2, "proj_size": 2}, 4),
    "gru": (SpectralGRU, nn.GRU, {"num_layers": 2, "bias": False}, 3),
    "lstm cell": (SpectralLSTMCell, nn.LSTMCell, {}, 4),
    "gru cell": (SpectralGRUCell, nn.GRUCell, {"bias": False}, 3),
}
every_module = pytest.mark.parametrize("name", MODULES)


def make(name, **more):
    kind, _, options, _ = MODULES[name]
    return kind(3, 5, **options, **more)


def randomize(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


def orthogonal(name):
    """Torch's module, with singular values of one in every gate."""
    _, kind, options, gates = MODULES[name]
    plain = kind(3, 5, **options)
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            if "weight_hh" in key:
                q = torch.linalg.qr(parameter.unflatten(0, (gates, -1))).Q
                parameter.copy_(q.flatten(0, 1))
    return plain


def flat(result):
    return [t for r in result for t in flat(r)] if isinstance(result, tuple) else [result]


def assert_same(first, second, atol=0.0):
    x = torch.randn(4, 3, dtype=first.get_parameter(next(iter(first.state_dict()))).dtype)
    for a, b in zip(flat(first(x)), flat(second(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@every_module
def test_names_and_shapes_are_those_of_torch_but_for_the_transition(name):
    own, plain = make(name), MODULES[name][1](3, 5, **MODULES[name][2])
    expected = {key: p.shape for key, p in plain.named_parameters()}
    actual = {key: p.shape for key, p in own.named_parameters() if not key.startswith("svd_hh")}
    assert actual == {key: shape for key, shape in expected.items() if "weight_hh" not in key}
    parts = ("left", "raw_singular_values", "right")
    transitions = {key for key, _ in own.named_parameters() if key.startswith("svd_hh")}
    suffixes = {key[9:] for key in expected if "weight_hh" in key}
    assert transitions == {f"svd_hh{suffix}.{part}" for suffix in suffixes for part in parts}
    for suffix in suffixes:
        dense = getattr(own, f"weight_hh{suffix}")
        assert dense.shape == expected[f"weight_hh{suffix}"]
        assert dense.requires_grad


@every_module
def test_starts_as_torch_does_but_with_orthogonal_gates(name):
    own, gates = make(name), MODULES[name][3]
    for key, parameter in own.named_parameters():
        if not key.startswith("svd_hh"):
            assert 0 < parameter.std() < parameter.abs().max() <= 1 / math.sqrt(5)
            continue
    for key, weight in own.named_modules():
        if key.startswith("svd_hh"):
            w = getattr(own, f"weight_hh{key[6:]}").unflatten(0, (gates, -1))
            n = w.shape[-1]
            torch.testing.assert_close(w.mT @ w, torch.eye(n).expand(gates, n, n))
            assert (w[0] - w[1]).abs().max() > 0.1
            assert torch.equal(w, weight.to_dense())


@every_module
def test_reset_is_reproducible_and_clears_everything(name):
    own = make(name)
    torch.manual_seed(5)
    own.reset_parameters()
    expected = copy.deepcopy(own.state_dict())
    with torch.no_grad():
        for tensor in own.state_dict().values():
            tensor.fill_(float("nan"))
    torch.manual_seed(5)
    own.reset_parameters()
    assert own.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in own.state_dict().items())


@every_module
def test_copies_and_checkpoints(name):
    own = randomize(make(name))
    file = io.BytesIO()
    torch.save(own.state_dict(), file)
    file.seek(0)
    loaded = make(name)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    flat(own(torch.randn(4, 3)))[0].sum().backward()
    for other in (loaded, copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert_same(own, other)
        key = next(iter(own.state_dict()))
        with torch.no_grad():
            other.get_parameter(key).add_(1)
        assert not torch.equal(own.get_parameter(key), other.get_parameter(key))


@every_module
def test_from_the_meta_device(name):
    own = make(name, device="meta")
    assert all(tensor.is_meta for tensor in own.state_dict().values())
    own.to_empty(device="cpu").reset_parameters()
    assert all(y.isfinite().all() for y in flat(own(torch.randn(4, 3))))
    trained = randomize(make(name))
    own = make(name, device="meta")
    own.load_state_dict(trained.state_dict(), assign=True)
    assert_same(own, trained)


@every_module
def test_loads_torch_checkpoints(name):
    plain = orthogonal(name)
    state = plain.state_dict()
    for spectrum in (
        None,
        SigmoidSpectrum(center=1.0, margin=0.5),
        [SigmoidSpectrum()] * MODULES[name][3],
    ):
        own = randomize(make(name, spectrum=spectrum))
        own.load_state_dict(state)
        assert_same(own, plain, 1e-12)
    assert state.keys() == plain.state_dict().keys()
    model = nn.ModuleDict({"encoder": make(name)})
    model.load_state_dict({f"encoder.{key}": value for key, value in state.items()})
    assert_same(model["encoder"], plain, 1e-12)


@every_module
def test_refuses_what_does_not_fit_and_stays_as_it_was(name):
    plain, own = orthogonal(name), make(name)
    key = next(key for key in plain.state_dict() if "weight_hh" in key)
    before = copy.deepcopy(own.state_dict())
    state = plain.state_dict()
    # The last gate alone is out of bounds.
    state[key] = torch.cat((state[key][:-5], 1.5 * state[key][-5:]))
    match = rf"cannot load the dense {key}: .*singular values from .* to 1\.5"
    with pytest.raises(RuntimeError, match=match):
        own.load_state_dict(state)
    assert all(torch.equal(tensor, before[k]) for k, tensor in own.state_dict().items())
    wide = make(name, spectrum=SigmoidSpectrum(center=1.25, margin=0.5))
    wide.load_state_dict(state)
    torch.testing.assert_close(getattr(wide, key), state[key])
    few = make(name, num_reflectors=1)
    few.load_state_dict(plain.state_dict())
    torch.testing.assert_close(getattr(few, key), plain.state_dict()[key])
    state[key] = state[key][:-1]
    rows = plain.state_dict()[key].shape[0]
    with pytest.raises(
        RuntimeError, match=rf"dense {key}: w must have shape \({rows}, .*{rows - 1}"
    ):
        own.load_state_dict(state)


@every_module
def test_orthogonal_spectrum_has_no_singular_parameters(name):
    own = randomize(make(name, spectrum=FixedSpectrum(0.5)))
    assert not any("singular" in key for key, _ in own.named_parameters())
    key = next(f"weight_hh{k[6:]}" for k, _ in own.named_modules() if k.startswith("svd_hh"))
    sigma = torch.linalg.svdvals(getattr(own, key).unflatten(0, (MODULES[name][3], -1)))
    torch.testing.assert_close(sigma, torch.full_like(sigma, 0.5))


@every_module
def test_bounds_hold_through_training_and_weight_decay(name):
    own = make(name, spectrum=SigmoidSpectrum(center=1.0, margin=0.05), dtype=torch.float32)
    optimizer = torch.optim.AdamW(own.parameters(), lr=0.05, weight_decay=0.3)
    weights = {k: m for k, m in own.named_modules() if k.startswith("svd_hh")}
    start = {key: weight.to_dense().detach() for key, weight in weights.items()}
    x = torch.randn(6, 3, dtype=torch.float32)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        # A cell takes the six as a batch, and once more so that its transition takes part.
        result = own(x)
        result = own(x, result) if "cell" in name else result
        loss = (flat(result)[0] - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for weight in weights.values():
            sigma = torch.linalg.svdvals(weight.to_dense().double())
            assert (sigma - 1).abs().max() <= 0.05 + 2e-6
    assert losses[-1] < losses[0]
    for key, weight in weights.items():
        assert (weight.to_dense() - start[key]).abs().max() > 0.01


@every_module
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size must be at least 1, got 0"),
        ({"hidden_size": 2.0}, TypeError, r"hidden_size must be an int, got 2\.0"),
        ({"init": "orthogonal"}, ValueError, "init must be one of .* got 'orthogonal'"),
        ({"num_reflectors": 6}, ValueError, "num_reflectors must lie between 0 and .* got 6"),
        ({"spectrum": 0.1}, TypeError, r"spectrum must be a Spectrum .* got 0\.1"),
        ({"spectrum": [SigmoidSpectrum()]}, ValueError, "spectrum must be one .* matrix, got 1"),
        ({"dtype": torch.int64}, TypeError, r"dtype must be .*int64"),
    ],
)
def test_bad_options_are_named(name, options, error, message):
    kind, _, more, _ = MODULES[name]
    with pytest.raises(error, match=message):
        kind(**({"input_size": 3, "hidden_size": 5} | more | options))


KINDS = (
    *(SpectralRNN, SpectralLSTM, SpectralGRU),
    *(SpectralRNNCell, SpectralLSTMCell, SpectralGRUCell),
)
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_meta_device(kind):
    module = kind(3, 5, device="meta")
    shape = (4, 2, 3) if kind in KINDS[:3] else (2, 3)
    y = flat(module(torch.ones(shape, device="meta")))[0]
    assert y.is_meta
    assert y.shape[-1] == 5
    y.sum().backward()
    assert all(parameter.grad.is_meta for parameter in module.parameters())


@every_kind
@pytest.mark.parametrize("way", ["pruned", "parametrized"])
def test_plain_parameters_that_are_computed(kind, way):
    module = randomize(kind(3, 5))
    x = torch.randn(4, 2, 3) if kind in KINDS[:3] else torch.randn(2, 3)
    expected = flat(module(x))
    for name, parameter in list(module.named_parameters(recurse=False)):
        if way == "pruned":
            prune.custom_from_mask(module, name, torch.full_like(parameter, 0.5))
        else:
            parametrize.register_parametrization(module, name, Halved())
    halved = flat(module(x))
    assert not torch.allclose(halved[0], expected[0])
    # The same as with parameters that are half as large.
    other = kind(3, 5)
    state = {n.replace("_orig", ""): p for n, p in module.state_dict().items() if "_mask" not in n}
    for name in [n for n in state if n.startswith("parametrizations.")]:
        state[name.split(".")[1]] = state.pop(name)
    for name in state:
        if not name.startswith("svd_hh"):
            state[name] = 0.5 * state[name]
    other.load_state_dict(state)
    for actual, wanted in zip(halved, flat(other(x)), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-13)


class Halved(nn.Module):
    def forward(self, x):
        return 0.5 * x


@every_kind
def test_bad_types_of_options_are_named(kind):
    with pytest.raises(TypeError, match=r"dtype must be .* got torch.int32"):
        kind(3, 5, dtype=torch.int32)
    with pytest.raises(TypeError, match="bias must be True or False, got None"):
        kind(3, 5, bias=None)
    if kind in KINDS[:3]:
        for name in ("bidirectional", "batch_first"):
            with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
                kind(3, 5, **{name: "no"})
            assert getattr(kind(3, 5, **{name: 1}), name) is True


@pytest.mark.parametrize("training", [True, False])
def test_a_converted_module_trains_as_the_given_one_does(training):
    plain = nn.GRU(2, 3).train(training)
    own = SpectralGRU.from_gru(plain, out_of_bounds="clip")
    assert own.training == training
    assert own.to_gru().training == training
