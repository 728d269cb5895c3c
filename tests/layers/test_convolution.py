"""The bound of the operator norm, against the exact norm of the dense matrix."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spectral_triton.layers.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.layers.convolution import SVDConvolution
from spectral_triton.spectra.spectrum import FixedSpectrum, SoftplusSpectrum


def exact_norm(conv, size):
    """From the responses to all unit vectors."""
    shape = (conv.in_channels, *size)
    units = torch.eye(math.prod(shape)).reshape(-1, *shape)
    with torch.no_grad():
        return torch.linalg.svdvals(conv(units).flatten(1))[0]


def randomize(conv):
    """Different singular values in each group."""
    with torch.no_grad():
        conv.svd.raw_singular_values.normal_()
    return conv


CASES = [
    (SVDConv1d, (2, 3, 3), {}, (7,)),
    (SVDConv1d, (2, 3, 4), {"stride": 2, "padding": 1}, (9,)),
    (SVDConv1d, (4, 6, 3), {"groups": 2, "dilation": 2, "stride": 2}, (11,)),
    (SVDConv1d, (4, 4, 5), {"groups": 4, "padding": "same"}, (8,)),
    (SVDConv1d, (2, 3, 4), {"padding": "same", "dilation": 2, "padding_mode": "circular"}, (9,)),
    (SVDConv1d, (2, 3, 3), {"stride": 2, "padding": 4, "padding_mode": "circular"}, (5,)),
    (SVDConv1d, (2, 3, 3), {"padding": 3, "padding_mode": "reflect"}, (4,)),
    (SVDConv1d, (2, 3, 3), {"padding": 3, "stride": 3, "padding_mode": "replicate"}, (2,)),
    (SVDConv2d, (2, 3, 2), {}, (4, 5)),
    (SVDConv2d, (2, 3, (2, 3)), {"stride": (2, 1), "padding": (0, 1)}, (5, 4)),
    (SVDConv2d, (2, 4, 2), {"stride": 2}, (4, 6)),
    (SVDConv2d, (4, 2, 3), {"groups": 2, "dilation": (1, 2), "padding": "same"}, (4, 4)),
    (SVDConv2d, (1, 2, 3), {"padding": 1, "padding_mode": "circular"}, (4, 5)),
    (SVDConv2d, (1, 2, 3), {"padding": (1, 2), "padding_mode": "reflect"}, (3, 4)),
    (SVDConv2d, (1, 2, 3), {"padding": (1, 2), "padding_mode": "replicate"}, (2, 4)),
    (SVDConv3d, (1, 2, 2), {"padding": (1, 0, 0)}, (2, 3, 3)),
    (SVDConv3d, (2, 2, (1, 2, 2)), {"groups": 2, "stride": (2, 1, 1)}, (3, 3, 2)),
]


@pytest.mark.parametrize(("kind", "sizes", "options", "size"), CASES)
@pytest.mark.parametrize("seed", range(4))
def test_bound_holds(kind, sizes, options, size, seed):
    torch.manual_seed(seed)
    conv = randomize(kind(*sizes, bias=False, spectrum=SoftplusSpectrum(), **options))
    exact = exact_norm(conv, size)
    anywhere, here = conv.operator_norm_bound(), conv.operator_norm_bound(size)
    assert exact <= here * (1 + 1e-12)
    assert here <= anywhere
    # No bound is far off here, so a lost factor would show.
    assert exact > here / 4


@pytest.mark.parametrize(
    ("kind", "size"), [(SVDConv1d, (7,)), (SVDConv2d, (4, 6)), (SVDConv3d, (4, 2, 3))]
)
@pytest.mark.parametrize("groups", [1, 2])
def test_exact_where_patches_do_not_overlap(kind, size, groups):
    options = {"stride": 2, "bias": False, "groups": groups, "spectrum": SoftplusSpectrum()}
    conv = randomize(kind(4, 6, 2, **options))
    torch.testing.assert_close(conv.operator_norm_bound(), exact_norm(conv, size))


@pytest.mark.parametrize(
    ("mode", "size", "ratio"), [("circular", 9, 1 - 1e-12), ("zeros", 200, 0.999)]
)
def test_nearly_attained_by_a_constant_kernel(mode, size, ratio):
    conv = nn.Conv1d(1, 1, 3, padding="same", padding_mode=mode, bias=False)
    nn.init.constant_(conv.weight, 0.5)
    conv = SVDConv1d.from_conv(conv, spectrum=SoftplusSpectrum())
    bound = conv.operator_norm_bound()
    torch.testing.assert_close(bound, torch.tensor(1.5))
    assert ratio * bound <= exact_norm(conv, (size,)) <= bound * (1 + 1e-12)


def test_copied_elements_count():
    # One tap, and an element that the padding copies twice: the norm grows by sqrt(3).
    conv = nn.Conv1d(1, 1, 1, padding=1, padding_mode="replicate", bias=False)
    nn.init.constant_(conv.weight, 1.0)
    conv = SVDConv1d.from_conv(conv)
    torch.testing.assert_close(exact_norm(conv, (1,)), torch.tensor(3.0).sqrt())
    torch.testing.assert_close(conv.operator_norm_bound(1), torch.tensor(3.0).sqrt())
    torch.testing.assert_close(conv.operator_norm_bound(4), torch.tensor(2.0).sqrt())


def test_a_layer_of_norm_one():
    conv = SVDConv2d(3, 4, 3, padding=1, spectrum=FixedSpectrum(1 / 3), bias=False)
    torch.testing.assert_close(conv.operator_norm_bound(method="patches"), torch.tensor(1.0))
    assert conv.operator_norm_bound() < 0.8
    assert 0.3 < exact_norm(conv, (5, 5)) <= 1


def test_bound_is_differentiable():
    conv = SVDConv1d(2, 2, 3)
    conv.operator_norm_bound().backward()
    assert (conv.svd.raw_singular_values.grad != 0).any()


@pytest.mark.parametrize("kind", [SVDConv1d, SVDConv2d, SVDConv3d])
def test_bad_size_is_named(kind):
    assert issubclass(kind, SVDConvolution)
    conv = kind(1, 1, 5)
    for size, message in (
        (4, "input_size is too small .* got 4"),
        ((9, 9, 9, 9), "input_size .* ent"),
    ):
        with pytest.raises(ValueError, match=message):
            conv.operator_norm_bound(size)


def test_fusing_with_batch_norm_factors_the_fused_kernel_or_says_why_not():
    conv = SVDConv2d(2, 3, 3, spectrum=SoftplusSpectrum()).eval()
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 2, 5, 5)
    torch.testing.assert_close(fuse_conv_bn_eval(conv, norm)(x), norm(conv(x)))
    narrow = SVDConv2d(2, 3, 3).eval()
    with pytest.raises(ValueError, match="cannot set weight: the matrix has singular values"):
        fuse_conv_bn_eval(narrow, norm)
    torch.testing.assert_close(fuse_conv_bn_eval(narrow.to_conv(), norm)(x), norm(narrow(x)))
