"""Input and initial states in every shape nn.RNN takes, and errors that name what is wrong."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from spectral_triton import SpectralGRU, SpectralLSTM, SpectralRNN
from spectral_triton.recurrent.state import check_input, initial_state, read_sequences


def packed(features=2, sorted_=True):
    lengths = (3, 2, 2) if sorted_ else (2, 3, 1)
    sequences = [torch.randn(length, features) for length in lengths]
    return pack_sequence(sequences, enforce_sorted=sorted_)


def test_input_comes_out_with_time_first():
    x = torch.randn(3, 4, 2)
    assert check_input(x, 2, False) is x
    assert torch.equal(check_input(x, 2, True), x.transpose(0, 1))
    for batch_first in (False, True):
        assert torch.equal(check_input(x[0], 2, batch_first), x[0].unsqueeze(1))
        given = packed()
        assert check_input(given, 2, batch_first) is given.data


def test_no_state_is_zero_in_the_dtype_of_the_input():
    x = torch.randn(3, 4, 2).bfloat16()
    h0 = initial_state(None, x, (2, 4, 5), True, None)
    assert h0.dtype == torch.bfloat16
    assert torch.equal(h0, torch.zeros(2, 4, 5, dtype=torch.bfloat16))


def test_state_follows_the_order_of_a_packed_batch():
    h0, x = torch.randn(2, 3, 5), torch.randn(6, 2)
    assert initial_state(h0, x, (2, 3, 5), True, None) is h0
    order = torch.tensor([2, 0, 1])
    assert torch.equal(initial_state(h0, x, (2, 3, 5), True, order), h0[:, order])
    assert torch.equal(initial_state(h0[:, 0], x, (2, 1, 5), False, None), h0[:, :1])


@pytest.mark.parametrize("kind", ["batched", "unbatched", "packed"])
def test_shapes_taken_are_those_of_torch(kind):
    own, plain = SpectralRNN(2, 5, 2), nn.RNN(2, 5, 2)
    x = {"batched": torch.randn(3, 4, 2), "unbatched": torch.randn(3, 2), "packed": packed()}[kind]
    batch = {"batched": 4, "unbatched": None, "packed": 3}[kind]
    for shape in ((2, 4, 5), (2, 3, 5), (2, 5), (2, 1, 5), (1, 4, 5), (1, 3, 5), (5,), (2, 4, 4)):
        h0 = torch.randn(shape)
        taken = shape == ((2, 5) if batch is None else (2, batch, 5))
        if taken:
            assert own(x, h0)[1].shape == plain(x, h0)[1].shape == shape
            continue
        with pytest.raises((RuntimeError, ValueError)):
            plain(x, h0)
        with pytest.raises(ValueError, match=r"hx must have shape \(2, "):
            own(x, h0)


BAD = [
    (TypeError, "input must be a torch.Tensor, got NoneType", None, None),
    (TypeError, "input .*int64", torch.ones(3, 4, 2, dtype=torch.int64), None),
    (TypeError, "input .*complex", torch.ones(3, 4, 2) + 1j, None),
    (ValueError, r"input must be \(T, B, input_size\).*\(2,\)", torch.ones(2), None),
    (ValueError, r"input .*\(T, input_size\).*\(1, 3, 4, 2\)", torch.ones(1, 3, 4, 2), None),
    (ValueError, r"input .*input_size = 2, got \(3, 4, 3\)", torch.ones(3, 4, 3), None),
    (ValueError, r"input .*PackedSequence.*input_size = 2, got \(7, 3\)", packed(3), None),
    (ValueError, "input .*PackedSequence", pack_sequence([torch.ones(3, 2, 2)]), None),
    (TypeError, "input .*int64", pack_sequence([torch.ones(3, 2, dtype=torch.int64)]), None),
    (TypeError, "hx must be a torch.Tensor, got tuple", torch.ones(3, 4, 2), (torch.ones(1),)),
    (TypeError, "hx .*int32", torch.ones(3, 2), torch.ones(2, 5, dtype=torch.int32)),
    (ValueError, "hx .*device of the input, cpu, got meta", torch.ones(3, 2), torch.ones(2, 5)),
]


@pytest.mark.parametrize(("error", "match", "x", "hx"), BAD)
def test_bad_input_is_named(error, match, x, hx):
    own = SpectralRNN(2, 5, 2, dtype=torch.float32)
    hx = hx.to("meta") if "meta" in match else hx
    with pytest.raises(error, match=match):
        own(x, hx)


def test_batch_first_is_named():
    with pytest.raises(ValueError, match=r"input must be \(B, T, input_size\)"):
        SpectralRNN(2, 5, batch_first=True)(torch.ones(2))


BAD_OPTIONS = [
    (ValueError, "input_size .*0", (0, 3), {}),
    (TypeError, "input_size .*'2'", ("2", 3), {}),
    (ValueError, "hidden_size .*0", (2, 0), {}),
    (ValueError, "num_layers .*0", (2, 3, 0), {}),
    (TypeError, "num_layers .*True", (2, 3, True), {}),
    (ValueError, "nonlinearity .*'sigmoid'", (2, 3), {"nonlinearity": "sigmoid"}),
    (ValueError, "negative_slope .*-1", (2, 3), {"negative_slope": -1}),
    (ValueError, r"dropout .*1\.5", (2, 3), {"dropout": 1.5}),
    (ValueError, "dropout .*nan", (2, 3), {"dropout": float("nan")}),
    (TypeError, "dropout", (2, 3), {"dropout": None}),
    (ValueError, "init .*'random'", (2, 3), {"init": "random"}),
    (ValueError, "num_reflectors .*3.*got 4", (2, 3), {"num_reflectors": 4}),
    (ValueError, "num_reflectors .*pair", (2, 3), {"num_reflectors": (1, 2, 3)}),
    (TypeError, "num_reflectors", (2, 3), {"num_reflectors": 1.5}),
    (TypeError, "spectrum must be a Spectrum", (2, 3), {"spectrum": "sigmoid"}),
    (TypeError, "dtype .*int32", (2, 3), {"dtype": torch.int32}),
]


@pytest.mark.parametrize(("error", "match", "arguments", "options"), BAD_OPTIONS)
def test_bad_options_are_named(error, match, arguments, options):
    with pytest.raises(error, match=match):
        SpectralRNN(*arguments, **options)


def test_bad_layer_is_named():
    own = SpectralRNN(2, 3, 2)
    with pytest.raises(ValueError, match="layer must be at most 1, got 2"):
        own.svd_weight(2)
    with pytest.raises(ValueError, match="reverse=True needs a bidirectional"):
        own.svd_weight(0, reverse=True)
    with pytest.raises(AttributeError, match="weight_hh_l2"):
        _ = own.weight_hh_l2


@pytest.mark.parametrize("layer", [SpectralRNN(3, 4), SpectralLSTM(3, 4), SpectralGRU(3, 4)])
@pytest.mark.parametrize(
    ("rows", "sizes", "message"),
    [
        (9, [2, 2, 1], "a row for each of the 5 steps in batch_sizes .* got 9"),
        (4, [2, 2, 1], "a row for each of the 5 steps in batch_sizes .* got 4"),
        (5, [2, 1, 2], r"must be positive and never rise, got \[2, 1, 2\]"),
        (3, [2, 1, 0], "must be positive and never rise"),
        (0, [], "must be positive and never rise"),
    ],
)
def test_packed_rows_that_do_not_fit_are_refused(layer, rows, sizes, message):
    packed = PackedSequence(torch.randn(rows, 3), torch.tensor(sizes, dtype=torch.int64))
    with pytest.raises(ValueError, match=message):
        layer.double()(packed)


def test_last_states_come_back_in_the_given_order():
    packed = pack_sequence([torch.randn(n, 2) for n in (1, 3, 2)], enforce_sorted=False)
    sorted_states = torch.tensor([3.0, 2.0, 1.0]).view(1, 3, 1)
    last = read_sequences(packed, 2, False).last(sorted_states)
    assert last.flatten().tolist() == [1.0, 3.0, 2.0]
