"""SpectralRNN is nn.RNN to its caller: the same outputs and gradients in every mode."""

import itertools

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from spectral_triton import FixedSpectrum, SigmoidSpectrum, SoftplusSpectrum, SpectralRNN

MODES = list(itertools.product([1, 2], [False, True], [False, True], [True, False]))
INPUTS = ["batched", "unbatched", "sorted", "unsorted"]


def make_input(kind, batch_first=False, time=4, batch=3, features=2):
    if kind == "unbatched":
        return torch.randn(time, features)
    if kind == "batched":
        return torch.randn((batch, time, features) if batch_first else (time, batch, features))
    lengths = [4, 3, 1] if kind == "sorted" else [1, 4, 3]
    sequences = [torch.randn(length, features) for length in lengths]
    return pack_sequence(sequences, enforce_sorted=kind == "sorted")


def randomize(module, scale=1.0):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale)
    return module


def flat(value):
    return value.data if isinstance(value, PackedSequence) else value


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=atol)


def run(rnn, given, h0, names):
    """Output, h_n, and gradients of input, h0 and the parameters called ``names``."""
    leaf = flat(given).detach().clone().requires_grad_()
    is_packed = isinstance(given, PackedSequence)
    given = PackedSequence(leaf, *given[1:]) if is_packed else leaf
    h0 = None if h0 is None else h0.clone().requires_grad_()
    output, h_n = rnn(given, h0)
    if is_packed:
        assert torch.equal(output.batch_sizes, given.batch_sizes)
        for name in ("sorted_indices", "unsorted_indices"):
            expected = getattr(given, name)
            assert expected is None or torch.equal(getattr(output, name), expected)
    weights = torch.linspace(-1, 1, h_n.numel()).view_as(h_n)
    loss = flat(output).pow(3).sum() + (h_n * weights).sum()
    of = [leaf, *([] if h0 is None else [h0]), *(getattr(rnn, name) for name in names)]
    return flat(output), h_n, *torch.autograd.grad(loss, of)


def names_of(rnn):
    return [name for name, _ in rnn.named_parameters() if "weight_ih" in name or "bias" in name]


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(("num_layers", "bidirectional", "batch_first", "bias"), MODES)
def test_equals_torch(num_layers, bidirectional, batch_first, bias, kind, given_state):
    nonlinearity = "relu" if num_layers == 1 else "tanh"
    plain = nn.RNN(2, 3, num_layers, nonlinearity, bias, batch_first, bidirectional=bidirectional)
    own = SpectralRNN.from_rnn(plain, spectrum=SoftplusSpectrum())
    given = make_input(kind, batch_first)
    states = num_layers * (1 + bidirectional)
    shape = (states, 3) if kind == "unbatched" else (states, 3, 3)
    h0 = torch.randn(shape) if given_state else None
    names = names_of(plain)
    results = run(own, given, h0, names), run(plain, given, h0, names)
    for actual, expected in zip(*results, strict=True):
        close(actual, expected)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_folded_equals_torch(kind, bidirectional):
    own = SpectralRNN(2, 70, 2, bidirectional=bidirectional, num_reflectors=(2, 0))
    plain = randomize(own).to_rnn()
    given, names = make_input(kind), names_of(plain)
    h0 = torch.randn((4 if bidirectional else 2, *([] if kind == "unbatched" else [3]), 70))
    for actual, expected in zip(
        run(own, given, h0, names), run(plain, given, h0, names), strict=True
    ):
        close(actual, expected, 1e-11)


def test_gradients_reach_the_factors():
    own = randomize(SpectralRNN(2, 4, bidirectional=True, num_reflectors=(3, 2)))
    x = torch.randn(5, 2, 2)
    own(x)[0].pow(3).sum().backward()
    plain = own.to_rnn()
    plain(x)[0].pow(3).sum().backward()
    for suffix in ("_l0", "_l0_reverse"):
        weight = own.get_submodule(f"svd_hh{suffix}")
        factors = [weight.left, weight.raw_singular_values, weight.right]
        dense = getattr(own, f"weight_hh{suffix}")
        expected = torch.autograd.grad(dense, factors, getattr(plain, f"weight_hh{suffix}").grad)
        for factor, wanted in zip(factors, expected, strict=True):
            close(factor.grad, wanted)
            assert factor.grad.abs().max() > 1e-4


