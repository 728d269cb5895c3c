"""What a careful user may get wrong, alike in every layer: told, or not wrong here."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from spectral_triton import (
    SVDMLP,
    FixedSpectrum,
    HouseholderSVD,
    SigmoidSpectrum,
    SignedSpectrum,
    SpectralGRU,
    SpectralGRUCell,
    SpectralLSTM,
    SpectralLSTMCell,
    SpectralRNN,
    SpectralRNNCell,
    SVDConv1d,
    SVDConv2d,
    SVDLinear,
    SVDResidualBlock,
    SVDTransposedLinear,
    SVDWeight,
    apply_reflectors,
    convert,
    init,
    lipschitz_constant,
    parametrizations,
)
from spectral_triton.svd.bounds import WeightChangedWarning

# How to make one, an input, and the name of what is bounded.
LAYERS = {
    "linear": (lambda **o: SVDLinear(4, 4, **o), (2, 4), "weight"),
    "transposed linear": (lambda **o: SVDTransposedLinear(4, 4, **o), (2, 4), "weight"),
    "convolution": (lambda **o: SVDConv1d(4, 4, 3, **o), (2, 4, 8), "weight"),
    "convolution in groups": (
        lambda **o: SVDConv2d(4, 4, 3, groups=2, **o),
        (2, 4, 8, 8),
        "weight",
    ),
    "rnn": (lambda **o: SpectralRNN(4, 4, **o), (3, 2, 4), "weight_hh_l0"),
    "lstm": (lambda **o: SpectralLSTM(4, 4, **o), (3, 2, 4), "weight_hh_l0"),
    "gru": (lambda **o: SpectralGRU(4, 4, **o), (3, 2, 4), "weight_hh_l0"),
    "rnn cell": (lambda **o: SpectralRNNCell(4, 4, **o), (2, 4), "weight_hh"),
    "lstm cell": (lambda **o: SpectralLSTMCell(4, 4, **o), (2, 4), "weight_hh"),
    "gru cell": (lambda **o: SpectralGRUCell(4, 4, **o), (2, 4), "weight_hh"),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


@each_layer
def test_margin_is_short_for_a_band_around_one(name):
    make, *_ = LAYERS[name]
    weights = [m for m in make(margin=0.25).modules() if isinstance(m, SVDWeight)]
    assert weights[0].spectrum == SigmoidSpectrum(margin=0.25)
    with pytest.raises(ValueError, match=r"margin or spectrum, not both: got margin=0\.1"):
        make(margin=0.1, spectrum=SigmoidSpectrum())
    with pytest.raises(ValueError, match="margin must be positive"):
        make(margin=-0.1)


def test_margin_in_what_is_made_of_layers():
    assert SVDResidualBlock(4, margin=0.25).linear.svd.spectrum == SignedSpectrum(0.25)
    mlp = SVDMLP([3, 4, 4, 2], margin=0.25)
    assert mlp[0].svd.spectrum == mlp[-1].svd.spectrum == SigmoidSpectrum(margin=0.25)
    assert mlp[2].linear.svd.spectrum == SignedSpectrum(0.5)
    linear = parametrizations.svd(nn.Linear(3, 3), margin=0.25, out_of_bounds="clip")
    assert linear.parametrizations.weight[0].spectrum == SigmoidSpectrum(margin=0.25)
    for make in (
        lambda **o: SVDResidualBlock(4, **o),
        lambda **o: SVDMLP([3, 4], **o),
        lambda **o: parametrizations.svd(nn.Linear(3, 3), **o),
    ):
        with pytest.raises(ValueError, match="margin must be positive, got -1"):
            make(margin=-1)
        with pytest.raises(TypeError, match="margin must be a number, got True"):
            make(margin=True)
        with pytest.raises(ValueError, match="give margin or spectrum, not both"):
            make(margin=0.1, spectrum=SigmoidSpectrum())


@pytest.mark.parametrize(
    "make",
    [
        *(make for make, *_ in LAYERS.values()),
        lambda **o: SVDMLP([4, 4, 3], **o),
        lambda **o: SVDResidualBlock(4, **o),
    ],
)
def test_every_layer_takes_a_start(make):
    weights = [m for m in make(init="identity").modules() if isinstance(m, SVDWeight)]
    for weight in weights:
        w = weight.to_dense()
        values = weight.singular_values.unsqueeze(-1) * torch.eye(*w.shape[-2:])
        torch.testing.assert_close(w, values.expand_as(w), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="init must be one of"):
        make(init="eye")


@each_layer
def test_singular_values_and_factors_are_read_alike(name):
    layer = LAYERS[name][0]()
    assert isinstance(layer.singular_values, torch.Tensor)
    factors = layer.factors
    first = factors[0] if isinstance(factors, tuple) else factors
    assert isinstance(first, HouseholderSVD)


@each_layer
def test_input_of_another_precision_is_one_kind_of_error(name):
    make, shape, _ = LAYERS[name]
    layer = make(dtype=torch.float32)
    with pytest.raises(TypeError, match=r"input must have the dtype .*float32.*got torch.float64"):
        layer(torch.randn(shape, dtype=torch.float64))


@each_layer
@pytest.mark.parametrize(("own", "given"), [("cpu", "meta"), ("meta", "cpu")])
def test_input_on_another_device_is_one_kind_of_error(name, own, given):
    make, shape, _ = LAYERS[name]
    with pytest.raises(ValueError, match=f"input must be on the device of .*{own}, got {given}"):
        make(device=own)(torch.randn(shape, device=given))


@each_layer
def test_sparse_input_is_one_kind_of_error(name):
    make, shape, _ = LAYERS[name]
    with pytest.raises(TypeError, match=r"input must be a dense tensor, .*input\.to_dense\(\)"):
        make()(torch.randn(shape).to_sparse())


@each_layer
def test_a_computed_weight_is_not_initialised_pruned_or_parametrised_by_mistake(name):
    make, _, weight = LAYERS[name]
    layer = make()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    dense = getattr(layer, weight)
    if dense.dim() == 2 and dense.shape[0] <= dense.shape[1]:
        with pytest.raises(ValueError, match="reflectors is computed from other tensors"):
            init.haar_(dense)
    with pytest.raises(TypeError, match=f"{weight} of .* cannot be pruned or normalised"):
        prune.random_unstructured(layer, weight, 0.5)
    with pytest.raises(ValueError, match=f"{weight} of .* is in SVD form already"):
        parametrizations.svd(layer, weight)
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())


def test_a_row_of_a_parameter_may_be_drawn_anew():
    layer = SVDLinear(4, 4)
    init.haar_(layer.svd.left[:2])
    assert (layer.svd.left[:2].tril(-1) == 0).all()


@pytest.mark.parametrize("make", [nn.Linear, lambda m, n: nn.Conv1d(m, n, 3)])
def test_a_weight_out_of_bounds_is_an_error_with_a_spectrum_that_holds_it(make):
    layer = make(6, 5)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match="would hold them, out_of_bounds='clip'") as caught:
        parametrizations.svd(layer)
    assert torch.equal(layer.weight, before)
    assert not hasattr(layer, "parametrizations")
    with pytest.raises(ValueError, match="1 weight does not fit"):
        convert(nn.Sequential(layer))
    # What the message proposes.
    call = str(caught.value).split("; ")[1].split(" would hold")[0]
    spectrum = eval(call, {"SigmoidSpectrum": SigmoidSpectrum})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parametrizations.svd(layer, spectrum=spectrum)
    torch.testing.assert_close(layer.weight, before, rtol=0, atol=1e-12)


def test_clipping_on_request_says_how_much_changed():
    changed = r"has singular values .* moved inside, which changed it by \d+\.\d%"
    with pytest.warns(WeightChangedWarning, match=f"^weight of Linear {changed}"):
        parametrizations.svd(nn.Linear(6, 5), out_of_bounds="clip")
    with pytest.warns(WeightChangedWarning, match=r"changed trained weights: 0 by \d+\.\d%"):
        convert(nn.Sequential(nn.Linear(6, 5)), out_of_bounds="clip")
    with pytest.warns(WeightChangedWarning, match=f"^the matrix {changed}"):
        SVDWeight(3, 3).set_dense_(2 * torch.eye(3), out_of_bounds="clip")
    with pytest.warns(WeightChangedWarning, match=f"^the matrix {changed}"):
        SVDWeight(3, 3).set_spectrum_(FixedSpectrum(2.0), out_of_bounds="clip")
    with pytest.warns(WeightChangedWarning, match=f"^the matrix {changed}"):
        HouseholderSVD.from_dense(torch.eye(3), bounds=(2.0, 3.0), out_of_bounds="clip")


PLAIN = {
    "weight": [
        lambda **o: SVDLinear.from_linear(nn.Linear(4, 4), **o),
        lambda **o: SVDConv1d.from_conv(nn.Conv1d(4, 4, 3), **o),
        lambda **o: SVDConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2), **o),
    ],
    "weight_hh_l0": [
        lambda **o: SpectralRNN.from_rnn(nn.RNN(4, 4), **o),
        lambda **o: SpectralLSTM.from_lstm(nn.LSTM(4, 4), **o),
        lambda **o: SpectralGRU.from_gru(nn.GRU(4, 4), **o),
    ],
    "weight_hh": [
        lambda **o: SpectralRNNCell.from_rnn_cell(nn.RNNCell(4, 4), **o),
        lambda **o: SpectralLSTMCell.from_lstm_cell(nn.LSTMCell(4, 4), **o),
        lambda **o: SpectralGRUCell.from_gru_cell(nn.GRUCell(4, 4), **o),
    ],
}


@pytest.mark.parametrize(
    ("name", "take"), [(name, take) for name, takes in PLAIN.items() for take in takes]
)
def test_a_plain_layer_out_of_bounds_is_named_and_clipped_on_request_with_a_warning(name, take):
    with pytest.raises(ValueError, match=f"^{name} has singular values .* would hold them"):
        take()
    with pytest.warns(WeightChangedWarning, match=f"^{name} has singular values .*changed it"):
        layer = take(out_of_bounds="clip", margin=0.25)
    weights = [m for m in layer.modules() if isinstance(m, SVDWeight)]
    assert weights[0].spectrum == SigmoidSpectrum(margin=0.25)
    with pytest.raises(ValueError, match="give margin or spectrum, not both"):
        take(margin=0.25, spectrum=SigmoidSpectrum())


def test_margin_of_a_whole_model():
    with pytest.warns(WeightChangedWarning):
        model, _ = convert(nn.Sequential(nn.Linear(4, 4)), margin=0.25, out_of_bounds="clip")
    assert model[0].svd.spectrum == SigmoidSpectrum(margin=0.25)
    for spectrum in (SigmoidSpectrum(), lambda name, sigma: SigmoidSpectrum.around(sigma)):
        with pytest.raises(ValueError, match="give margin or spectrum, not both"):
            convert(nn.Linear(4, 4), margin=0.25, spectrum=spectrum)


@each_layer
def test_a_weight_that_is_assigned_out_of_bounds_is_told_what_clips(name):
    make, _, weight = LAYERS[name]
    layer = make()
    far = 3 * getattr(layer, weight).detach()
    with pytest.raises(
        ValueError, match=rf"cannot set {weight}: .* would hold them, set_dense_\(w, out_of"
    ):
        setattr(layer, weight, far)
    plain = {key: value for key, value in layer.state_dict().items() if "svd" not in key}
    with pytest.raises(RuntimeError, match=rf"dense {weight}: .* would hold them$"):
        layer.load_state_dict(plain | {weight: far})


def test_solve_undoes_apply():
    factors = SVDLinear(4, 4, margin=0.5).factors
    x = torch.randn(4, 4)
    torch.testing.assert_close(factors.solve(factors.apply(x)), x)
    torch.testing.assert_close(factors.inverse() @ (factors @ x), x)
    with pytest.raises(ValueError, match=r"y must hold vectors of length 4 .*y of shape \(4, 3\)"):
        factors.solve(torch.randn(4, 3))
    with pytest.raises(TypeError, match=r"y must have the dtype of the factors"):
        factors.solve(torch.randn(4, dtype=torch.float32))


def test_singular_values_of_a_parametrised_tensor():
    linear = parametrizations.svd(nn.Linear(4, 3), out_of_bounds="clip")
    assert parametrizations.svd_singular_values(linear).shape == (3,)
    lstm = parametrizations.svd(nn.LSTM(2, 3), "weight_hh_l0", num_blocks=4, out_of_bounds="clip")
    assert parametrizations.svd_singular_values(lstm, "weight_hh_l0").shape == (4, 3)
    with pytest.raises(ValueError, match="weight of Linear is not in SVD form"):
        parametrizations.svd_singular_values(nn.Linear(3, 3))
    nn.utils.parametrizations.weight_norm(linear)
    with pytest.raises(ValueError, match=r"weight of .* has further parametrizations"):
        parametrizations.svd_singular_values(linear)


@pytest.mark.parametrize("value", [torch.eye(3), nn.Parameter(torch.eye(3))])
def test_factors_have_no_weight_to_assign(value):
    weight = SVDWeight(3, 3)
    with pytest.raises(AttributeError, match="set_dense_"):
        weight.weight = value
    assert "weight" not in vars(weight)
    assert "weight" not in weight.state_dict()


def test_a_band_is_named():
    with pytest.raises(TypeError, match="positional"):
        SigmoidSpectrum(0.1)
    with pytest.raises(ValueError, match=r"as in SVDMLP\(\[784, 128, 10\]\)"):
        SVDMLP(784, 128, 10)


def square(**options):
    return SVDWeight(4, 4, **options).factors


MISTAKES = [
    (lambda: SVDLinear(4, 4, spectrum=0.1), TypeError, r"got 0\.1; margin=0\.1 is a band"),
    (lambda: SVDLinear(4, 4, spectrum=[FixedSpectrum()]), TypeError, "several are for several"),
    (lambda: SVDLinear(4, 4, spectrum=lambda s: s), TypeError, "function .* is for convert"),
    (lambda: SVDLinear(4, 3, num_reflectors=5), ValueError, r"= 3 for a matrix of 3 x 4, got 5"),
    (lambda: SVDLinear(4, 3).logabsdet(), ValueError, "logabsdet needs a square weight"),
    (lambda: SVDLinear.from_linear(nn.LazyLinear(3)), ValueError, "linear is lazy and has no"),
    (lambda: SVDConv2d.from_conv(nn.LazyConv2d(3, 1)), ValueError, "conv is lazy and has no"),
    (lambda: SVDConv2d(3, 8, "3"), TypeError, r"kernel_size must be an int, got '3' \(str\)"),
    (lambda: SVDConv2d(3, 8, 3, stride="2"), TypeError, "stride must be an int, got '2'"),
    (lambda: SVDConv2d(3, 3, 1).logabsdet((9, -9)), ValueError, "size must be at least 0, got -9"),
    (lambda: SVDConv2d(3, 3, 1).logabsdet("ab"), TypeError, "size must be an int, got 'a'"),
    (
        lambda: SVDConv2d(3, 8, 3).inverse(torch.ones(1, 3, 5, 5)),
        ValueError,
        r"got SVDConv2d\(3, 8, kernel_size",
    ),
    (
        lambda: SVDConv2d(3, 8, 3).operator_singular_values((9, 9)),
        ValueError,
        r"got SVDConv2d\(3, 8, kernel_size=\(3, 3\)\); operator_norm_bound",
    ),
    (lambda: SVDResidualBlock("4"), TypeError, "features must be an int, got '4'"),
    (lambda: SVDResidualBlock(0), ValueError, "^features must be at least 1, got 0"),
    (lambda: SVDResidualBlock(4, activation=torch.relu), TypeError, "must make a module without"),
    (lambda: SVDResidualBlock(4, activation=nn.Linear), TypeError, "must make a module without"),
    (lambda: SVDMLP("784"), ValueError, "widths must be a list or tuple of two sizes"),
    (lambda: SVDMLP([784, "10"]), TypeError, r"widths\[1\] must be an int, got '10'"),
    (lambda: SVDMLP([4, 4, 2], residual="no"), TypeError, "residual must be True or False"),
    (lambda: SpectralLSTM(4, 4, proj_size=4), ValueError, "below hidden_size = 4, got 4"),
    (lambda: setattr(SpectralRNN(4, 4), "weight_hh", torch.eye(4)), AttributeError, "weight_hh_l0"),
    (lambda: setattr(SpectralGRU(4, 4), "weight", torch.eye(4)), AttributeError, "weight_hh_l0"),
    (
        lambda: setattr(SpectralRNNCell(4, 4), "weight_hh_l0", torch.eye(4)),
        AttributeError,
        "SpectralRNNCell has no weight_hh_l0: weight_hh is its transition",
    ),
    (lambda: SVDWeight(4, 4).inverse(torch.ones(3)), ValueError, "y must hold vectors of length 4"),
    (lambda: SVDWeight(4, 4).inverse("y"), TypeError, "y must be a torch.Tensor, got str"),
    (
        lambda: setattr(SVDWeight(4, 4), "spectrum", FixedSpectrum()),
        AttributeError,
        r"set_spectrum_\(spectrum\) keeps",
    ),
    (lambda: square() @ torch.ones(3, 2), ValueError, r"columns of length 4.*\(3, 2\)"),
    (lambda: torch.ones(2, 3) @ square(), ValueError, r"rows of length 4.*\(2, 3\)"),
    (lambda: square() @ torch.ones(4, 2).numpy(), TypeError, "HouseholderSVD. does not"),
    (lambda: torch.ones(4, 4).numpy() @ square(), TypeError, "unsupported operand"),
    (lambda: square() @ torch.ones(4, 2).int(), TypeError, "x must be a real floating"),
    (lambda: SVDLinear(3, 4).factors.solve(torch.ones(3)), ValueError, r"as W of shape \(4, 3\)"),
    (lambda: square().pinv(rtol="small"), TypeError, "rtol must be a number, got 'small'"),
    (lambda: square().pinv(rtol=-1), ValueError, "rtol must not be negative, got -1"),
    (
        lambda: HouseholderSVD.from_dense(torch.eye(3), bounds=("a", "b")),
        TypeError,
        r"bounds must be two numbers, .* got \('a', 'b'\)",
    ),
    (
        lambda: HouseholderSVD.from_dense(torch.eye(3), bounds=(None, 2)),
        TypeError,
        "infinite where there is none",
    ),
    (
        lambda: apply_reflectors(torch.ones(2, 4), torch.ones(2, 4), transpose="no"),
        TypeError,
        "transpose must be True or False, got 'no'",
    ),
    (
        lambda: SigmoidSpectrum.around(torch.tensor([[1.0, -2.0]])),
        ValueError,
        r"svdvals\(w\) gives those",
    ),
    (lambda: convert(nn.Linear(3, 3), FixedSpectrum()), TypeError, "write spectrum=FixedSpectrum"),
    (lambda: convert(nn.Linear(3, 3), lambda layer: True), TypeError, r"select\(name, layer\)"),
    (
        lambda: convert(nn.Linear(3, 3), spectrum=lambda sigma: FixedSpectrum()),
        TypeError,
        r"spectrum must be a function called as spectrum\(name, sigma\)",
    ),
    (
        lambda: convert(nn.Linear(3, 3), spectrum=SigmoidSpectrum),
        TypeError,
        "spectrum must be a Spectrum such as",
    ),
    (
        lambda: convert(nn.Linear(3, 3), spectrum=lambda name, sigma: None),
        TypeError,
        "must return a Spectrum, got None for 'model'",
    ),
    (lambda: convert(nn.Linear(3, 3), inplace="no"), TypeError, "inplace must be True or False"),
    (
        lambda: parametrizations.svd(nn.Linear(3, 3), FixedSpectrum()),
        TypeError,
        r"name must be that of a tensor, such as 'weight', got FixedSpectrum",
    ),
    (
        lambda: parametrizations.svd(nn.Linear(3, 3), "wieght"),
        ValueError,
        "buffer of Linear, got 'wieght'; it has weight, bias",
    ),
    (
        lambda: parametrizations.svd(nn.Sequential(nn.Linear(3, 3))),
        ValueError,
        "buffer of Sequential, got 'weight'; it has none of its own, see its submodules",
    ),
    (lambda: parametrizations.svd(nn.LazyLinear(3)), ValueError, "LazyLinear is lazy and has no"),
    (
        lambda: setattr(SVDLinear(4, 4), "weight", torch.eye(4, device="meta")),
        ValueError,
        "cannot set weight: w must have values",
    ),
    (
        lambda: setattr(SVDLinear(4, 4), "weight", torch.eye(4).to_sparse()),
        TypeError,
        r"w must be a dense tensor, got layout torch.sparse_coo; w\.to_dense\(\) makes it one",
    ),
    (
        lambda: apply_reflectors(torch.ones(4), torch.ones(2, 4, device="meta")),
        ValueError,
        "reflectors must be on the device of x, cpu, got meta",
    ),
    (
        lambda: square().apply(torch.ones(4, device="meta")),
        ValueError,
        "x must be on the device of the factors, cpu, got meta",
    ),
    (
        lambda: lipschitz_constant(SVDLinear(4, 4), known={"ReLU": 1}),
        TypeError,
        "known must be a dict by types of modules",
    ),
    (lambda: lipschitz_constant(SVDLinear(4, 4), known=1), TypeError, "known must be a dict"),
    (lambda: parametrizations.remove_svd("x"), TypeError, "module must be a torch.nn.Module"),
    (
        lambda: parametrizations.remove_svd(SVDLinear(3, 3)),
        ValueError,
        "in SVDLinear, got 'weight'",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), MISTAKES)
def test_a_mistake_is_told_in_the_words_of_the_call(call, error, match):
    with pytest.raises(error, match=match):
        call()
