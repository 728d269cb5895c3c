"""Norms of convolutions in SVD form: exact where they are known, and what is refused."""

import pytest
import torch

from spectral_triton import SoftplusSpectrum, SVDConv1d, SVDConv2d, cached


def dense(conv, size):
    count = conv.in_channels * torch.Size(size).numel()
    with torch.no_grad():
        return conv(torch.eye(count).reshape(count, conv.in_channels, *size)).flatten(1).mT


def circular(**options):
    return SVDConv2d(
        2,
        3,
        3,
        padding=1,
        padding_mode="circular",
        bias=False,
        spectrum=SoftplusSpectrum(),
        **options,
    )


def test_circular_padding_is_exact_where_the_size_is_given():
    conv = circular()
    sigma = torch.linalg.svdvals(dense(conv, (5, 4)))
    found = conv.operator_singular_values((5, 4)).sort(descending=True).values
    torch.testing.assert_close(found, sigma[: len(found)], rtol=1e-9, atol=1e-12)
    bound = conv.operator_norm_bound((5, 4))
    assert sigma[0] <= bound <= sigma[0] * 1.00001
    assert bound <= conv.operator_norm_bound() <= conv.operator_norm_bound(method="patches")
    bound.backward()
    assert conv.svd.left.grad.norm() > 0


def test_it_is_formed_once_inside_cached(monkeypatch):
    from spectral_triton.layers import convolution_norms

    calls = []
    original = convolution_norms.norm_bound
    monkeypatch.setattr(convolution_norms, "norm_bound", lambda *a: calls.append(1) or original(*a))
    conv = circular()
    with torch.no_grad(), cached():
        first = conv.operator_norm_bound()
        assert torch.equal(first, conv.operator_norm_bound())
        assert len(calls) == 1
        conv.operator_norm_bound((4, 4))
        assert len(calls) == 2
        conv.svd.raw_singular_values.add_(1.0)
        assert conv.operator_norm_bound() > first
        assert len(calls) == 3


@pytest.mark.parametrize(
    "conv",
    [
        SVDConv1d(2, 2, 3, padding=1),
        SVDConv1d(2, 2, 3, padding_mode="circular"),
        SVDConv1d(2, 2, 3, 2, padding=1, padding_mode="circular"),
    ],
)
def test_singular_values_that_are_not_known_are_refused(conv):
    with pytest.raises(ValueError, match="circular padding that keeps the size and stride 1"):
        conv.operator_singular_values(8)


def test_bad_arguments_are_named():
    conv = circular()
    with pytest.raises(ValueError, match="method must be one of 'fourier', 'patches'"):
        conv.operator_norm_bound(method="power")
    with pytest.raises(ValueError, match="input_size must have 2 entries"):
        conv.operator_singular_values((3,))
    with pytest.raises(ValueError, match="input_size"):
        conv.operator_singular_values(0)
