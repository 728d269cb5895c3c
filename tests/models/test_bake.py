"""bake: the same outputs from plain torch layers, everything else of the model as it was."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from spectral_triton import parametrizations
from spectral_triton.layers.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.layers.mlp import SVDMLP
from spectral_triton.models.bake import bake
from spectral_triton.models.lipschitz import lipschitz_constant
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.gru_cell import SpectralGRUCell
from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.lstm_cell import SpectralLSTMCell
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.recurrent.rnn_cell import SpectralRNNCell
from spectral_triton.svd.weight import SVDWeight

LAYERS = [
    (lambda: SVDLinear(4, 3), nn.Linear, (5, 4)),
    (lambda: SVDLinear(4, 3, bias=False), nn.Linear, (5, 4)),
    (lambda: SVDConv1d(4, 3, 3, padding="same"), nn.Conv1d, (5, 4, 6)),
    (lambda: SVDConv2d(4, 6, 2, groups=2, bias=False), nn.Conv2d, (5, 4, 6, 6)),
    (lambda: SVDConv3d(2, 3, 2), nn.Conv3d, (5, 2, 3, 4, 3)),
    (lambda: SpectralRNN(4, 3), nn.RNN, (6, 5, 4)),
    (lambda: SpectralRNN(4, 3, 2, "relu", False, True, bidirectional=True), nn.RNN, (5, 6, 4)),
    (lambda: SpectralGRU(4, 3, num_layers=2, bidirectional=True), nn.GRU, (6, 5, 4)),
    (lambda: SpectralLSTM(4, 3, batch_first=True), nn.LSTM, (5, 6, 4)),
    (lambda: SpectralLSTM(4, 3, bias=False, proj_size=2), nn.LSTM, (6, 5, 4)),
    (lambda: SpectralGRUCell(4, 3), nn.GRUCell, (5, 4)),
    (lambda: SpectralLSTMCell(4, 3, bias=False), nn.LSTMCell, (5, 4)),
    (lambda: SpectralRNNCell(4, 3), nn.RNNCell, (5, 4)),
    (lambda: SpectralRNNCell(4, 3, False, "relu"), nn.RNNCell, (5, 4)),
    (lambda: parametrizations.svd(nn.Linear(4, 3), out_of_bounds="clip"), nn.Linear, (5, 4)),
    (lambda: parametrizations.svd(nn.Conv1d(4, 3, 2), out_of_bounds="clip"), nn.Conv1d, (5, 4, 6)),
    (
        lambda: parametrizations.svd(
            nn.LSTM(4, 3), "weight_hh_l0", num_blocks=4, out_of_bounds="clip"
        ),
        nn.LSTM,
        (6, 5, 4),
    ),
]


def perturb(model):
    """Singular values and biases away from their start."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def bake_silently(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return bake(model)


def bake_with_a_warning(model):
    with pytest.warns(UserWarning, match="not baked") as record:
        baked = bake(model)
    assert record[0].filename == __file__
    return baked, str(record[0].message)


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize(("make", "plain", "shape"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_are_the_same(make, plain, shape, dtype):
    model = perturb(nn.ModuleList([make().to(dtype)])).eval()
    baked = bake_silently(model)
    assert type(baked[0]) is plain
    assert not baked[0].training
    assert all(p.dtype == dtype and p.requires_grad for p in baked.parameters())
    assert not any("svd" in key or "original" in key for key in baked.state_dict())
    x = torch.randn(shape, dtype=dtype)
    atol = 1e-14 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(first(baked[0](x)), first(model[0](x)), rtol=0, atol=20 * atol)
    root = bake_silently(model[0])
    assert type(root) is plain
    assert torch.equal(first(root(x)), first(baked[0](x)))
    again = pickle.loads(pickle.dumps(baked))
    assert torch.equal(first(again[0](x)), first(baked[0](x)))


def test_plain_layers_inside_of_blocks():
    model = perturb(SVDMLP([3, 5, 5, 2]))
    baked = bake_silently(model)
    assert [type(layer) for layer in baked] == [type(bake(layer)) for layer in model]
    assert type(baked[2].linear) is nn.Linear
    x = torch.randn(4, 3)
    torch.testing.assert_close(baked(x), model(x))
    torch.testing.assert_close(lipschitz_constant(baked), lipschitz_constant(model))


def test_the_model_is_not_changed():
    model = nn.Sequential(
        SVDLinear(3, 3), parametrizations.svd(nn.Linear(3, 3), out_of_bounds="clip")
    )
    x, before = torch.randn(2, 3), copy.deepcopy(model.state_dict())
    expected = model(x)
    baked = bake_silently(model)
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == list(before)
    with torch.no_grad():
        baked[0].weight.zero_()
        baked[0].bias.zero_()
        baked[1].weight.zero_()
    assert torch.equal(model(x), expected)


def test_shared_modules_and_parameters_stay_shared():
    shared = SVDLinear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 3), SVDLinear(3, 3))
    model[3].bias = shared.bias
    model[4].bias = shared.bias
    baked = bake_silently(model)
    assert baked[0] is baked[2]
    assert baked[3].bias is baked[0].bias
    assert baked[4].bias is baked[0].bias
    assert baked[0].bias is not shared.bias