@pytest.mark.parametrize("nonlinearity", ["leaky_relu", "identity", "modrelu"])
def test_nonlinearities_torch_has_not(nonlinearity):
    own = randomize(SpectralRNN(2, 3, nonlinearity=nonlinearity, negative_slope=0.3))
    x, h = torch.randn(3, 2, 2), torch.randn(1, 2, 3)
    expected, state = [], h[0]
    for x_t in x:
        bias = own.bias_ih_l0 + own.bias_hh_l0
        z = x_t @ own.weight_ih_l0.mT + bias + state @ own.weight_hh_l0.mT
        if nonlinearity == "leaky_relu":
            state = torch.where(z > 0, z, 0.3 * z)
        elif nonlinearity == "modrelu":
            state = z.sign() * (z.abs() + own.bias_modrelu_l0).clamp(min=0)
        else:
            state = z
        expected.append(state)
    output, h_n = own(x, h)
    close(output, torch.stack(expected))
    close(h_n[0], expected[-1])
    with pytest.raises(ValueError, match=f"tanh and relu, not '{nonlinearity}'"):
        own.to_rnn()


def test_no_steps_and_no_sequences():
    own = SpectralRNN(2, 3, 2, bidirectional=True)
    h0 = torch.randn(4, 2, 3)
    output, h_n = own(torch.randn(0, 2, 2), h0)
    assert output.shape == (0, 2, 6)
    assert torch.equal(h_n, h0)
    output, h_n = own(torch.randn(3, 0, 2))
    assert output.shape == (3, 0, 6)
    assert h_n.shape == (4, 0, 3)
    (output.sum() + h_n.sum()).backward()
    assert all((p.grad == 0).all() for p in own.parameters() if p.grad is not None)


def test_splitting_a_sequence_and_carrying_the_state():
    own = randomize(SpectralRNN(2, 5, 3))
    x = torch.randn(9, 2, 2)
    whole, end = own(x)
    first, h = own(x[:4])
    second, h = own(x[4:], h)
    close(torch.cat((first, second)), whole)
    close(h, end)


def test_padding_does_not_reach_packed_sequences():
    own = randomize(SpectralRNN(2, 3, bidirectional=True))
    padded, lengths = torch.randn(5, 3, 2), [5, 2, 3]
    packed = pack_padded_sequence(padded, lengths, enforce_sorted=False)
    output, h_n = own(packed)
    rows, _ = nn.utils.rnn.pad_packed_sequence(output)
    for b, length in enumerate(lengths):
        alone, h = own(padded[:length, b])
        close(rows[:length, b], alone)
        close(h_n[:, b], h)


def test_dropout_is_that_of_torch():
    plain = nn.RNN(2, 3, 3, dropout=0.4)
    own = SpectralRNN.from_rnn(plain, spectrum=SoftplusSpectrum())
    assert own.dropout == 0.4
    x = torch.randn(5, 4, 2)
    results = []
    for rnn in (own, plain, own):
        torch.manual_seed(1)
        results.append(rnn(x)[0])
    close(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], own(x)[0])
    close(own.eval()(x)[0], plain.eval()(x)[0])
    assert torch.equal(own(x)[0], own(x)[0])


