"""Transposed convolutions whose flattened kernel keeps its singular values within bounds."""

from __future__ import annotations

from torch import nn

from spectral_triton.layers.convolution_transpose import SVDTransposedConvolution


class SVDConvTranspose1d(SVDTransposedConvolution):
    r"""``torch.nn.ConvTranspose1d`` with bounded singular values of its flattened kernel.

    The kernel of shape (in, out / groups, k), flattened from dimension 1 on, is

    .. math:: K = U \,\mathrm{diag}(s \circ \sigma)\, V^\top

    one such matrix per group, whose transpose maps what a position has to a patch of the output.
    Patches overlap, so the norm of the whole map can be larger: :meth:`operator_norm_bound` says
    how large, and ``operator_bound`` keeps it within a bound. Otherwise as :class:`SVDConv1d`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: As in torch, like all that follow up to ``dtype``.
        stride: Elements between patches of the output.
        padding: Elements of the output that are cut off on both sides.
        output_padding: Elements of the output that are added on one side.
        groups: Number of groups of channels, each with a matrix of its own.
        bias: Whether to add a trained bias.
        dilation: Elements between taps.
        padding_mode: "zeros", the only one that torch has.
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side and group: None for all, an int or a pair.
        spectrum: Map from raw parameter to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of U and V, as for :class:`SVDLinear`.
        base: None, or "haar", see :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.
        operator_bound: None, or what the norm as a linear map may at most be, see
            :class:`SVDConv1d`.

    Attributes:
        svd: The :class:`SVDWeight` that owns the parameters of K.
        bias: Shape ``(out_channels,)``, or None.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> layer = SVDConvTranspose1d(3, 8, 3, stride=2, operator_bound=1.0)
        >>> x = torch.randn(2, 3, 20)
        >>> plain = nn.functional.conv_transpose1d(x, layer.weight, layer.bias, stride=2)
        >>> torch.testing.assert_close(layer(x), plain)
        >>> layer.operator_norm_bound() <= 1
        tensor(True)
    """

    dimensions = 1
    plain_type = nn.ConvTranspose1d


class SVDConvTranspose2d(SVDTransposedConvolution):
    r"""``torch.nn.ConvTranspose2d`` with bounded singular values of its flattened kernel.

    The kernel of shape (in, out / groups, kh, kw), flattened from dimension 1 on, is

    .. math:: K = U \,\mathrm{diag}(s \circ \sigma)\, V^\top

    one such matrix per group, whose transpose maps what a position has to a patch of the output.
    Patches overlap, so the norm of the whole map can be larger: :meth:`operator_norm_bound` says
    how large, and ``operator_bound`` keeps it within a bound. Otherwise as :class:`SVDConv2d`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: As in torch, like all that follow up to ``dtype``.
        stride: Elements between patches of the output.
        padding: Elements of the output that are cut off on both sides.
        output_padding: Elements of the output that are added on one side.
        groups: Number of groups of channels, each with a matrix of its own.
        bias: Whether to add a trained bias.
        dilation: Elements between taps.
        padding_mode: "zeros", the only one that torch has.
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side and group: None for all, an int or a pair.
        spectrum: Map from raw parameter to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of U and V, as for :class:`SVDLinear`.
        base: None, or "haar", see :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.
        operator_bound: None, or what the norm as a linear map may at most be, see
            :class:`SVDConv2d`.

    Attributes:
        svd: The :class:`SVDWeight` that owns the parameters of K.
        bias: Shape ``(out_channels,)``, or None.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> layer = SVDConvTranspose2d(3, 8, 3, stride=2, operator_bound=1.0)
        >>> x = torch.randn(2, 3, 5, 6)
        >>> plain = nn.functional.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
        >>> torch.testing.assert_close(layer(x), plain)
        >>> layer.operator_norm_bound() <= 1
        tensor(True)
    """

    dimensions = 2
    plain_type = nn.ConvTranspose2d


class SVDConvTranspose3d(SVDTransposedConvolution):
    r"""``torch.nn.ConvTranspose3d`` with bounded singular values of its flattened kernel.

    The kernel of shape (in, out / groups, kd, kh, kw), flattened from dimension 1 on, is

    .. math:: K = U \,\mathrm{diag}(s \circ \sigma)\, V^\top

    one such matrix per group, whose transpose maps what a position has to a patch of the output.
    Patches overlap, so the norm of the whole map can be larger: :meth:`operator_norm_bound` says
    how large, and ``operator_bound`` keeps it within a bound. Otherwise as :class:`SVDConv3d`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: As in torch, like all that follow up to ``dtype``.
        stride: Elements between patches of the output.
        padding: Elements of the output that are cut off on both sides.
        output_padding: Elements of the output that are added on one side.
        groups: Number of groups of channels, each with a matrix of its own.
        bias: Whether to add a trained bias.
        dilation: Elements between taps.
        padding_mode: "zeros", the only one that torch has.
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side and group: None for all, an int or a pair.
        spectrum: Map from raw parameter to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of U and V, as for :class:`SVDLinear`.
        base: None, or "haar", see :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.
        operator_bound: None, or what the norm as a linear map may at most be, see
            :class:`SVDConv3d`.

    Attributes:
        svd: The :class:`SVDWeight` that owns the parameters of K.
        bias: Shape ``(out_channels,)``, or None.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> layer = SVDConvTranspose3d(3, 8, 3, stride=2, operator_bound=1.0)
        >>> x = torch.randn(2, 3, 3, 4, 5)
        >>> plain = nn.functional.conv_transpose3d(x, layer.weight, layer.bias, stride=2)
        >>> torch.testing.assert_close(layer(x), plain)
        >>> layer.operator_norm_bound() <= 1
        tensor(True)
    """

    dimensions = 3
    plain_type = nn.ConvTranspose3d