def test_frozen_stays_frozen():
    model = nn.Sequential(SVDLinear(3, 3), SpectralRNNCell(3, 3), SVDLinear(3, 3))
    model.append(parametrizations.svd(nn.Linear(3, 3), out_of_bounds="clip"))
    model[0].svd.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    model[2].svd.left.requires_grad_(False)
    model[3].requires_grad_(False)
    with torch.no_grad():
        baked = bake_silently(model)
    frozen = [name for name, p in baked.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight", "2.bias", "3.bias", "3.weight"]


def test_hooks_and_modes_are_kept():
    layer = SVDLinear(3, 3)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    model = nn.Sequential(layer, SVDLinear(3, 3).eval(), nn.Dropout())
    baked = bake_silently(model)
    assert [module.training for module in baked.modules()] == [True, True, False, True]
    x = torch.randn(2, 3)
    torch.testing.assert_close(baked[0](x), model[0](x))


def test_what_cannot_be_baked_is_named():
    class Mine(SVDLinear):
        pass

    model = nn.ModuleDict(
        {
            "leaky": SpectralRNN(3, 3, nonlinearity="leaky_relu"),
            "cell": SpectralRNNCell(3, 3, nonlinearity="identity"),
            "bare": SVDWeight(3, 3),
            "mine": Mine(3, 3),
            "normed": nn.utils.parametrizations.weight_norm(SVDLinear(3, 3), "bias", dim=None),
            "chain": nn.utils.parametrizations.spectral_norm(
                parametrizations.svd(nn.Linear(3, 3), out_of_bounds="clip")
            ),
            "fine": SVDLinear(3, 3),
        }
    )
    baked, text = bake_with_a_warning(model)
    for part in (
        "chain.weight (weight has further parametrizations",
        "leaky (nn.RNN has the nonlinearities tanh and relu, not 'leaky_relu')",
        "cell (nn.RNNCell has the nonlinearities tanh and relu, not 'identity')",
        "bare (an SVDWeight by itself",
        "mine (Mine is a subclass",
        "normed (parametrized: bias)",
    ):
        assert part in text
    assert "svd" not in text.replace("_SVD", "")
    assert "fine" not in text
    assert type(baked["fine"]) is nn.Linear
    x = torch.randn(2, 3)
    for name in ("bare", "mine", "normed"):
        assert torch.equal(baked[name](x), model[name](x))


def test_what_computes_more_than_its_type_is_named():
    model = nn.ModuleDict({name: SVDLinear(3, 3) for name in ("inner", "other", "more")})
    model["inner"].svd.register_forward_hook(lambda module, inputs, output: 2 * output)
    model["other"].forward = lambda x: 5 * x
    model["more"].lora = nn.Parameter(torch.ones(3))
    baked, text = bake_with_a_warning(model)
    for part in (
        "inner (its SVDWeight has hooks)",
        "other (its forward was replaced)",
        "more (it was given more than its type has: lora)",
    ):
        assert part in text
    x = torch.randn(2, 3)
    assert all(torch.equal(baked[name](x), model[name](x)) for name in model)


def test_what_is_compiled_by_itself_is_named():
    layer = SVDLinear(3, 3)
    model = nn.Sequential(torch.compile(layer, backend="eager"), SVDLinear(3, 3))
    with pytest.warns(UserWarning, match=r"not baked.*0\._orig_mod \(compiled by itself\)"):
        baked = bake(model)
    assert type(baked[1]) is nn.Linear
    x = torch.randn(2, 3)
    torch.testing.assert_close(baked(x), model(x))
    whole = torch.compile(nn.Sequential(SVDLinear(3, 3)), backend="eager")
    perturb(whole)
    torch.testing.assert_close(bake_silently(whole)(x), whole(x))


def test_in_inference_mode():
    layer, x = SVDLinear(3, 3), torch.randn(2, 3)
    with torch.inference_mode():
        plain = bake(layer)
        torch.testing.assert_close(plain(x), layer(x))
    assert not plain.weight.is_inference()


def test_root_that_cannot_be_baked():
    with pytest.warns(UserWarning, match=r"the model \(nn\.RNN has"):
        assert type(bake(SpectralRNN(2, 2, nonlinearity="identity"))) is SpectralRNN


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"model must be .* got list"):
        bake([])


@pytest.mark.parametrize(
    ("make", "name", "shape"),
    [
        (lambda: SVDLinear(4, 3), "bias", (5, 4)),
        (lambda: SpectralRNN(4, 3), "weight_ih_l0", (6, 5, 4)),
        (lambda: SpectralLSTMCell(4, 3), "bias_ih", (5, 4)),
    ],
)
def test_what_is_pruned_is_baked_in(make, name, shape):
    layer, x = perturb(make()), torch.randn(shape)
    prune.l1_unstructured(layer, name, 0.5)
    first(layer(x))
    with torch.no_grad():  # A step of an optimizer, after which the mask has not been used yet.
        getattr(layer, f"{name}_orig").mul_(2)
    plain = bake_silently(layer)
    torch.testing.assert_close(first(plain(x)), first(layer(x)), rtol=0, atol=1e-13)
    assert (getattr(plain, name) == 0).any()
    assert getattr(plain, name).requires_grad
    assert not plain._forward_pre_hooks
    assert len(layer._forward_pre_hooks) == 1


def test_pruned_factors_are_baked_in():
    layer, x = SVDLinear(4, 4), torch.randn(5, 4)
    prune.l1_unstructured(layer.svd, "left", 9)
    layer(x)
    with torch.no_grad():
        layer.svd.left_orig.add_(torch.randn(4, 4))
    torch.testing.assert_close(bake_silently(layer)(x), layer(x))