def test_dropout_drops_what_it_says():
    own = SpectralRNN(1, 100, 2, "identity", dropout=0.3)
    with torch.no_grad():
        own.weight_ih_l1.copy_(torch.eye(100))
    x = torch.ones(1, 200, 1)
    kept = own(x)[0]
    ratio = kept / own.eval()(x)[0]
    dropped = ratio == 0
    close(ratio[~dropped], torch.full_like(ratio[~dropped], 1 / 0.7))
    # Five standard deviations of 20,000 draws.
    assert abs(dropped.double().mean().item() - 0.3) < 5 * (0.3 * 0.7 / 20_000) ** 0.5
    own.train().dropout = 1.0
    assert (own(x)[0] == 0).all()
    # Never after the last layer.
    with pytest.warns(UserWarning, match=r"dropout=0\.9 has no effect with num_layers=1"):
        single = SpectralRNN(1, 4, dropout=0.9)
    assert (single(torch.ones(3, 5, 1))[0] != 0).all()


def test_starts_as_a_memory():
    own = SpectralRNN(4, 6, 2, bidirectional=True, num_reflectors=2)
    for suffix in ("_l0", "_l1_reverse"):
        close(getattr(own, f"weight_hh{suffix}"), torch.eye(6), 1e-14)
        assert (getattr(own, f"bias_ih{suffix}") == 0).all()
        assert (getattr(own, f"bias_hh{suffix}") == 0).all()
        weight = getattr(own, f"weight_ih{suffix}")
        assert 0 < weight.abs().max() <= 0.5 / weight.shape[1] ** 0.5
    haar = SpectralRNN(4, 6, init="haar").weight_hh_l0
    close(haar @ haar.mT, torch.eye(6), 1e-13)
    assert (haar - torch.eye(6)).abs().max() > 0.1


@pytest.mark.parametrize("spectrum", [None, SigmoidSpectrum(center=1, margin=0.1, scale=20.0)])
def test_training_keeps_the_bounds_and_changes_the_output(spectrum):
    own = SpectralRNN(2, 8, nonlinearity="relu", spectrum=spectrum, dtype=torch.float32)
    margin = 0.01 if spectrum is None else 0.1
    optimizer = torch.optim.AdamW(own.parameters(), lr=0.05, weight_decay=0.3)
    x = torch.randn(12, 5, 2, dtype=torch.float32)
    start, before = own(x)[0].detach(), own.weight_hh_l0.detach()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (own(x)[0][-1] - x[0].abs()[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        sigma = torch.linalg.svdvals(own.weight_hh_l0.double())
        assert (sigma - 1).abs().max() <= margin + 1e-6
    assert losses[-1] < 0.5 * losses[0]
    after = own.weight_hh_l0.detach()
    assert (after - before).abs().max() > 0.1
    # The output is that of the weights as they are.
    torch.testing.assert_close(own(x)[0], own.to_rnn()(x)[0], rtol=1e-5, atol=1e-5)
    assert (own(x)[0] - start).abs().max() > 0.1


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "leaky_relu", "identity"])
def test_gradient_over_time_is_bounded(nonlinearity):
    time, spectrum = 12, SigmoidSpectrum(center=1.0, margin=0.1)
    own = SpectralRNN(2, 4, nonlinearity=nonlinearity, spectrum=spectrum)
    randomize(own, 30.0)
    with torch.no_grad():
        own.weight_ih_l0.copy_(torch.eye(4, 2))
    jacobian = torch.autograd.functional.jacobian(lambda x: own(x)[1][0], torch.randn(time, 2))
    for t in range(time):
        norm = torch.linalg.matrix_norm(jacobian[:, t], 2)
        assert norm <= 1.1 ** (time - 1 - t) * (1 + 1e-12)
        if nonlinearity == "identity":
            assert norm >= 0.9 ** (time - 1 - t) * (1 - 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_torch(dtype):
    own = SpectralRNN(4, 16, 2, dtype=torch.float32, init="haar").to(dtype)
    assert {p.dtype for p in own.parameters()} == {dtype}
    x = torch.randn(20, 3, 4).to(dtype)
    output, h_n = own(x)
    assert output.dtype == h_n.dtype == dtype
    exact = own.double()
    expected = exact(x.double())[0]
    plain = exact.to_rnn().to(dtype)(x)[0]
    error, theirs = ((y.double() - expected).abs().max() for y in (output, plain))
    assert error <= 2 * theirs + 2 * torch.finfo(dtype).eps
    assert (own.singular_values - 1).abs().max() <= 0.01


def test_autocast_errs_no_more_than_torch():
    own = SpectralRNN(4, 16, dtype=torch.float32, init="haar")
    x = torch.randn(50, 3, 4, dtype=torch.float32)
    expected, plain = own(x)[0], own.to_rnn()
    with torch.autocast("cpu", torch.bfloat16):
        error, theirs = ((rnn(x)[0].float() - expected).abs().max() for rnn in (own, plain))
        w = own.weight_hh_l0
        assert torch.equal(w, plain.weight_hh_l0)
    assert error <= 2 * theirs + 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_without_a_graph_break(dynamic):
    # Two layers or two directions add nothing but time here.
    own = randomize(SpectralRNN(2, 5, bidirectional=not dynamic))
    torch._dynamo.reset()
    compiled = torch.compile(own, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for time in (4, 7) if dynamic else (4,):
        x, h0 = torch.randn(time, 3, 2, requires_grad=True), torch.randn(2 - bool(dynamic), 3, 5)
        of = [x, *own.parameters()]
        results = []
        for rnn in (own, compiled):
            output, h_n = rnn(x, h0)
            loss = output.pow(3).sum() + h_n.sum()
            results.append((output, h_n, *torch.autograd.grad(loss, of)))
        for expected, actual in zip(*results, strict=True):
            close(actual, expected)


def test_exports_with_any_length():
    own = randomize(SpectralRNN(2, 5)).eval()
    lengths = torch.export.Dim("T", min=2, max=100)
    program = torch.export.export(own, (torch.randn(4, 3, 2),), dynamic_shapes=({0: lengths},))
    x = torch.randn(9, 3, 2)
    close(program.module()(x), own(x))


def test_functional_calls_and_gradients_per_sample():
    own = randomize(SpectralRNN(2, 5))
    parameters, x = dict(own.named_parameters()), torch.randn(3, 4, 2)

    def loss(parameters, x):
        return torch.func.functional_call(own, parameters, (x,))[0].pow(3).sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 1))(parameters, x)
    for b in range(4):
        alone = torch.autograd.grad(loss(parameters, x[:, b]), tuple(parameters.values()))
        for name, expected in zip(parameters, alone, strict=True):
            close(together[name][b], expected)


