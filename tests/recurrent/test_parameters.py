"""Parameters of recurrent layers: names, start, checkpoints of one's own and of torch's."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import nn

from spectral_triton import (
    FixedSpectrum,
    SigmoidSpectrum,
    SpectralRNN,
    SpectralRNNCell,
    parametrizations,
)
from spectral_triton.recurrent.parameters import input_weights, modrelu_bias

OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "bias": False, "num_reflectors": (1, 2)},
    {"nonlinearity": "modrelu", "spectrum": FixedSpectrum()},
]


def randomize(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


def orthogonal_rnn(**options):
    """nn.RNN whose transitions have singular values of one."""
    plain = nn.RNN(2, 4, **options)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "weight_hh" in name:
                parameter.copy_(torch.linalg.qr(parameter).Q)
    return plain


def assert_same(first, second):
    x = torch.randn(3, 2, 2, dtype=first.weight_ih_l0.dtype)
    for a, b in zip(first(x), second(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("bias", "bidirectional"), list(itertools.product([True, False], repeat=2))
)
def test_names_and_shapes_are_those_of_torch_but_for_the_transition(bias, bidirectional):
    options = {"num_layers": 2, "bias": bias, "bidirectional": bidirectional}
    own, plain = SpectralRNN(3, 4, **options), nn.RNN(3, 4, **options)
    expected = {name: p.shape for name, p in plain.named_parameters() if "weight_hh" not in name}
    actual = {name: p.shape for name, p in own.named_parameters()}
    transitions = {name for name in actual if name.startswith("svd_hh")}
    assert {name: actual[name] for name in actual.keys() - transitions} == expected
    suffixes = {name.removeprefix("weight_ih") for name in expected if "weight_ih" in name}
    parts = ("left", "raw_singular_values", "right")
    assert transitions == {f"svd_hh{suffix}.{part}" for suffix in suffixes for part in parts}
    for suffix in suffixes:
        dense = getattr(own, f"weight_hh{suffix}")
        assert dense.shape == getattr(plain, f"weight_hh{suffix}").shape
        assert dense.requires_grad


def test_modrelu_has_a_bias_of_its_own():
    own = SpectralRNN(2, 3, 2, "modrelu", bias=False)
    names = {name for name, _ in own.named_parameters() if "bias" in name}
    assert names == {"bias_modrelu_l0", "bias_modrelu_l1"}
    assert modrelu_bias(own, "_l1") is own.bias_modrelu_l1
    assert modrelu_bias(SpectralRNN(2, 3), "_l0") is None
    assert (own.bias_modrelu_l0 == 0).all()


@pytest.mark.parametrize("bias", [True, False])
def test_input_weights(bias):
    cell = randomize(SpectralRNNCell(2, 3, bias))
    weight, total = input_weights(cell, "", torch.randn(5, 4, 2))
    assert weight is cell.weight_ih
    assert torch.equal(total, cell.bias_ih + cell.bias_hh) if bias else total is None
    with pytest.raises(TypeError, match="dtype of the weights"):
        input_weights(cell, "", torch.randn(5, 4, 2, dtype=torch.bfloat16))


def test_input_weights_may_be_parametrized():
    rnn = SpectralRNN(3, 5, num_reflectors=2)
    parametrizations.svd(rnn, "weight_ih_l0", out_of_bounds="clip")
    weight, _ = input_weights(rnn, "_l0", torch.randn(1, 1, 3))
    torch.testing.assert_close(weight, rnn.weight_ih_l0)
    output, _ = rnn(torch.randn(4, 2, 3))
    output.sum().backward()
    assert all(p.grad is not None for p in rnn.parametrizations.parameters())


@pytest.mark.parametrize("options", OPTIONS)
def test_reset_is_reproducible_and_clears_everything(options):
    own = SpectralRNN(2, 4, init="haar", **options)
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
    torch.manual_seed(6)
    own.reset_parameters()
    assert not torch.equal(own.weight_ih_l0, expected["weight_ih_l0"])


@pytest.mark.parametrize("options", OPTIONS)
def test_copies_and_checkpoints(options):
    own = randomize(SpectralRNN(2, 4, **options))
    file = io.BytesIO()
    torch.save(own.state_dict(), file)
    file.seek(0)
    loaded = SpectralRNN(2, 4, **options)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (loaded, copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert_same(own, other)
        with torch.no_grad():
            other.weight_ih_l0.add_(1)
        assert not torch.equal(own.weight_ih_l0, other.weight_ih_l0)


@pytest.mark.parametrize("options", OPTIONS)
def test_from_the_meta_device(options):
    own = SpectralRNN(2, 4, device="meta", **options)
    assert all(tensor.is_meta for tensor in own.state_dict().values())
    own.to_empty(device="cpu").reset_parameters()
    assert own(torch.randn(3, 2, 2))[0].isfinite().all()
    trained = randomize(SpectralRNN(2, 4, **options))
    own = SpectralRNN(2, 4, device="meta", **options)
    own.load_state_dict(trained.state_dict(), assign=True)
    assert_same(own, trained)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversion(dtype):
    own = SpectralRNN(2, 4, init="haar", dtype=torch.float32).to(dtype)
    assert {tensor.dtype for tensor in own.state_dict().values()} == {dtype}
    output, h_n = own(torch.randn(3, 2, 2).to(dtype))
    assert output.dtype == h_n.dtype == dtype
    sigma = torch.linalg.svdvals(own.weight_hh_l0.double())
    assert (sigma - 1).abs().max() <= 1e-6


def test_loads_torch_checkpoints():
    options = {"num_layers": 2, "bidirectional": True}
    plain = orthogonal_rnn(**options)
    state = plain.state_dict()
    for spectrum in (None, FixedSpectrum()):
        own = randomize(SpectralRNN(2, 4, spectrum=spectrum, **options))
        own.load_state_dict(state)
        x = torch.randn(5, 3, 2)
        torch.testing.assert_close(own(x), plain(x), rtol=0, atol=1e-12)
    assert state.keys() == plain.state_dict().keys()
    # Inside another module, under its prefix.
    model = nn.ModuleDict({"encoder": SpectralRNN(2, 4, **options)})
    model.load_state_dict({f"encoder.{key}": value for key, value in state.items()})
    torch.testing.assert_close(model["encoder"](x), plain(x), rtol=0, atol=1e-12)


def test_loads_torch_checkpoints_of_other_precision():
    plain = orthogonal_rnn()
    own = SpectralRNN(2, 4, dtype=torch.float32)
    own.load_state_dict(plain.state_dict())
    torch.testing.assert_close(own.weight_hh_l0.double(), plain.weight_hh_l0, rtol=0, atol=1e-6)
    assert {tensor.dtype for tensor in own.state_dict().values()} == {torch.float32}


def test_refuses_what_does_not_fit_and_stays_as_it_was():
    plain = orthogonal_rnn(num_layers=2)
    with torch.no_grad():
        plain.weight_hh_l1.mul_(1.5)
    own = SpectralRNN(2, 4, 2)
    model = nn.ModuleDict({"encoder": own})
    before = copy.deepcopy(own.state_dict())
    state = {f"encoder.{key}": value for key, value in plain.state_dict().items()}
    match = r"cannot load the dense encoder\.weight_hh_l1: .*singular values .*1\.5"
    with pytest.raises(RuntimeError, match=match):
        model.load_state_dict(state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in own.state_dict().items())
    wide = SpectralRNN(2, 4, 2, spectrum=SigmoidSpectrum(center=1.25, margin=0.5))
    wide.load_state_dict(plain.state_dict())
    torch.testing.assert_close(wide.weight_hh_l1, plain.weight_hh_l1.detach())

    few = SpectralRNN(2, 4, num_reflectors=1)
    plain_state = orthogonal_rnn().state_dict()
    few.load_state_dict(plain_state)
    torch.testing.assert_close(few.weight_hh_l0, plain_state["weight_hh_l0"])
    with pytest.raises(RuntimeError, match=r"dense weight_hh_l0: .*\(5, 5\)"):
        SpectralRNN(2, 5).load_state_dict(plain.state_dict(), strict=False)
    integers = plain.state_dict() | {"weight_hh_l0": torch.eye(4, dtype=torch.int64)}
    with pytest.raises(RuntimeError, match="dense weight_hh_l0: w must be a real floating"):
        own.load_state_dict(integers)


def test_strictness_is_that_of_torch():
    own = SpectralRNN(2, 4)
    state = own.state_dict()
    del state["svd_hh_l0.left"]
    with pytest.raises(RuntimeError, match=r"Missing key.*svd_hh_l0\.left"):
        own.load_state_dict(state)
    assert own.load_state_dict(state, strict=False).missing_keys == ["svd_hh_l0.left"]
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight_ih_l1"):
        own.load_state_dict(orthogonal_rnn(num_layers=2).state_dict())


def test_access_to_transitions():
    own = randomize(SpectralRNN(2, 4, 2, bidirectional=True, num_reflectors=(3, 2)))
    for index, (layer, reverse) in enumerate(itertools.product((0, 1), (False, True))):
        name = f"_l{layer}{'_reverse' if reverse else ''}"
        assert own.svd_weight(layer, reverse) is own.get_submodule(f"svd_hh{name}")
        factors = own.factors[index]
        assert factors.num_reflectors == (3, 2)
        dense = getattr(own, f"weight_hh{name}")
        torch.testing.assert_close(factors.to_dense(), dense)
        sigma = own.singular_values[index]
        torch.testing.assert_close(
            torch.linalg.svdvals(dense), sigma.sort(descending=True).values, rtol=1e-12, atol=0
        )


def test_repr_shows_what_is_not_default():
    assert "(2, 4, nonlinearity='tanh'" in repr(SpectralRNN(2, 4)).replace("\n  ", "")
    text = repr(SpectralRNN(2, 4, 3, "relu", False, True, 0.5, True, num_reflectors=2))
    for part in (
        "num_layers=3",
        "nonlinearity='relu'",
        "bias=False",
        "batch_first=True",
        "dropout=0.5",
        "bidirectional=True",
        "num_reflectors=(2, 2)",
        "(svd_hh_l2_reverse): SVDWeight(",
        "SigmoidSpectrum(center=1.0, margin=0.01, scale=1.0)",
    ):
        assert part in text
