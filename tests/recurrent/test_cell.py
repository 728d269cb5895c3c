"""Gated cells against torch's with the same dense weights, in value, gradient and precision."""

import pytest
import torch
from torch import nn

from spectral_triton.recurrent.gru_cell import SpectralGRUCell
from spectral_triton.recurrent.lstm_cell import SpectralLSTMCell
from spectral_triton.recurrent.rnn_cell import SpectralRNNCell
from spectral_triton.runtime.cached import cached
from spectral_triton.spectra.spectrum import SoftplusSpectrum

CELLS = {"lstm": (SpectralLSTMCell, nn.LSTMCell), "gru": (SpectralGRUCell, nn.GRUCell)}
every_cell = pytest.mark.parametrize("name", CELLS)


def make(name, *sizes, **options):
    cell = CELLS[name][0](*(sizes or (3, 5)), **options)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return cell


def to_plain(cell, name):
    plain = CELLS[name][1](cell.input_size, cell.hidden_size, cell.bias)
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            parameter.copy_(getattr(cell, key))
    return plain


def flat(result):
    return result if isinstance(result, tuple) else (result,)


def run(cell, x, states):
    """Next states, and gradients of input, states and parameters by name."""
    x = x.clone().requires_grad_()
    states = [state.clone().requires_grad_() for state in states]
    hx = None if not states else states[0] if len(states) == 1 else tuple(states)
    results = flat(cell(x, hx))
    loss = sum((y * torch.linspace(-1, 2, y.numel()).view_as(y)).pow(2).sum() for y in results)
    parameters = dict(cell.named_parameters())
    gradients = torch.autograd.grad(loss, [x, *states, *parameters.values()])
    count = 1 + len(states)
    return (*results, *gradients[:count]), dict(zip(parameters, gradients[count:], strict=True))


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (4,), (40,)])
@pytest.mark.parametrize("bias", [True, False])
@every_cell
def test_equals_torch(name, bias, batch, given_state):
    cell = make(name, bias=bias, num_reflectors=(2, 1))
    plain = to_plain(cell, name)
    count = (1 if name == "gru" else 2) if given_state else 0
    x, states = torch.randn(*batch, 3), [torch.randn(*batch, 5) for _ in range(count)]
    (results, named), (expected, theirs) = run(cell, x, states), run(plain, x, states)
    for actual, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-13)
    weight_hh = theirs.pop("weight_hh")
    factors = {key: p for key, p in cell.named_parameters() if key.startswith("svd_hh.")}
    through = torch.autograd.grad(cell.weight_hh, list(factors.values()), weight_hh)
    for key, wanted in (theirs | dict(zip(factors, through, strict=True))).items():
        torch.testing.assert_close(named[key], wanted, rtol=1e-11, atol=1e-12)
        assert (wanted.abs().max() > 1e-9) == (given_state or not key.startswith("svd_hh"))


@every_cell
def test_no_sequences(name):
    for state in flat(make(name)(torch.randn(0, 3))):
        assert state.shape == (0, 5)


@every_cell
def test_factors_and_singular_values(name):
    cell = make(name, num_reflectors=(2, 1))
    gates = 3 if name == "gru" else 4
    assert cell.factors.shape == (gates, 5, 5)
    assert torch.equal(cell.factors.to_dense().flatten(0, 1), cell.weight_hh)
    sigma = torch.linalg.svdvals(cell.weight_hh.unflatten(0, (gates, 5)))
    expected = cell.singular_values.sort(-1, descending=True).values
    torch.testing.assert_close(sigma, expected, rtol=1e-12, atol=0)
    text = repr(cell).replace("\n  ", "")
    assert text.startswith(f"{type(cell).__name__}(3, 5(svd_hh): SVDWeight(")
    assert "3, 5, bias=False" in repr(make(name, bias=False))


@every_cell
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(name, dtype):
    cell = make(name, dtype=torch.float32).to(dtype)
    x = torch.randn(6, 3).to(dtype)
    result = flat(cell(x))
    for mine, theirs in zip(result, flat(cell.double()(x.double())), strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - theirs).abs().max() <= 0.5 * torch.finfo(dtype).eps + 1e-5
    single = make(name, dtype=torch.float32)
    x = x.float()
    with torch.autocast("cpu", torch.bfloat16):
        result = flat(single(x))
    for mine, theirs in zip(result, flat(single(x)), strict=True):
        # A state that is carried on is not rounded at each step.
        assert mine.dtype == torch.float32
        assert (mine - theirs).abs().max() <= 1e-6


@every_cell
def test_bad_input_is_named(name):
    cell, x = make(name), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"input must be .* input_size = 3, got shape \(4, 2\)"):
        cell(torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"got shape \(1, 4, 3\)"):
        cell(x.unsqueeze(0))
    with pytest.raises(TypeError, match="input must be a real floating-point tensor"):
        cell(x.long())
    with pytest.raises(TypeError, match=r"dtype of the weights, torch.float64, got torch.float32"):
        cell(x.float())
    wrong, state = torch.zeros(4, 3), torch.zeros(4, 5)
    with pytest.raises(ValueError, match=r"hx must have shape \(4, 5\), got \(4, 3\)"):
        cell(x, wrong if name == "gru" else (wrong, wrong))
    with pytest.raises(ValueError, match=r"hx must have shape \(5,\), got \(4, 5\)"):
        cell(x[0], state if name == "gru" else (state, state))


@every_cell
@pytest.mark.parametrize("bias", [False, True])
def test_to_and_from_torch(name, bias):
    kind, expected = CELLS[name]
    plain = expected(3, 5, bias).eval()
    own = getattr(kind, f"from_{name}_cell")(plain, spectrum=SoftplusSpectrum())
    back = getattr(own, f"to_{name}_cell")()
    assert type(back) is expected
    assert not own.training
    assert not back.training
    assert back.weight_ih is not own.weight_ih
    x = torch.randn(4, 3)
    for cell in (own, back):
        for actual, y in zip(flat(cell(x)), flat(plain(x)), strict=True):
            torch.testing.assert_close(actual, y, rtol=1e-11, atol=1e-12)


@every_cell
def test_conversion_names_what_it_cannot(name):
    kind, expected = CELLS[name]
    make = getattr(kind, f"from_{name}_cell")
    with pytest.raises(TypeError, match=rf"cell must be .*{expected.__name__}, got RNNCell"):
        make(nn.RNNCell(3, 5))
    with pytest.raises(ValueError, match="outside the bounds"):
        make(expected(3, 5))
    clipped = make(expected(3, 5), out_of_bounds="clip")
    assert ((clipped.singular_values - 1).abs() <= 0.01).all()


@pytest.mark.parametrize("kind", [SpectralRNNCell, SpectralGRUCell, SpectralLSTMCell])
def test_factors_of_a_wider_dtype(kind):
    cell = kind(3, 4, dtype=torch.float32)
    cell.svd_hh.double()
    x = torch.randn(2, 3, dtype=torch.float32)

    def step():
        y = cell(x)
        return y[0] if isinstance(y, tuple) else y

    y = step()
    assert y.dtype == torch.float32
    with torch.no_grad(), cached():
        torch.testing.assert_close(step(), y)