def test_inference_modes_change_nothing():
    own = SpectralRNN(2, 5, 2, bidirectional=True, init="haar")
    x = torch.randn(4, 3, 2)
    expected = own(x)[0]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output = own(x)[0]
        assert torch.equal(output, expected)
        assert not output.requires_grad


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_round_trip_through_torch(mode):
    num_layers, bidirectional, batch_first, bias = mode
    dropout = 0.25 * (num_layers - 1)
    given = SpectralRNN(2, 4, num_layers, "relu", bias, batch_first, dropout, bidirectional)
    plain = randomize(given, 2.0).eval().to_rnn()
    assert isinstance(plain, nn.RNN)
    assert not plain.training
    for name in ("num_layers", "nonlinearity", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(plain, name) == getattr(given, name)
    back = SpectralRNN.from_rnn(plain)
    assert not back.training
    x = torch.randn(3, 5, 2)
    close(back(x)[0], given(x)[0], 1e-11)
    for name, parameter in plain.named_parameters():
        close(getattr(back, name), parameter, 1e-13)
    # Neither shares memory with the other.
    with torch.no_grad():
        plain.weight_ih_l0.zero_()
    assert (back.weight_ih_l0 != 0).any()
    assert (given.weight_ih_l0 != 0).any()


def test_from_torch_out_of_bounds():
    plain = nn.RNN(2, 3)
    with torch.no_grad():
        plain.weight_hh_l0.copy_(torch.diag(torch.tensor([0.5, 1.0, 2.0])))
    with pytest.raises(ValueError, match=r"singular values from 0.5 to 2"):
        SpectralRNN.from_rnn(plain)
    clipped = SpectralRNN.from_rnn(plain, out_of_bounds="clip")
    close(clipped.weight_hh_l0, torch.diag(torch.tensor([0.99002, 1.0, 1.00998])), 1e-12)
    wide = SpectralRNN.from_rnn(plain, spectrum=SigmoidSpectrum(center=1.5, margin=1.0))
    close(wide.weight_hh_l0, plain.weight_hh_l0.detach())
    with torch.no_grad():
        plain.weight_hh_l0.copy_(torch.linalg.qr(torch.randn(3, 3)).Q)
    few = SpectralRNN.from_rnn(plain, num_reflectors=1)
    close(few.weight_hh_l0, plain.weight_hh_l0.detach())
    x = torch.randn(7, 2, 2)
    close(few(x)[0], plain(x)[0].detach(), 1e-12)
    with pytest.raises(ValueError, match="out_of_bounds"):
        SpectralRNN.from_rnn(plain, out_of_bounds="clamp")
    with pytest.raises(TypeError, match=r"rnn must be a torch.nn.RNN, got LSTM"):
        SpectralRNN.from_rnn(nn.LSTM(2, 3))


def test_orthogonal_spectrum_has_no_singular_parameters():
    own = SpectralRNN(2, 3, spectrum=FixedSpectrum())
    assert not any("singular" in name for name, _ in own.named_parameters())
    randomize(own)
    close(own.weight_hh_l0 @ own.weight_hh_l0.mT, torch.eye(3))


@pytest.mark.parametrize("num_reflectors", [None, 3])
def test_exports_with_any_length_and_batch(num_reflectors):
    rnn = SpectralRNN(2, 100, num_reflectors=num_reflectors)
    time, batch = (torch.export.Dim(name, min=2, max=1000) for name in ("time", "batch"))
    example = (torch.randn(4, 3, 2),)
    program = torch.export.export(rnn, example, dynamic_shapes=({0: time, 1: batch},)).module()
    for shape in ((2, 2), (30, 7)):
        x = torch.randn(*shape, 2)
        torch.testing.assert_close(program(x), rnn(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("num_reflectors", [1, None])
def test_compiles_for_inference(make, num_reflectors):
    torch._dynamo.reset()
    rnn = SpectralRNN(2, 40, 2, num_reflectors=num_reflectors)
    x = torch.randn(4, 3, 2)
    with make():
        compiled = torch.compile(rnn, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), rnn(x), rtol=0, atol=1e-12)
    rnn.requires_grad_(False)
    compiled = torch.compile(rnn, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), rnn(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(40, 2), (5, None)], ids=["folded", "dense"])
def test_output_may_be_changed_in_place(n, k):
    rnn = SpectralRNN(2, n, num_reflectors=k)
    x = torch.randn(4, 3, 2)
    output, _ = rnn(x)
    output[0] = 0
    output.mul_(2)
    assert torch.equal(output[0], torch.zeros(3, n))
    # What the backward pass needs is gone then, and torch says so.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_packed_input_while_another_device_is_the_default():
    rnn = SpectralRNN(2, 5, bidirectional=True)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(4, 2, 2), [4, 2])
    expected = rnn(packed)
    with torch.device("meta"):
        actual = rnn(packed)
    assert torch.equal(actual[0].data, expected[0].data)
    assert torch.equal(actual[1], expected[1])


def test_compiles_once_for_all_lengths_and_batches():
    torch._dynamo.reset()
    rnn, counter = SpectralRNN(2, 100, num_reflectors=3), CompileCounter()
    compiled = torch.compile(rnn, backend=counter, dynamic=True, fullgraph=True)
    for shape in ((4, 3), (2, 2), (9, 5), (30, 7)):
        x = torch.randn(*shape, 2)
        torch.testing.assert_close(compiled(x), rnn(x), rtol=0, atol=1e-12)
    assert counter.frame_count == 1
