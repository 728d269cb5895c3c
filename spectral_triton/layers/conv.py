r"""Convolutions whose flattened kernel keeps its singular values within bounds."""

from __future__ import annotations

from torch import nn

from spectral_triton.layers.convolution import SVDConvolution


class SVDConv1d(SVDConvolution):
    r"""``torch.nn.Conv1d`` with bounded singular values of its flattened kernel.

    The kernel of shape (out, in / groups, k), flattened from dimension 1 on, is

    .. math:: K = U \,\mathrm{diag}(s \circ \sigma)\, V^\top

    one such matrix per group. It maps a patch of the input to the output there; that is what σ
    bounds. The convolution as a whole can have a larger norm, since patches overlap:
    :meth:`operator_norm_bound` says how large; a spectrum with that many times smaller bounds makes
    up for it. K is formed at each call, at
    :math:`4 p (m k_u + n k_v)` operations for m × n per group, p = min(m, n). All arithmetic is in
    float32 at least, whatever the dtype of x, of the module, or of autocast; the result has the
    dtype of x. Loading a state dict with a dense ``weight``, as torch saves it, factors it, and
    raises where a singular value is out of bounds.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: As in torch, like all that follow up to ``dtype``.
        stride: Elements between patches.
        padding: Zeros, or copies, appended on both sides; "valid" or "same".
        dilation: Elements between taps.
        groups: Number of groups of channels, each with a matrix of its own.
        bias: Whether to add a trained bias.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side and group: None for all, an int or a pair.
        spectrum: Map from raw parameter to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of U and V, as for :class:`SVDLinear`.
        base: None, or "haar", see :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

        operator_bound: None, or what the norm of the convolution as a linear map does not exceed,
            for inputs of any size, whatever the optimizer does: the kernel is K min(1, bound / B),
            B its certified :meth:`operator_norm_bound`. A kernel within the bound stays as it is.
            Costs B at each call, in :func:`cached` once.

    Attributes:
        svd: The :class:`SVDWeight` that owns the parameters of K.
        bias: Shape ``(out_channels,)``, or None.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> layer = SVDConv1d(3, 8, 3, padding="same")
        >>> x = torch.randn(2, 3, 20)
        >>> plain = nn.functional.conv1d(x, layer.weight, layer.bias, padding="same")
        >>> torch.testing.assert_close(layer(x), plain)
        >>> layer.operator_norm_bound() < 1.01 * 3**0.5 + 1e-4
        tensor(True)
    """

    dimensions = 1
    plain_type = nn.Conv1d


class SVDConv2d(SVDConvolution):
    r"""``torch.nn.Conv2d`` with bounded singular values of its flattened kernel.

    The kernel of shape (out, in / groups, kh, kw), flattened from dimension 1 on, is

    .. math:: K = U \,\mathrm{diag}(s \circ \sigma)\, V^\top

    one such matrix per group. It maps a patch of the input to the output there; that is what σ
    bounds. The convolution as a whole can have a larger norm, since patches overlap:
    :meth:`operator_norm_bound` says how large; a spectrum with that many times smaller bounds makes
    up for it. K is formed at each call, at
    :math:`4 p (m k_u + n k_v)` operations for m × n per group, p = min(m, n). All arithmetic is in
    float32 at least, whatever the dtype of x, of the module, or of autocast; the result has the
    dtype of x. Loading a state dict with a dense ``weight``, as torch saves it, factors it, and
    raises where a singular value is out of bounds.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: As in torch, like all that follow up to ``dtype``.
        stride: Elements between patches.
        padding: Zeros, or copies, appended on both sides; "valid" or "same".
        dilation: Elements between taps.
        groups: Number of groups of channels, each with a matrix of its own.
        bias: Whether to add a trained bias.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side and group: None for all, an int or a pair.
        spectrum: Map from raw parameter to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of U and V, as for :class:`SVDLinear`.
        base: None, or "haar", see :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

        operator_bound: None, or what the norm of the convolution as a linear map does not exceed,
            for inputs of any size, whatever the optimizer does: the kernel is K min(1, bound / B),
            B its certified :meth:`operator_norm_bound`. A kernel within the bound stays as it is.
            Costs B at each call, in :func:`cached` once.

    Attributes:
        svd: The :class:`SVDWeight` that owns the parameters of K.
        bias: Shape ``(out_channels,)``, or None.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> layer = SVDConv2d(3, 8, 3, padding="same")
        >>> x = torch.randn(2, 3, 9, 7)
        >>> plain = nn.functional.conv2d(x, layer.weight, layer.bias, padding="same")
        >>> torch.testing.assert_close(layer(x), plain)
        >>> layer.operator_norm_bound() < 1.01 * 3 + 1e-4
        tensor(True)
    """

    dimensions = 2
    plain_type = nn.Conv2d


class SVDConv3d(SVDConvolution):
    r"""``torch.nn.Conv3d`` with bounded singular values of its flattened kernel.

    The kernel of shape (out, in / groups, kd, kh, kw), flattened from dimension 1 on, is

    .. math:: K = U \,\mathrm{diag}(s \circ \sigma)\, V^\top

    one such matrix per group. It maps a patch of the input to the output there; that is what σ
    bounds. The convolution as a whole can have a larger norm, since patches overlap:
    :meth:`operator_norm_bound` says how large; a spectrum with that many times smaller bounds makes
    up for it. K is formed at each call, at
    :math:`4 p (m k_u + n k_v)` operations for m × n per group, p = min(m, n). All arithmetic is in
    float32 at least, whatever the dtype of x, of the module, or of autocast; the result has the
    dtype of x. Loading a state dict with a dense ``weight``, as torch saves it, factors it, and
    raises where a singular value is out of bounds.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: As in torch, like all that follow up to ``dtype``.
        stride: Elements between patches.
        padding: Zeros, or copies, appended on both sides; "valid" or "same".
        dilation: Elements between taps.
        groups: Number of groups of channels, each with a matrix of its own.
        bias: Whether to add a trained bias.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: Where the parameters live.
        dtype: Their floating dtype.
        num_reflectors: Reflectors per side and group: None for all, an int or a pair.
        spectrum: Map from raw parameter to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        init: Start of U and V, as for :class:`SVDLinear`.
        base: None, or "haar", see :class:`SVDWeight`.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

        operator_bound: None, or what the norm of the convolution as a linear map does not exceed,
            for inputs of any size, whatever the optimizer does: the kernel is K min(1, bound / B),
            B its certified :meth:`operator_norm_bound`. A kernel within the bound stays as it is.
            Costs B at each call, in :func:`cached` once.

    Attributes:
        svd: The :class:`SVDWeight` that owns the parameters of K.
        bias: Shape ``(out_channels,)``, or None.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> layer = SVDConv3d(3, 8, 3, padding="same")
        >>> x = torch.randn(2, 3, 5, 4, 6)
        >>> plain = nn.functional.conv3d(x, layer.weight, layer.bias, padding="same")
        >>> torch.testing.assert_close(layer(x), plain)
        >>> layer.operator_norm_bound() < 1.01 * 27**0.5 + 1e-4
        tensor(True)
    """

    dimensions = 3
    plain_type = nn.Conv3d
