"""SpectralRNNCell is nn.RNNCell to its caller, and one step of SpectralRNN."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from spectral_triton import FixedSpectrum, SoftplusSpectrum, SpectralRNN, SpectralRNNCell


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


def randomize(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (0,)], ids=["unbatched", "three", "none"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_equals_torch(nonlinearity, bias, batch, given_state):
    plain = nn.RNNCell(2, 4, bias, nonlinearity)
    own = SpectralRNNCell(2, 4, bias, nonlinearity, spectrum=SoftplusSpectrum())
    own.load_state_dict(plain.state_dict())
    x = torch.randn(*batch, 2, requires_grad=True)
    h = torch.randn(*batch, 4, requires_grad=True) if given_state else None
    names = ["weight_ih", *(["bias_ih", "bias_hh"] if bias else [])]
    results = []
    for cell in (own, plain):
        y = cell(x, h)
        of = [x, *([h] if given_state else []), *(getattr(cell, name) for name in names)]
        results.append((y, *torch.autograd.grad(y.pow(3).sum(), of)))
    for actual, expected in zip(*results, strict=True):
        close(actual, expected)


@pytest.mark.parametrize("nonlinearity", ["tanh", "leaky_relu", "identity", "modrelu"])
@pytest.mark.parametrize(("n", "num_reflectors"), [(4, None), (70, (1, 0))])
def test_equals_steps_of_the_layer(n, num_reflectors, nonlinearity):
    options = {
        "nonlinearity": nonlinearity,
        "negative_slope": 0.3,
        "num_reflectors": num_reflectors,
    }
    layer = randomize(SpectralRNN(2, n, **options))
    cell = SpectralRNNCell(2, n, **options)
    cell.load_state_dict({key.replace("_l0", ""): v for key, v in layer.state_dict().items()})
    x, h = torch.randn(5, 3, 2), torch.randn(3, n)
    expected = layer(x, h.unsqueeze(0))[0]
    for x_t, wanted in zip(x, expected, strict=True):
        h = cell(x_t, h)
        close(h, wanted)


def test_second_derivatives():
    cell = randomize(SpectralRNNCell(2, 3))
    x, h = torch.randn(2, 2, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    assert torch.autograd.gradgradcheck(cell, (x, h))


def test_views_of_the_weight():
    cell = randomize(SpectralRNNCell(2, 5, num_reflectors=(3, 2)))
    sigma = torch.linalg.svdvals(cell.weight_hh)
    close(sigma, cell.singular_values.sort(descending=True).values)
    close(cell.factors.to_dense(), cell.weight_hh)
    assert cell.factors.num_reflectors == (3, 2)
    assert (sigma - 1).abs().max() <= 0.01


def test_start_and_reset():
    cell = SpectralRNNCell(2, 5)
    torch.testing.assert_close(cell.weight_hh, torch.eye(5), rtol=0, atol=1e-14)
    with torch.no_grad():
        for tensor in cell.state_dict().values():
            tensor.fill_(float("nan"))
    cell.reset_parameters()
    torch.testing.assert_close(cell.weight_hh, torch.eye(5), rtol=0, atol=1e-14)
    assert all(tensor.isfinite().all() for tensor in cell.state_dict().values())
    meta = SpectralRNNCell(2, 5, device="meta").to_empty(device="cpu")
    meta.reset_parameters()
    assert meta(torch.ones(2)).isfinite().all()


def test_state_dicts():
    cell = randomize(SpectralRNNCell(2, 3))
    again = SpectralRNNCell(2, 3)
    again.load_state_dict(cell.state_dict())
    x = torch.randn(4, 2)
    for other in (again, copy.deepcopy(cell)):
        assert torch.equal(other(x), cell(x))
    plain = nn.RNNCell(2, 3)
    with torch.no_grad():
        plain.weight_hh.copy_(torch.eye(3) * 2)
    with pytest.raises(RuntimeError, match=r"cannot load the dense weight_hh: .*bounds"):
        cell.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    cell = SpectralRNNCell(2, 3, dtype=dtype)
    x, h = torch.randn(4, 2).to(dtype), torch.randn(4, 3).to(dtype)
    y = cell(x, h)
    assert y.dtype == dtype
    exact = cell.double()(x.double(), h.double())
    # The projection and the state are each rounded once.
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2 * torch.finfo(dtype).eps)


def test_repr():
    assert "(2, 3, nonlinearity='tanh'" in repr(SpectralRNNCell(2, 3)).replace("\n  ", "")
    text = repr(SpectralRNNCell(2, 3, False, "relu", spectrum=FixedSpectrum()))
    assert "2, 3, nonlinearity='relu', bias=False" in text
    assert "FixedSpectrum" in text


BAD_INPUT = [
    (ValueError, r"input .*\(2, 2, 2\)", (torch.ones(2, 2, 2),)),
    (ValueError, "input .*input_size = 2", (torch.ones(3, 3),)),
    (TypeError, "input .*list", ([1.0, 2.0],)),
    (TypeError, "input .*int64", (torch.ones(3, 2, dtype=torch.int64),)),
    (TypeError, "input .*PackedSequence", (pack_sequence([torch.ones(3, 2)]),)),
    (ValueError, r"hx .*\(3, 4\), got \(2, 4\)", (torch.ones(3, 2), torch.ones(2, 4))),
    (ValueError, r"hx .*\(3, 4\), got \(4,\)", (torch.ones(3, 2), torch.ones(4))),
    (ValueError, r"hx .*\(4,\), got \(1, 4\)", (torch.ones(2), torch.ones(1, 4))),
    (TypeError, "hx .*int64", (torch.ones(3, 2), torch.ones(3, 4, dtype=torch.int64))),
    (TypeError, "hx must be a torch.Tensor", (torch.ones(3, 2), [0.0])),
]


@pytest.mark.parametrize(("error", "match", "arguments"), BAD_INPUT)
def test_bad_input_is_named(error, match, arguments):
    cell = SpectralRNNCell(2, 4, dtype=torch.float32)
    with pytest.raises(error, match=match):
        cell(*arguments)


BAD_OPTIONS = [
    (ValueError, "input_size .*0", (0, 3), {}),
    (TypeError, "hidden_size", (2, 3.0), {}),
    (ValueError, "hidden_size", (2, -1), {}),
    (ValueError, "nonlinearity .*'gelu'", (2, 3), {"nonlinearity": "gelu"}),
    (ValueError, "negative_slope", (2, 3), {"negative_slope": -1}),
    (ValueError, "init .*'zeros'", (2, 3), {"init": "zeros"}),
    (ValueError, "num_reflectors .*= 3", (2, 3), {"num_reflectors": 4}),
    (TypeError, "spectrum", (2, 3), {"spectrum": 1.0}),
    (TypeError, "dtype", (2, 3), {"dtype": torch.complex64}),
]


@pytest.mark.parametrize(("error", "match", "arguments", "options"), BAD_OPTIONS)
def test_bad_options_are_named(error, match, arguments, options):
    with pytest.raises(error, match=match):
        SpectralRNNCell(*arguments, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_to_and_from_torch(nonlinearity, bias):
    plain = nn.RNNCell(2, 4, bias, nonlinearity).eval()
    own = SpectralRNNCell.from_rnn_cell(plain, spectrum=SoftplusSpectrum())
    back = own.to_rnn_cell()
    assert type(back) is nn.RNNCell
    assert not own.training
    assert not back.training
    assert back.weight_ih is not own.weight_ih
    x, h = torch.randn(3, 2), torch.randn(3, 4)
    for cell in (own, back):
        close(cell(x, h), plain(x, h))


def test_what_does_not_convert():
    with pytest.raises(ValueError, match=r"tanh and relu, not 'identity'"):
        SpectralRNNCell(2, 2, nonlinearity="identity").to_rnn_cell()
    with pytest.raises(ValueError, match=r"outside the bounds"):
        SpectralRNNCell.from_rnn_cell(nn.RNNCell(2, 3))
    clipped = SpectralRNNCell.from_rnn_cell(nn.RNNCell(2, 3), out_of_bounds="clip")
    assert ((clipped.singular_values - 1).abs() <= 0.01).all()
    with pytest.raises(TypeError, match=r"cell must be .*got GRUCell"):
        SpectralRNNCell.from_rnn_cell(nn.GRUCell(2, 3))
