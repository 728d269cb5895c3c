"""Gated layers to and from torch's, access to their transitions, and what they print."""

import itertools

import pytest
import torch
from torch import nn

from spectral_triton.parametrizations import svd
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.spectra.spectrum import SigmoidSpectrum, SoftplusSpectrum

MODES = list(itertools.product([1, 2], [False, True], [False, True], [True, False]))
OPTIONS = ("num_layers", "bidirectional", "batch_first", "bias")


def convert(layer):
    return layer.to_gru() if isinstance(layer, SpectralGRU) else layer.to_lstm()


def from_plain(plain, **options):
    if isinstance(plain, nn.GRU):
        return SpectralGRU.from_gru(plain, **options)
    return SpectralLSTM.from_lstm(plain, **options)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_round_trip_through_torch(mode, kind):
    options = dict(zip(OPTIONS, mode, strict=True))
    if kind is nn.LSTM and options["bias"]:
        options["proj_size"] = 2
    plain = kind(2, 4, dropout=0.25 * (mode[0] - 1), **options).eval()
    own = from_plain(plain, spectrum=SoftplusSpectrum())
    back = convert(own)
    assert type(back) is kind
    assert not own.training
    assert not back.training
    for name in (*options, "dropout"):
        assert getattr(own, name) == getattr(back, name) == getattr(plain, name)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(getattr(own, name), parameter, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(getattr(back, name), parameter, rtol=1e-12, atol=1e-13)
    x = torch.randn(3, 5, 2)
    torch.testing.assert_close(own(x), plain(x), rtol=1e-11, atol=1e-13)
    # None shares memory with another.
    with torch.no_grad():
        own.weight_ih_l0.zero_()
    assert (plain.weight_ih_l0 != 0).any()
    assert (back.weight_ih_l0 != 0).any()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_from_torch_out_of_bounds(kind):
    plain = kind(2, 3)
    with pytest.raises(ValueError, match=r"singular values from .* outside the bounds"):
        from_plain(plain)
    clipped = from_plain(plain, out_of_bounds="clip")
    dense = plain.weight_hh_l0.detach().unflatten(0, (-1, 3))
    u, sigma, vh = torch.linalg.svd(dense)
    nearest = (u * sigma.clamp(0.99002, 1.00998).unsqueeze(-2)) @ vh
    torch.testing.assert_close(clipped.weight_hh_l0, nearest.flatten(0, 1), rtol=0, atol=1e-13)
    few = from_plain(plain, num_reflectors=1, spectrum=SoftplusSpectrum())
    torch.testing.assert_close(few.weight_hh_l0, plain.weight_hh_l0.detach())
    with pytest.raises(TypeError, match=r"lstm must be a torch.nn.LSTM, got RNN"):
        SpectralLSTM.from_lstm(nn.RNN(2, 3))
    with pytest.raises(TypeError, match=r"gru must be a torch.nn.GRU, got LSTM"):
        SpectralGRU.from_gru(nn.LSTM(2, 3))


@pytest.mark.parametrize(("kind", "gates"), [(SpectralLSTM, 4), (SpectralGRU, 3)])
def test_access_to_transitions(kind, gates):
    spectrum = SigmoidSpectrum(center=1.0, margin=0.1)
    own = kind(2, 4, 2, bidirectional=True, num_reflectors=(3, 2), spectrum=spectrum)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.copy_(torch.randn_like(parameter))
    for index, (layer, reverse) in enumerate(itertools.product((0, 1), (False, True))):
        name = f"_l{layer}{'_reverse' if reverse else ''}"
        assert own.svd_weight(layer, reverse) is own.get_submodule(f"svd_hh{name}")
        factors = own.factors[index]
        assert factors.num_reflectors == (3, 2)
        assert factors.shape == (gates, 4, 4)
        dense = getattr(own, f"weight_hh{name}")
        assert torch.equal(factors.to_dense().flatten(0, 1), dense)
        sigma = own.singular_values[index].sort(-1, descending=True).values
        actual = torch.linalg.svdvals(dense.unflatten(0, (gates, 4)))
        torch.testing.assert_close(actual, sigma, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="layer must be at most 1, got 2"):
        own.svd_weight(2)
    with pytest.raises(ValueError, match=f"needs a bidirectional {kind.__name__}"):
        kind(2, 4).svd_weight(reverse=True)
    for absent in ("weight_hh_l2", "weight_hh_l0_other", "weights"):
        with pytest.raises(AttributeError, match=absent):
            getattr(own, absent)


@pytest.mark.parametrize("kind", [SpectralLSTM, SpectralGRU])
def test_flattening_is_accepted_and_changes_nothing(kind):
    own, x = kind(2, 4), torch.randn(3, 1, 2)
    expected = own(x)[0]
    own.flatten_parameters()
    assert torch.equal(own(x)[0], expected)


@pytest.mark.parametrize("kind", [SpectralLSTM, SpectralGRU])
def test_repr_shows_what_is_not_default(kind):
    text = repr(kind(2, 4)).replace("\n  ", "")
    assert text.startswith(f"{kind.__name__}(2, 4(svd_hh_l0): SVDWeight(")
    text = repr(kind(2, 4, 3, False, True, 0.5, True, num_reflectors=2))
    for part in (
        "(\n  2, 4, num_layers=3, bias=False, batch_first=True, dropout=0.5, bidirectional=True\n",
        "(svd_hh_l2_reverse): SVDWeight(out_features=4, in_features=4, num_reflectors=(2, 2)",
    ):
        assert part in text


@pytest.mark.parametrize("kind", [SpectralLSTM, SpectralGRU])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"dropout": 1.5}, ValueError, r"dropout must be a probability .* got 1\.5"),
        ({"dropout": "0.5"}, TypeError, r"dropout must be a number, got '0\.5'"),
    ],
)
def test_bad_options_are_named(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(2, 3, **options)


@pytest.mark.parametrize(
    "make", [lambda: nn.LSTM(2, 4, 2, bidirectional=True, proj_size=3), lambda: nn.GRU(2, 3)]
)
def test_weights_and_mode_as_torch_has_them(make):
    plain = make()
    own = from_plain(plain, spectrum=SoftplusSpectrum())
    assert (own.mode, own.proj_size) == (plain.mode, plain.proj_size)
    torch.testing.assert_close(own.all_weights, plain.all_weights, rtol=1e-11, atol=1e-12)
    for names, other in zip(own.all_weights, plain.all_weights, strict=True):
        assert [w.stride() for w in names] == [w.stride() for w in other]


def test_rnn_has_a_mode_too():
    assert SpectralRNN(2, 3, nonlinearity="relu").mode == nn.RNN(2, 3, nonlinearity="relu").mode
    own = SpectralRNN(2, 3, bias=False)
    assert [[w.shape for w in own.all_weights[0]], own.mode, own.proj_size] == [
        [(3, 2), (3, 3)],
        "RNN_TANH",
        0,
    ]


def test_dropconnect_by_a_second_parametrization():
    lstm = svd(nn.LSTM(3, 4), "weight_hh_l0", num_blocks=4, out_of_bounds="clip")
    nn.utils.parametrize.register_parametrization(lstm, "weight_hh_l0", nn.Dropout(0.5))
    x = torch.randn(6, 2, 3)
    one, other = lstm(x)[0], lstm(x)[0]
    assert not torch.equal(one, other)
    one.sum().backward()
    assert (lstm.parametrizations.weight_hh_l0.original0.grad != 0).any()
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])
