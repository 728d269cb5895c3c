"""SpectralLSTM and SpectralGRU are torch's layers to their caller, in values and gradients."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from spectral_triton.recurrent.fused import _exact_float32, in_one_chunk
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.lstm import SpectralLSTM

LAYERS = {
    "lstm": (SpectralLSTM, {}),
    "projected": (SpectralLSTM, {"proj_size": 2}),
    "gru": (SpectralGRU, {}),
}
# num_layers, bidirectional, bias
MODES = [(1, False, True), (1, True, False), (2, False, False), (2, True, True)]
INPUTS = ["batched", "batch_first", "unbatched", "sorted", "unsorted", "one step"]
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name, *sizes, **options):
    """A layer with random parameters, so that no two gates are alike."""
    kind, more = LAYERS[name]
    layer = kind(*(sizes or (3, 5)), **more, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer


def to_plain(layer):
    return layer.to_gru() if isinstance(layer, SpectralGRU) else layer.to_lstm()


def make_input(kind):
    shapes = {"unbatched": (4, 3), "batch_first": (2, 4, 3), "one step": (1, 2, 3)}
    if kind in ("sorted", "unsorted"):
        lengths = [4, 1] if kind == "sorted" else [1, 4]
        return pack_sequence([torch.randn(t, 3) for t in lengths], enforce_sorted=kind == "sorted")
    return torch.randn(shapes.get(kind, (4, 2, 3)))


def make_states(layer, kind):
    states = layer.num_layers * layer.num_directions
    batch = () if kind == "unbatched" else (2,)
    h0 = torch.randn(states, *batch, layer._state_size)
    if isinstance(layer, SpectralGRU):
        return (h0,)
    return h0, torch.randn(states, *batch, layer.hidden_size)


def run(layer, given, states):
    """Tensors of the result, and their gradients with regard to input, states and parameters."""
    is_packed = isinstance(given, PackedSequence)
    leaf = (given.data if is_packed else given).clone().requires_grad_()
    given = PackedSequence(leaf, *given[1:]) if is_packed else leaf
    states = [state.clone().requires_grad_() for state in states]
    hx = None if not states else states[0] if len(states) == 1 else tuple(states)
    output, last = layer(given, hx)
    if is_packed:
        for mine, theirs in zip(output[1:], given[1:], strict=True):
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)
        output = output.data
    results = (output, *(last if isinstance(last, tuple) else (last,)))
    loss = sum((y * torch.linspace(-1, 2, y.numel()).view_as(y)).pow(2).sum() for y in results)
    parameters = dict(layer.named_parameters())
    of = [leaf, *states, *parameters.values()]
    gradients = torch.autograd.grad(loss, of)
    named = dict(zip(parameters, gradients[1 + len(states) :], strict=True))
    return results, gradients[: 1 + len(states)], named


def assert_equal_to_torch(layer, given, states):
    plain = to_plain(layer)
    results, gradients, named = run(layer, given, states)
    expected, expected_gradients, expected_named = run(plain, given, states)
    for mine, theirs in zip((*results, *gradients), (*expected, *expected_gradients), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
    for name, theirs in expected_named.items():
        if "weight_hh" not in name:
            torch.testing.assert_close(named[name], theirs, rtol=1e-11, atol=1e-12)
            continue
        factors = {k: v for k, v in layer.named_parameters() if k.startswith(f"svd{name[6:]}.")}
        through = torch.autograd.grad(getattr(layer, name), list(factors.values()), theirs)
        for factor, gradient in zip(factors, through, strict=True):
            torch.testing.assert_close(named[factor], gradient, rtol=1e-11, atol=1e-12)
            # In a single step from zero the transition takes no part.
            assert gradient.abs().max() > 1e-9 or (len(results[0]) == 1 and not states)


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), MODES)
@every_layer
def test_equals_torch(name, num_layers, bidirectional, bias, kind, given_state):
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias}
    layer = make(name, num_reflectors=(2, 1), batch_first=kind == "batch_first", **options)
    states = make_states(layer, kind) if given_state else ()
    assert_equal_to_torch(layer, make_input(kind), states)


@every_layer
def test_no_sequences(name):
    layer = make(name, bidirectional=True)
    output, last = layer(torch.randn(4, 0, 3))
    expected, theirs = to_plain(layer)(torch.randn(4, 0, 3))
    assert output.shape == expected.shape
    for h, h_theirs in zip(*((x,) if name == "gru" else x for x in (last, theirs)), strict=True):
        assert h.shape == h_theirs.shape
    output.sum().backward()
    assert (layer.weight_ih_l0.grad == 0).all()


@every_layer
def test_gradcheck(name):
    layer = make(name, 1, 3, num_reflectors=(2, 1))
    names = [key for key, _ in layer.named_parameters()]

    def outputs(x, *parameters):
        state = dict(zip(names, parameters, strict=True))
        output, last = torch.func.functional_call(layer, state, (x,))
        return output, *(last if isinstance(last, tuple) else (last,))

    x = torch.randn(2, 1, 1, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (x, *layer.parameters()))


@every_layer
def test_dropout_is_that_of_torch(name):
    layer = make(name, num_layers=3, dropout=0.4)
    plain, x = to_plain(layer), torch.randn(5, 4, 3)
    results = []
    for module in (layer, plain, layer):
        torch.manual_seed(1)
        results.append(module(x)[0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], layer(x)[0])
    torch.testing.assert_close(layer.eval()(x)[0], plain.eval()(x)[0], rtol=1e-12, atol=1e-14)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(name, dtype):
    kind, options = LAYERS[name]
    layer = kind(4, 16, 2, **options, dtype=torch.float32).to(dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    x = torch.randn(20, 3, 4).to(dtype)
    output, last = layer(x)
    expected, expected_last = layer.double()(x.double())
    # |h| <= 1, or a sum of 16 of them times weights of at most 1/4 each.
    unit = torch.finfo(dtype).eps * (1 if name != "projected" else 4) + 1e-5
    assert output.dtype == dtype
    both = (last, expected_last)
    assert (output.double() - expected).abs().max() <= 0.5 * unit
    for h, theirs in zip(*((y,) if name == "gru" else y for y in both), strict=True):
        assert h.dtype == dtype
        assert (h.double() - theirs).abs().max() <= unit


@every_layer
def test_autocast_errs_no_more_than_torch(name):
    kind, options = LAYERS[name]
    layer = kind(4, 16, **options, dtype=torch.float32)
    x, plain = torch.randn(50, 3, 4, dtype=torch.float32), to_plain(layer)
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        output, mixed = layer(x)[0], layer(x.bfloat16())[0]
        assert layer.weight_hh_l0.dtype == torch.float32
    assert output.dtype == mixed.dtype == torch.bfloat16
    # Exact but for the rounding of input and output.
    assert (output.float() - expected).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps
    assert (mixed.float() - expected).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps
    try:
        with torch.autocast("cpu", torch.bfloat16):
            theirs = plain(x)[0]
    except RuntimeError as error:
        # oneDNN has no LSTM in bfloat16 for processors without AVX-512.
        assert "primitive descriptor" in str(error)  # noqa: PT017
        return
    assert (output.float() - expected).abs().max() <= 2 * (theirs.float() - expected).abs().max()


def test_compiles_around_it_as_around_torch():
    layer = make("lstm", 3, 4, num_reflectors=1)
    model = nn.Sequential(nn.Linear(3, 3), layer)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    x, results = torch.randn(5, 2, 3, requires_grad=True), []
    for module in (model, compiled):
        output = module(x)[0]
        loss = output.pow(3).sum()
        results.append((output, *torch.autograd.grad(loss, (x, *model.parameters()))))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("strict", [False, True])
def test_exports_for_a_fixed_length(strict):
    layer = make("gru", num_reflectors=1).eval()
    program = torch.export.export(layer, (torch.randn(4, 2, 3),), strict=strict)
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0], rtol=1e-12, atol=1e-14)


@every_layer
def test_inference_modes_change_nothing(name):
    layer, x = make(name, num_layers=2), torch.randn(4, 2, 3)
    expected = layer(x)[0]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output = layer(x)[0]
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-14)
        assert not output.requires_grad


@every_layer
def test_warns_of_nothing(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(name, num_layers=2)(torch.randn(3, 2, 3))[0].sum().backward()


@every_layer
def test_bad_input_is_named(name):
    layer = make(name)
    with pytest.raises(ValueError, match=r"input must have at least one step.*\(0, 2, 3\)"):
        layer(torch.randn(0, 2, 3))
    with pytest.raises(ValueError, match=r"input must be .* input_size = 3, got \(4, 2, 2\)"):
        layer(torch.randn(4, 2, 2))
    with pytest.raises(ValueError, match=r"input must be .* got shape \(3,\)"):
        layer(torch.randn(3))
    with pytest.raises(TypeError, match="input must be a real floating-point tensor"):
        layer(torch.ones(4, 2, 3).long())
    with pytest.raises(TypeError, match=r"dtype of the weights, torch.float64, got torch.float32"):
        layer(torch.randn(4, 2, 3).float())


def test_one_chunk_holds_matrices_then_biases():
    weights = [torch.randn(s, requires_grad=True) for s in ((4, 3), (4, 2), (4,), (4,), (4, 1))]
    views = in_one_chunk(weights)
    for view, weight in zip(views, weights, strict=True):
        assert torch.equal(view, weight)
        assert view.is_contiguous()
        assert view.untyped_storage().data_ptr() == views[0].untyped_storage().data_ptr()
    assert [view.storage_offset() for view in views] == [0, 12, 24, 28, 20]
    sum(view.pow(2).sum() for view in views).backward()
    assert all(torch.equal(weight.grad, 2 * weight) for weight in weights)


def test_cudnn_is_kept_from_tf32_for_the_call_only():
    settings = torch.backends.cudnn.rnn
    before = settings.fp32_precision
    for value in ("tf32", "ieee"):
        settings.fp32_precision = value
        try:
            with _exact_float32("cuda"):
                assert settings.fp32_precision == "ieee"
            assert settings.fp32_precision == value
            with _exact_float32("cpu"):
                assert settings.fp32_precision == value
        finally:
            settings.fp32_precision = before


@pytest.mark.gpu
@every_layer
@pytest.mark.parametrize("mode", MODES)
def test_cudnn_gives_what_the_cpu_gives(name, mode):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    num_layers, bidirectional, bias = mode
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias}
    layer = make(name, 3, 5, **options)
    x, results = torch.randn(4, 2, 3), []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        layer = layer.to(device, dtype)
        given = x.to(device, dtype).requires_grad_()
        y = layer(given)[0]
        inputs = [given, *layer.parameters()]
        grads = torch.autograd.grad((y * y.detach().cos()).sum(), inputs)
        results.append([a.double().cpu() for a in (y, *grads)])
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    # Backward cuDNN has its own precision, TF32.
    torch.testing.assert_close(results[1][1:], results[0][1:], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_factors_of_a_wider_dtype(name):
    layer = make(name, dtype=torch.float32)
    layer.svd_weight().double()
    x = torch.randn(4, 2, 3, dtype=torch.float32)
    y = layer(x)[0]
    assert y.dtype == torch.float32
    # Rounded once: that is what the whole layer in the wider dtype gives.
    assert torch.equal(y, layer.double()(x.double())[0].float())
