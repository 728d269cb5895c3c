"""SVDConv1d to SVDConv3d are nn.Conv1d to nn.Conv3d to their caller."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch import nn

from spectral_triton.layers.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.spectra.spectrum import FixedSpectrum, SigmoidSpectrum, SoftplusSpectrum

PLAIN = {SVDConv1d: nn.Conv1d, SVDConv2d: nn.Conv2d, SVDConv3d: nn.Conv3d}
CASES = [
    (SVDConv1d, (3, 4, 3), {}),
    (SVDConv1d, (4, 6, 3), {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}),
    (SVDConv1d, (3, 3, 4), {"groups": 3, "padding": "same", "bias": False}),
    (SVDConv1d, (3, 4, 4), {"padding": "same", "padding_mode": "reflect"}),
    (SVDConv1d, (3, 2, 3), {"padding": 2, "padding_mode": "circular", "stride": 2}),
    (SVDConv2d, (3, 4, 3), {"padding": "valid"}),
    (SVDConv2d, (3, 4, (2, 3)), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
    (SVDConv2d, (4, 8, 3), {"groups": 4, "padding": "same", "dilation": 2}),
    (SVDConv2d, (3, 4, (2, 4)), {"padding": (1, 2), "padding_mode": "replicate"}),
    (
        SVDConv2d,
        (3, 4, (3, 2)),
        {"padding": "same", "padding_mode": "circular", "dilation": (1, 2)},
    ),
    (SVDConv3d, (3, 4, 2), {"stride": 2, "bias": False}),
    (SVDConv3d, (4, 6, (2, 3, 1)), {"groups": 2, "padding": (0, 2, 1), "dilation": (2, 1, 1)}),
    (SVDConv3d, (2, 3, (3, 2, 4)), {"padding": "same", "padding_mode": "reflect"}),
]


@pytest.mark.parametrize("kind", PLAIN)
def test_signature_is_that_of_torch(kind):
    ours = list(inspect.signature(kind).parameters.values())
    theirs = list(inspect.signature(PLAIN[kind]).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [
        (p.name, p.default) for p in theirs
    ]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize(("kind", "sizes", "options"), CASES)
@pytest.mark.parametrize("batch", [(), (2,), (0,)])
def test_equals_torch(kind, sizes, options, batch):
    plain = PLAIN[kind](*sizes, **options).eval()
    own = kind.from_conv(plain, spectrum=SoftplusSpectrum())
    assert not own.training
    x = torch.randn(*batch, sizes[0], *(9, 8, 7)[: kind.dimensions], requires_grad=True)
    torch.testing.assert_close(own.weight, plain.weight, rtol=0, atol=1e-13)
    y, expected = own(x), plain(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(out.pow(3).sum(), x)[0] for out in (y, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)
    back = own.to_conv()
    assert type(back) is PLAIN[kind]
    assert repr(back) == repr(plain)
    assert not back.training
    torch.testing.assert_close(back(x), expected, rtol=0, atol=1e-12)
    loaded = kind(*sizes, **options, spectrum=SoftplusSpectrum())
    assert not any(loaded.load_state_dict(plain.state_dict()))
    assert torch.equal(loaded(x), y)


@pytest.mark.parametrize(("kind", "sizes", "options"), CASES)
def test_singular_values_are_those_of_each_group(kind, sizes, options):
    own = kind(*sizes, **options, spectrum=SigmoidSpectrum(center=0.5, margin=0.3))
    with torch.no_grad():
        own.svd.raw_singular_values.normal_(std=2)
    groups = options.get("groups", 1)
    expected = torch.linalg.svdvals(own.weight.flatten(1).unflatten(0, (groups, -1)))
    actual = own.singular_values.reshape(groups, -1).sort(descending=True).values
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
    assert own.weight.shape == PLAIN[kind](*sizes, **options).weight.shape


@pytest.mark.parametrize("num_reflectors", [0, 2, (1, 0)])
def test_few_reflectors_train(num_reflectors):
    conv = SVDConv2d(2, 4, 2, num_reflectors=num_reflectors)
    conv(torch.randn(3, 2, 5, 5)).square().sum().backward()
    torch.testing.assert_close(torch.linalg.svdvals(conv.weight.flatten(1)), torch.ones(4))
    left, right = conv.svd.left.grad, conv.svd.right.grad
    assert left.isfinite().all()
    assert right.isfinite().all()
    assert bool(left.abs().sum() > 0) is (num_reflectors != 0)
    assert bool(right.abs().sum() > 0) is (num_reflectors == 2)


def test_start():
    conv = SVDConv2d(10, 300, 3, spectrum=SigmoidSpectrum(center=0.5, margin=0.1))
    torch.testing.assert_close(conv.singular_values, torch.full((90,), 0.5))
    assert conv.bias.abs().max() <= 1 / math.sqrt(90)
    assert conv.bias.std() > 0.4 / math.sqrt(90)
    before = copy.deepcopy(conv.state_dict())
    conv.reset_parameters()
    assert all(not torch.equal(conv.state_dict()[key], before[key]) for key in ("bias", "svd.left"))


def test_loads_copies_and_pickles():
    conv = SVDConv1d(4, 4, 3, groups=2)
    x = torch.randn(1, 4, 6)
    other = SVDConv1d(4, 4, 3, groups=2)
    other.load_state_dict(conv.state_dict())
    for twin in (other, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(twin(x), conv(x))
        assert twin.svd.left is not conv.svd.left
    with pytest.raises(RuntimeError, match=r"dense weight: .* outside the bounds"):
        conv.load_state_dict(nn.Conv1d(4, 4, 3, groups=2).state_dict())
    with pytest.raises(RuntimeError, match=r"shape \(4, 2, 3\), got \(4, 4, 3\)"):
        conv.load_state_dict(nn.Conv1d(4, 4, 3).state_dict())


def test_meta_device():
    options = {"device": "meta", "dtype": torch.float32}
    conv = SVDConv2d(2, 3, 3, **options)
    assert conv(torch.ones(1, 2, 5, 5, **options)).shape == (1, 3, 3, 3)
    conv = conv.to_empty(device="cpu")
    conv.reset_parameters()
    sigma = torch.linalg.svdvals(conv.weight.flatten(1))
    torch.testing.assert_close(sigma, torch.ones(3, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    conv = SVDConv1d(8, 8, 3, padding="same").to(dtype)
    x = torch.randn(2, 8, 20).to(dtype)
    assert conv.weight.dtype == dtype
    exact = copy.deepcopy(conv).double()(x.double())
    y = conv(x)
    assert y.dtype == dtype
    # Half a unit in the last place, and what float32 adds.
    error = (y.double() - exact).abs()
    assert (error <= exact.abs() * torch.finfo(dtype).eps * 0.51 + 1e-5).all()


def test_half_precision_input_and_autocast():
    conv = SVDConv1d(2, 3, 3)
    x = torch.randn(2, 2, 9)
    assert torch.equal(conv(x.bfloat16()), conv(x.bfloat16().double()).bfloat16())
    conv = conv.float()
    expected = conv(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv(x.float()), expected)


def test_compiles_to_the_same():
    conv = SVDConv2d(2, 4, 3, padding="same", groups=2)
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 2, 5, 5)
    torch.testing.assert_close(compiled(x), conv(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SVDConv1d(0, 3, 1), ValueError, "in_channels must be at least 1"),
        (lambda: SVDConv1d(3, 3.5, 1), TypeError, "out_channels must be an int"),
        (lambda: SVDConv1d(3, 4, 1, groups=2), ValueError, "divisible by groups"),
        (lambda: SVDConv1d(3, 4, 0), ValueError, "kernel_size must be at least 1, got 0"),
        (lambda: SVDConv2d(3, 4, (3, 3, 3)), ValueError, "kernel_size must be an int or 2 of them"),
        (lambda: SVDConv1d(3, 4, 3, stride=0), ValueError, "stride must be at least 1, got 0"),
        (lambda: SVDConv1d(3, 4, 3, stride=1.5), TypeError, "stride must be an int, got 1.5"),
        (lambda: SVDConv2d(3, 4, 3, padding=(0, -1)), ValueError, "padding must be at least 0"),
        (lambda: SVDConv1d(3, 4, 3, dilation=0), ValueError, "dilation must be at least 1"),
        (lambda: SVDConv2d(3, 4, 3, bias="no"), TypeError, "bias must be True or False, got 'no'"),
        (lambda: SVDConv1d(3, 4, 1, padding_mode="mirror"), ValueError, "padding_mode"),
        (lambda: SVDConv2d(3, 4, 2, stride=2, padding="same"), ValueError, "same"),
        (
            lambda: SVDConv2d(3, 4, 1, num_reflectors=4),
            ValueError,
            "num_reflectors .* = 3 .* got 4",
        ),
        (lambda: SVDConv2d(3, 4, 1, spectrum=1), TypeError, "spectrum must be a Spectrum"),
        (lambda: SVDConv1d(3, 4, 1)(torch.ones(2, 4, 5)), ValueError, r"in_channels = 3, got \(2,"),
        (lambda: SVDConv2d(3, 4, 1)(torch.ones(3, 5)), ValueError, r"in_channels, H, W\)"),
        (lambda: SVDConv3d(3, 4, 1)(torch.ones(3, 5, 5)), ValueError, r"in_channels, D, H, W\)"),
        (lambda: SVDConv3d(3, 4, (1, 2)), ValueError, "kernel_size must be an int or 3 of them"),
        (lambda: SVDConv1d(3, 4, 1)(torch.ones(3, 5).long()), TypeError, "input must be .*int64"),
        (lambda: SVDConv1d(3, 4, 1)(torch.ones(3, 5).float()), TypeError, "float64.*float32"),
        (lambda: SVDConv1d.from_conv(nn.Conv2d(1, 1, 1)), TypeError, "nn.Conv1d, got Conv2d"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_says_what_it_is():
    conv = SVDConv2d(2, 4, 3, padding="same", groups=2, bias=False, spectrum=FixedSpectrum())
    text = repr(conv)
    assert "2, 4, kernel_size=(3, 3), padding='same', groups=2, bias=False" in text
    assert "num_reflectors=(2, 2), spectrum=FixedSpectrum(value=1.0), num_blocks=2" in text
