"""SVDTransposedLinear: SVDLinear, but for the way its dense weight lies."""

import copy
import pickle
import sys
import types

import pytest
import torch
from torch import nn

from spectral_triton import SigmoidSpectrum, SVDLinear, bake, convert, lipschitz_constant
from spectral_triton.layers.transposed_linear import SVDTransposedLinear, conv1d_type
from spectral_triton.spectra.spectrum import SoftplusSpectrum

ANY = SoftplusSpectrum()


class Conv1D(nn.Module):
    """As transformers 5.24 has it."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x):
        product = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return product.view(*x.shape[:-1], self.nf)


@pytest.fixture
def transformers(monkeypatch):
    """A loaded transformers, as far as this library looks at it."""
    module = types.ModuleType("transformers.pytorch_utils")
    module.Conv1D = Conv1D
    monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", module)


def conv1d(nf, nx):
    layer = Conv1D(nf, nx)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 7)])
@pytest.mark.parametrize("num_reflectors", [None, 1])
def test_there_and_back(transformers, shape, num_reflectors):
    plain = conv1d(*shape).eval()
    layer = SVDTransposedLinear.from_conv1d(plain, num_reflectors=num_reflectors, spectrum=ANY)
    assert (layer.nf, layer.nx) == shape
    assert not layer.training
    torch.testing.assert_close(layer.weight, plain.weight)
    x = torch.randn(2, 3, shape[1])
    torch.testing.assert_close(layer(x), plain(x))
    back = layer.to_conv1d()
    assert type(back) is Conv1D
    assert (back.nf, back.nx) == shape
    assert not back.training
    assert back.weight.is_contiguous()
    assert all(p.requires_grad and p.is_leaf for p in back.parameters())
    torch.testing.assert_close(back(x), plain(x))
    linear = layer.to_linear()
    torch.testing.assert_close(linear.weight, plain.weight.mT)
    torch.testing.assert_close(linear(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(transformers, dtype):
    plain = conv1d(4, 6).to(dtype)
    layer = SVDTransposedLinear.from_conv1d(plain, spectrum=ANY)
    assert layer.weight.dtype == layer.bias.dtype == layer.to_conv1d().weight.dtype == dtype
    x = torch.randn(3, 6, dtype=dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(layer(x), plain(x), rtol=4 * eps, atol=4 * eps)


def test_dense_weights_lie_the_other_way_in_state_dicts_and_assignments(transformers):
    # Square: read the wrong way round they would be taken, and wrong.
    plain = conv1d(5, 5)
    layer = SVDTransposedLinear(5, 5, spectrum=ANY)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(3, 5)
    torch.testing.assert_close(layer(x), plain(x))
    w = torch.randn(5, 5)
    layer.weight = w
    torch.testing.assert_close(layer.weight, w)
    torch.testing.assert_close(layer(x), x @ w + layer.bias)
    with pytest.raises(ValueError, match=r"cannot set weight: .*\(7, 5\)"):
        layer.weight = torch.randn(5, 7)
    torch.testing.assert_close(layer.weight, w)


def test_convert_and_bake(transformers):
    model = nn.Sequential(conv1d(8, 4), nn.Tanh(), nn.Linear(8, 3))
    keep = {"spectrum": lambda name, sigma: SigmoidSpectrum.around(sigma)}
    new, report = convert(model, **keep)
    assert [type(part) for part in new] == [SVDTransposedLinear, nn.Tanh, SVDLinear]
    layer = report.converted[0]
    assert (layer.name, layer.old_type, layer.new_type) == ("0", "Conv1D", "SVDTransposedLinear")
    assert layer.relative_change < 1e-10
    assert report.unbounded == ()
    x = torch.randn(6, 4)
    torch.testing.assert_close(new(x), model(x))
    baked = bake(new)
    assert [type(part) for part in baked] == [Conv1D, nn.Tanh, nn.Linear]
    torch.testing.assert_close(baked.state_dict(), model.state_dict())
    one, _ = convert(model, Conv1D, **keep)
    assert [type(part) for part in one] == [SVDTransposedLinear, nn.Tanh, nn.Linear]
    sigma = torch.linalg.svdvals(model[0].weight).max()
    torch.testing.assert_close(lipschitz_constant(new[0]), sigma)


def test_a_shared_weight_and_a_subclass_are_left_alone(transformers):
    class Other(Conv1D):
        pass

    model = nn.ModuleList([conv1d(4, 4), nn.Linear(4, 4), Other(4, 4)])
    model[1].weight = model[0].weight
    new, report = convert(model, spectrum=ANY)
    assert [type(part) for part in new] == [Conv1D, nn.Linear, Other]
    reasons = {skipped.name: skipped.reason for skipped in report.skipped}
    assert "shared" in reasons["0"]
    assert "subclass" in reasons["2"]


def test_frozen_weights_stay_frozen(transformers):
    model = nn.ModuleList([conv1d(4, 6)])
    model[0].weight.requires_grad_(False)
    new, _ = convert(model, spectrum=ANY)
    assert {name: p.requires_grad for name, p in new.named_parameters()} == {
        "0.bias": True,
        "0.svd.left": False,
        "0.svd.right": False,
        "0.svd.raw_singular_values": False,
    }
    baked = bake(new)
    assert (baked[0].weight.requires_grad, baked[0].bias.requires_grad) == (False, True)


def test_without_transformers_it_becomes_a_linear_layer(monkeypatch):
    monkeypatch.delitem(sys.modules, "transformers.pytorch_utils", raising=False)
    assert conv1d_type() is None
    layer = SVDTransposedLinear(4, 6)
    with pytest.raises(ValueError, match="import transformers"):
        layer.to_conv1d()
    baked = bake(nn.Sequential(layer))
    assert type(baked[0]) is nn.Linear
    x = torch.randn(3, 4)
    torch.testing.assert_close(baked(x), layer(x))


def test_errors_and_copies(transformers):
    with pytest.raises(TypeError, match=r"Conv1D, got torch\.nn\.modules\.linear\.Linear"):
        SVDTransposedLinear.from_conv1d(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="has a bias"):
        SVDTransposedLinear(3, 4, bias=False).to_conv1d()
    assert type(bake(SVDTransposedLinear(3, 4, bias=False))) is nn.Linear
    layer = SVDTransposedLinear(3, 4)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(copied.weight, layer.weight)


def test_gradients():
    layer = SVDTransposedLinear(4, 3, num_reflectors=2, spectrum=ANY).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def product(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(product, (x, *parameters))
