"""convert: same weights up to the bounds, an honest report, nothing half-done."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from spectral_triton import parametrizations
from spectral_triton.layers.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.models.convert import convert
from spectral_triton.models.lipschitz import lipschitz_constant
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.gru_cell import SpectralGRUCell
from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.lstm_cell import SpectralLSTMCell
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.recurrent.rnn_cell import SpectralRNNCell
from spectral_triton.spectra.spectrum import SigmoidSpectrum, SoftplusSpectrum

ANY = SoftplusSpectrum()
LAYERS = [
    (lambda: nn.Linear(4, 3), SVDLinear, (5, 4), ["weight"]),
    (lambda: nn.Linear(3, 4, bias=False), SVDLinear, (5, 3), ["weight"]),
    (lambda: nn.Conv1d(4, 3, 2), SVDConv1d, (5, 4, 6), ["weight"]),
    (lambda: nn.Conv2d(2, 6, 2, stride=2, bias=False), SVDConv2d, (5, 2, 6, 6), ["weight"]),
    (lambda: nn.Conv3d(2, 4, 2), SVDConv3d, (5, 2, 3, 4, 3), ["weight"]),
    (lambda: nn.RNN(4, 3), SpectralRNN, (6, 5, 4), ["weight_hh_l0"]),
    (
        lambda: nn.RNN(4, 3, 2, "relu", False, True, 0.0, True),
        SpectralRNN,
        (5, 6, 4),
        [f"weight_hh_l{layer}{way}" for layer in (0, 1) for way in ("", "_reverse")],
    ),
    (lambda: nn.GRU(4, 3, batch_first=True), SpectralGRU, (6, 5, 4), ["weight_hh_l0"]),
    (
        lambda: nn.LSTM(4, 3, 2, proj_size=2, bidirectional=True),
        SpectralLSTM,
        (6, 5, 4),
        [f"weight_hh_l{layer}{way}" for layer in (0, 1) for way in ("", "_reverse")],
    ),
    (lambda: nn.GRUCell(4, 3), SpectralGRUCell, (5, 4), ["weight_hh"]),
    (lambda: nn.LSTMCell(4, 3, False), SpectralLSTMCell, (5, 4), ["weight_hh"]),
    (lambda: nn.RNNCell(4, 3, False, "relu"), SpectralRNNCell, (5, 4), ["weight_hh"]),
]


def first(output):
    return output[0] if isinstance(output, tuple) else output


def clip(w, low, high):
    u, sigma, vh = torch.linalg.svd(w, full_matrices=False)
    return u @ torch.diag_embed(sigma.clamp(low, high)) @ vh


def matrices(w, kind):
    """The matrix, or those of the gates."""
    gates = 4 if "LSTM" in kind.__name__ else 3 if "GRU" in kind.__name__ else 1
    return w.detach().flatten(1).unflatten(0, (gates, -1))


@pytest.mark.parametrize(("make", "kind", "shape", "names"), LAYERS)
@pytest.mark.parametrize("inplace", [False, True])
def test_within_the_bounds_the_outputs_are_the_same(make, kind, shape, names, inplace):
    model = nn.ModuleList([make(), nn.ReLU()]).eval()
    original = copy.deepcopy(model)
    new, report = convert(model, spectrum=ANY, inplace=inplace, out_of_bounds="clip")
    assert (new is model) is inplace
    assert type(new[0]) is kind
    assert not new[0].training
    assert type(model[0]) is (kind if inplace else type(original[0]))
    x = torch.randn(shape)
    torch.testing.assert_close(first(new[0](x)), first(original[0](x)), rtol=0, atol=1e-13)
    (layer,) = report.converted
    weights = [matrices(getattr(original[0], name), kind) for name in names]
    sigma = torch.cat([torch.linalg.svdvals(w).flatten() for w in weights])
    for pair in (layer.sigma_before, layer.sigma_after):
        torch.testing.assert_close(torch.tensor(pair), torch.stack((sigma.min(), sigma.max())))
    assert layer.relative_change < 1e-14
    assert (layer.name, report.skipped) == ("0", ())
    assert (layer.old_type, layer.new_type) == (type(original[0]).__name__, kind.__name__)
    assert layer.parameters_before == sum(p.numel() for p in original.parameters())
    assert layer.parameters_after == sum(p.numel() for p in new.parameters())


@pytest.mark.parametrize(("make", "kind", "shape", "names"), LAYERS)
def test_outside_the_bounds_only_sigma_moves(make, kind, shape, names):
    original = make()
    new, report = convert(
        original, spectrum=SigmoidSpectrum(center=0.5, margin=0.2), out_of_bounds="clip"
    )
    assert type(new) is kind
    moved = norm = 0.0
    for name in names:
        w = matrices(getattr(original, name), kind)
        actual = matrices(getattr(new, name), kind)
        # A thousandth of the band's width inside of it.
        torch.testing.assert_close(actual, clip(w, 0.3004, 0.6996))
        moved += (actual - w).square().sum()
        norm += w.square().sum()
    (layer,) = report.converted
    assert layer.relative_change == pytest.approx(float((moved / norm).sqrt()))
    assert layer.relative_change > 0.01
    assert 0.3 < layer.sigma_after[0] <= layer.sigma_after[1] < 0.7


def test_what_is_selected():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.RNN(3, 3)})

    def names(select):
        return [layer.name for layer in convert(model, select, out_of_bounds="clip")[1].converted]

    assert names(None) == ["a", "b", "c"]
    assert names(nn.RNN) == ["c"]
    assert names((nn.Linear, nn.RNNCell)) == names([nn.Linear]) == ["a", "b"]
    assert names(lambda name, layer: name == "b" or isinstance(layer, nn.RNN)) == ["b", "c"]
    asked = []
    convert(model, lambda *found: asked.append(found), inplace=True, out_of_bounds="clip")
    assert asked == [(name, model[name]) for name in "abc"]
    assert str(convert(nn.ReLU(), out_of_bounds="clip")[1]) == "no layer selected"


def test_layers_in_svd_form_are_named():
    once, _ = convert(
        nn.Sequential(nn.Linear(3, 3)),
        spectrum=SigmoidSpectrum(center=1.0, margin=0.5),
        out_of_bounds="clip",
    )
    twice, report = convert(once, out_of_bounds="clip")
    assert str(report).startswith("skipped 0.svd (SVDWeight): in SVD form, with SigmoidSpectrum(")
    assert torch.equal(twice[0].weight, once[0].weight)


def test_inside_of_a_compiled_model():
    model = torch.compile(nn.Sequential(nn.Linear(3, 3)), backend="eager")
    new, report = convert(model, out_of_bounds="clip")
    assert len(report.converted) == 1
    x = torch.randn(2, 3)
    torch.testing.assert_close(new(x), new._orig_mod[0](x))


def test_under_autocast():
    linear = nn.Linear(4, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        layer, _ = convert(linear, spectrum=SoftplusSpectrum(), out_of_bounds="clip")
    torch.testing.assert_close(layer.weight, linear.weight, rtol=1e-4, atol=1e-4)


def test_a_model_that_holds_its_parameters_is_refused():
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="DistributedDataParallel: convert its module, then wrap"):
        convert(wrapped, inplace=True, out_of_bounds="clip")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_is_skipped_and_why():
    class Mine(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 3),
            "tied": nn.Linear(3, 5),
            "svd": parametrizations.svd(nn.Linear(3, 3), out_of_bounds="clip"),
            "mine": Mine(3, 3),
            "hooked": prune.identity(nn.Linear(3, 3), "weight"),
            "meta": nn.Linear(3, 3, device="meta"),
            "lazy": nn.LazyLinear(3),
            "empty": nn.Linear(0, 3),
            "complex": nn.Linear(3, 3, dtype=torch.complex64),
            "other": nn.Linear(3, 3),
            "more": nn.Linear(3, 3),
            "compiled": torch.compile(nn.Linear(3, 3), backend="eager"),
        }
    )
    model["tied"].weight = model["embedding"].weight
    model["other"].forward = lambda x: 5 * x
    model["more"].lora = nn.Parameter(torch.ones(3))
    model["more"].register_buffer("mask", torch.ones(3))
    before = dict(model.named_modules())
    model, report = convert(model, inplace=True, out_of_bounds="clip")
    assert report.converted == ()
    assert dict(model.named_modules()) == before
    assert [(layer.name, layer.reason) for layer in report.skipped] == [
        ("tied", "weight is shared with another module"),
        ("svd", "already parametrized: weight"),
        ("mine", "Mine is a subclass that may compute something else"),
        ("hooked", "pruned, or normalised by a hook: weight"),
        ("meta", "weight has no value yet, it is on the meta device"),
        ("lazy", "LazyLinear is a subclass that may compute something else"),
        ("empty", "weight is empty"),
        ("complex", "weight is of torch.complex64"),
        ("other", "its forward was replaced"),
        ("more", "it was given more than its type has: lora, mask"),
        ("compiled._orig_mod", "compiled by itself: convert first, then compile"),
    ]


def test_few_reflectors_keep_every_weight():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1), nn.RNN(2, 6))
    new, report = convert(model, num_reflectors=2, spectrum=ANY, out_of_bounds="clip")
    assert [layer.name for layer in report.converted] == ["0", "1", "2"]
    for index in (0, 1):
        torch.testing.assert_close(new[index].weight, model[index].weight.detach())
    torch.testing.assert_close(new[2].weight_hh_l0, model[2].weight_hh_l0.detach())
    assert new[0].svd.num_reflectors == (2, 2)
    assert new[1].svd.num_reflectors == (1, 1)
    # What is trained: reflectors, singular values and the bias.
    assert report.converted[0].parameters_after == 4 * 8 + 8 + 8
    assert all(layer.relative_change < 1e-12 for layer in report.converted)


def test_each_group_of_channels_is_a_matrix():
    conv = nn.Conv2d(4, 6, 3, groups=2, padding=1)
    new, report = convert(
        conv, spectrum=SigmoidSpectrum(center=0.5, margin=0.2), out_of_bounds="clip"
    )
    actual, before = (c.weight.detach().flatten(1).unflatten(0, (2, 3)) for c in (new, conv))
    for own, plain in zip(actual, before, strict=True):
        torch.testing.assert_close(own, clip(plain, 0.3004, 0.6996))
    sigma = torch.linalg.svdvals(before)
    assert report.converted[0].sigma_before == pytest.approx(
        (sigma.min().item(), sigma.max().item())
    )
    few, _ = convert(conv, num_reflectors=1, spectrum=ANY, out_of_bounds="clip")
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(few(x), conv(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_everything_else_is_taken_over(inplace):
    shared = nn.Linear(3, 3).eval()
    shared.register_forward_hook(lambda module, args, output: 2 * output)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 3), nn.Linear(3, 3).float())
    model[3].bias = shared.bias
    model[3].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    for index in (0, 3, 4):
        model[index].weight.data.diagonal().add_(2)
    before = copy.deepcopy(model)
    new, report = convert(model, spectrum=ANY, inplace=inplace, out_of_bounds="clip")
    assert [layer.name for layer in report.converted] == ["0", "3", "4"]
    assert new[0] is new[2]
    assert new[0].bias is new[3].bias
    assert (new[0].bias is shared.bias) is inplace
    assert [module.training for module in new] == [module.training for module in before]
    assert [n for n, p in new.named_parameters() if not p.requires_grad] == [
        "3.svd.left",
        "3.svd.raw_singular_values",
        "3.svd.right",
        "4.bias",
    ]
    assert new[4].svd.left.dtype == torch.float32
    x = torch.randn(2, 3)
    torch.testing.assert_close(new[:4](x), before[:4](x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_half_done(value):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data[0, 0] = value
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"^1: w must be finite"):
        convert(model, inplace=True, out_of_bounds="clip")
    assert dict(model.named_modules()) == before
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    modules = dict(plain.named_modules())
    excluded = (
        r"^2 weights do not fit .*nothing was changed.*around.*'clip'(?s:.*)\n0: .*\n1: .*hold"
    )
    with pytest.raises(ValueError, match=excluded):
        convert(plain, inplace=True)
    assert dict(plain.named_modules()) == modules
    with pytest.raises(ZeroDivisionError):
        convert(model, lambda name, layer: 1 / (name != "1"), inplace=True, out_of_bounds="clip")
    assert dict(model.named_modules()) == before


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float32, **options)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def test_attention_and_encoder_layers_go_on_working():
    model = encoder(dropout=0.0)
    new, report = convert(model, spectrum=ANY, out_of_bounds="clip")
    names = ("self_attn.out_proj", "linear1", "linear2")
    assert [layer.name for layer in report.converted] == [
        f"layers.{index}.{name}" for index in (0, 1) for name in names
    ]
    x = torch.randn(3, 5, 8, dtype=torch.float32)
    torch.testing.assert_close(new(x), model(x), rtol=0, atol=2e-5)
    new(x).square().sum().backward()
    gradients = {name: p.grad.abs().sum() for name, p in new.named_parameters()}
    assert all(total > 0 for name, total in gradients.items() if "in_proj_bias" not in name)


def test_encoder_layers_keep_their_fast_path(monkeypatch):
    model = encoder().eval()
    new, _ = convert(model, spectrum=ANY, out_of_bounds="clip")
    calls, fast = [], torch._transformer_encoder_layer_fwd

    def spy(*args, **kwargs):
        calls.append(args)
        return fast(*args, **kwargs)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", spy)
    x = torch.randn(3, 5, 8, dtype=torch.float32)
    slow = new(x)
    assert not calls
    with torch.no_grad():
        torch.testing.assert_close(new(x), slow, rtol=0, atol=2e-5)
        assert len(calls) == 2
        torch.testing.assert_close(new(x), model(x), rtol=0, atol=2e-5)


def test_the_stacked_projections_of_attention():
    attention, _ = convert(nn.MultiheadAttention(6, 2), out_of_bounds="clip")
    parametrizations.svd(attention, "in_proj_weight", num_blocks=3, out_of_bounds="clip")
    sigma = torch.linalg.svdvals(attention.in_proj_weight.unflatten(0, (3, 6)))
    assert ((sigma - 1).abs() < 0.011).all()
    x = torch.randn(4, 2, 6)
    assert attention(x, x, x)[0].isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": []}, TypeError, "model must be .* got list"),
        ({"select": nn.ReLU}, TypeError, "among Linear, .* got ReLU"),
        ({"select": "Linear"}, TypeError, "select must be types .* got 'Linear'"),
        ({"num_reflectors": -1}, ValueError, "num_reflectors must be at least 0"),
        ({"num_reflectors": (1, 1)}, TypeError, "num_reflectors must be an int"),
        ({"spectrum": 1.0}, TypeError, "spectrum must be a Spectrum"),
        ({"out_of_bounds": "keep"}, ValueError, "out_of_bounds must be one of 'raise', 'clip'"),
    ],
)
def test_bad_input_is_named(options, error, message):
    with pytest.raises(error, match=message):
        convert(**({"model": nn.Linear(2, 2)} | options))


def test_the_report_prints_as_a_table():
    report = convert(nn.Sequential(nn.Linear(4, 4)), spectrum=ANY, out_of_bounds="clip")[1]
    header, line = str(report).splitlines()
    assert header.split()[:3] == ["name", "layer", "parameters"]
    assert re.match(r"0 +Linear -> SVDLinear +20 -> 40 .* 0\.0%$", line)


def test_the_report_names_every_weight_that_stays_free():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(2, 3))
            self.embedding = nn.Embedding(5, 4)
            self.attention = nn.MultiheadAttention(4, 2)
            self.rnn = nn.RNN(4, 3)
            self.pruned = prune.identity(nn.Linear(3, 3), "weight")
            self.bounded = parametrizations.svd(nn.Bilinear(2, 3, 4), out_of_bounds="clip")
            self.normed = weight_norm(nn.Bilinear(2, 3, 4))
            self.own = SVDLinear(3, 3)
            self.head = nn.Linear(3, 2)

    report = convert(Model(), out_of_bounds="clip")[1]
    assert report.unbounded == (
        ("table", (2, 3)),
        ("embedding.weight", (5, 4)),
        ("attention.in_proj_weight", (12, 4)),
        ("rnn.weight_ih_l0", (3, 4)),
        ("normed.parametrizations.weight.original0", (4, 1, 1)),
        ("normed.parametrizations.weight.original1", (4, 2, 3)),
    )
    assert "without bounds: table 2x3, embedding.weight 5x4, " in str(report)
    assert convert(Model(), nn.Linear, out_of_bounds="clip")[1].unbounded == (), (
        "the choice was the user's"
    )
    assert (
        convert(parametrizations.svd(nn.Linear(3, 2), out_of_bounds="clip"), out_of_bounds="clip")[
            1
        ].unbounded
        == ()
    )


def test_lazy_and_shared_weights_do_not_trouble_the_report():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyConvTranspose2d(3, 3), nn.Embedding(5, 4))
    model.append(nn.Embedding(5, 4))
    model[3].weight = model[2].weight
    model.append(weight_norm(nn.Linear(4, 4)))
    report = convert(model, inplace=True, out_of_bounds="clip")[1]
    assert isinstance(model[0], SVDLinear)
    assert [layer.name for layer in report.skipped] == ["1", "4"]
    assert report.unbounded == (("2.weight", (5, 4)),), "not lazy, not twice, not the skipped one"
    assert convert(weight_norm(nn.Linear(4, 4)), out_of_bounds="clip")[1].unbounded == ()


def test_a_spectrum_of_each_weight_keeps_it_and_bounds_its_growth():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.LSTM(9, 4), nn.Conv1d(1, 3, 3))
    names = []

    def around(name, sigma):
        names.append((name, sigma.numel()))
        return SigmoidSpectrum.around(sigma, 1.2)

    new, report = convert(model, spectrum=around, num_reflectors=2, out_of_bounds="raise")
    assert names == [("0", 6), ("2", 16), ("3", 3)]
    assert all(layer.relative_change < 1e-12 for layer in report.converted)
    most = torch.linalg.matrix_norm(model[0].weight, 2).item()
    with torch.no_grad():
        new[0].svd.raw_singular_values.fill_(1e9)
    assert torch.linalg.matrix_norm(new[0].weight, 2) <= 1.2 * most * (1 + 1e-9)
    with pytest.raises(TypeError, match=r"must return a Spectrum, got 1\.0"):
        convert(model, spectrum=lambda name, sigma: 1.0, out_of_bounds="clip")


def test_a_changed_weight_is_said():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    with pytest.warns(
        UserWarning, match=r"changed trained weights: 0 by .*%.* 2 more.*around"
    ) as got:
        convert(model, out_of_bounds="clip")
    assert got[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(
            model, spectrum=lambda name, sigma: SigmoidSpectrum.around(sigma), out_of_bounds="clip"
        )


def test_convolutions_get_a_bound_of_the_whole_map():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 3, 2, stride=2))
    around = {"spectrum": lambda name, sigma: SigmoidSpectrum.around(sigma)}
    bounded, _ = convert(net, operator_bound=0.1, out_of_bounds="clip", **around)
    assert all(layer.operator_bound == 0.1 for layer in bounded)
    assert lipschitz_constant(bounded) <= 0.01
    with pytest.raises(ValueError, match=r"(?s)2 weights do not fit.*0: the kernel's norm"):
        convert(net, operator_bound=0.1, **around)
