"""Random gated layers, cells and convolutions: what torch's own do with the dense weights.

The oracle is the layer of torch in float64, with the dense weights that ours show.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from spectral_triton import (
    FixedSpectrum,
    SigmoidSpectrum,
    SoftplusSpectrum,
    SpectralGRU,
    SpectralGRUCell,
    SpectralLSTM,
    SpectralLSTMCell,
    SVDConv1d,
    SVDConv2d,
    SVDConv3d,
)

FLOATING = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SPECTRA = [None, SigmoidSpectrum(center=1.0, margin=0.3), FixedSpectrum(0.5), SoftplusSpectrum()]

small = st.integers(1, 4)
dtypes = st.sampled_from(FLOATING)
seeds = st.integers(0, 2**20)


def fuzz(cases):
    """A test of so many cases, the same ones in every run."""
    return settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def check(actual, expected, dtype):
    """Right to the precision of ``dtype``, after arithmetic in float32 at least."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    scale = max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    tolerance = 30 * torch.finfo(dtype).eps * scale
    assert ((actual.detach().double() - expected).abs() <= tolerance).all()


def with_dense_weights(plain, layer):
    """torch's layer in float64 with what ours holds, dense weights from its attributes."""
    plain = plain.double()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            value = getattr(layer, name)
            # A layer of half precision computes with the unrounded product of its factors.
            if name.startswith("weight_hh"):
                dense = getattr(layer, name.replace("weight", "svd")).to_dense()
                value = dense.flatten(0, 1)
            elif name == "weight" and isinstance(plain, nn.modules.conv._ConvNd):
                value = layer.svd.to_dense().reshape(parameter.shape)
            parameter.copy_(value.double())
    return plain


@fuzz(120)
@given(
    st.sampled_from([(SpectralLSTM, nn.LSTM), (SpectralGRU, nn.GRU)]),
    st.tuples(small, st.integers(0, 3), small, st.integers(1, 5)),
    st.integers(1, 2),
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from(["batched", "unbatched", "packed", "wrong features", "wrong dtype"]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from(SPECTRA),
    dtypes,
    seeds,
)
def test_gated_layers(kinds, shape, layers, flags, form, reflectors, spectrum, dtype, seed):
    torch.manual_seed(seed)
    (ours, torchs), (steps, batch, features, n) = kinds, shape
    bias, batch_first, bidirectional, with_state = flags
    options = {"num_layers": layers, "bias": bias, "bidirectional": bidirectional}
    options["batch_first"] = batch_first
    if ours is SpectralLSTM and n > 1:
        options["proj_size"] = seed % n
    own = {"num_reflectors": reflectors, "spectrum": spectrum, "dtype": dtype}
    state_size = options.get("proj_size") or n
    layer = ours(features, n, **options, **own)
    x = torch.randn(steps, batch, features).to(dtype)
    if form == "wrong features":
        with pytest.raises(ValueError, match="input_size"):
            layer(torch.randn(steps, batch, features + 1).to(dtype))
        return
    if form == "wrong dtype":
        with pytest.raises(TypeError, match="input must be"):
            layer(x.long())
        return
    plain = with_dense_weights(torchs(features, n, **options), layer)
    batched = form != "unbatched"
    batch = batch if batched else 1
    states = [
        torch.randn(layers * (1 + bidirectional), batch, size).to(dtype)
        for size in ((state_size, n) if ours is SpectralLSTM else (n,))
    ]
    states = states if batched else [h.squeeze(1) for h in states]
    if form == "packed":
        lengths = [1 + (seed + b) % steps for b in range(max(batch, 1))]
        states = [torch.randn(len(h), len(lengths), h.shape[-1]).to(dtype) for h in states]
        sequences = [torch.randn(length, features).to(dtype) for length in lengths]
        x = pack_sequence(sequences, enforce_sorted=False)
        wide = x.to(torch.float64)
    else:
        x = torch.randn(steps, features).to(dtype) if not batched else x
        x = x.transpose(0, 1) if batched and batch_first else x
        wide = x.double()
    hx = None if not with_state else tuple(states) if ours is SpectralLSTM else states[0]
    wide_hx = None
    if hx is not None:
        wide_hx = tuple(h.double() for h in hx) if isinstance(hx, tuple) else hx.double()
    (y, last), (y_wide, last_wide) = layer(x, hx), plain(wide, wide_hx)
    check(*((a.data if form == "packed" else a) for a in (y, y_wide)), dtype)
    pairs = [(last, last_wide)] if ours is SpectralGRU else zip(last, last_wide, strict=True)
    for actual, expected in pairs:
        check(actual, expected, dtype)


@fuzz(60)
@given(
    st.sampled_from([(SpectralLSTMCell, nn.LSTMCell), (SpectralGRUCell, nn.GRUCell)]),
    st.tuples(st.integers(0, 3), small, small),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 1]),
    dtypes,
    seeds,
)
def test_gated_cells(kinds, shape, bias, batched, reflectors, dtype, seed):
    torch.manual_seed(seed)
    (ours, torchs), (batch, features, n) = kinds, shape
    cell = ours(features, n, bias, num_reflectors=reflectors, dtype=dtype)
    plain = with_dense_weights(torchs(features, n, bias), cell)
    lead = (batch,) if batched else ()
    x, *states = (torch.randn(*lead, size).to(dtype) for size in (features, n, n))
    hx = tuple(states) if ours is SpectralLSTMCell else states[0]
    wide = tuple(h.double() for h in hx) if isinstance(hx, tuple) else hx.double()
    actual, expected = cell(x, hx), plain(x.double(), wide)
    pairs = [(actual, expected)] if ours is SpectralGRUCell else zip(actual, expected, strict=True)
    for pair in pairs:
        check(*pair, dtype)


@fuzz(120)
@given(
    st.sampled_from(
        [(SVDConv1d, nn.Conv1d, 1), (SVDConv2d, nn.Conv2d, 2), (SVDConv3d, nn.Conv3d, 3)]
    ),
    st.tuples(small, small, st.integers(1, 2)),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)), min_size=3),
    st.sampled_from([0, 1, "same", "valid"]),
    st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
    st.sampled_from([None, 1]),
    st.tuples(st.booleans(), st.booleans()),
    st.integers(0, 2),
    dtypes,
    seeds,
)
def test_convolutions(kinds, channels, taps, padding, mode, reflectors, flags, batch, dtype, seed):
    torch.manual_seed(seed)
    ours, torchs, dimensions = kinds
    (inputs, outputs, groups), (bias, batched) = channels, flags
    inputs, outputs = inputs * groups, outputs * groups
    kernel, stride, dilation = zip(*taps[:dimensions], strict=True)
    options = {"padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    options |= {"padding_mode": mode, "stride": stride if padding != "same" else 1}
    conv = ours(inputs, outputs, kernel, num_reflectors=reflectors, dtype=dtype, **options)
    plain = with_dense_weights(torchs(inputs, outputs, kernel, **options), conv)
    lead = (batch,) if batched else ()
    x = torch.randn(*lead, inputs, *(7,) * dimensions).to(dtype)
    check(conv(x), plain(x.double()), dtype)
    sigma = torch.linalg.svdvals(conv.svd.to_dense().detach().double())
    assert (sigma < 1.01 + 1e-5).all()
    assert (sigma > 0.99 - 1e-5).all()
    with pytest.raises(ValueError, match="in_channels"):
        conv(torch.randn(*lead, inputs + 1, *(7,) * dimensions).to(dtype))
