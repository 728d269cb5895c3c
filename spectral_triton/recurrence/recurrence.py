r"""The recurrence of an RNN whose transition matrix is in SVD form, all steps in one call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from spectral_triton.recurrence import onnx_nodes
from spectral_triton.recurrence.arguments import Arguments
from spectral_triton.recurrence.folded_weight import fold, folds
from spectral_triton.recurrence.nonlinearity import NONLINEARITIES, activation, check_nonlinearity
from spectral_triton.recurrence.op import recurrence
from spectral_triton.runtime.backend import recurrence_form
from spectral_triton.runtime.cached import is_cached
from spectral_triton.runtime.validation import (
    check_choice,
    check_floating,
    full_precision,
    without_autocast,
)
from spectral_triton.svd.cached_svd import CachedSVD
from spectral_triton.svd.constant_svd import ConstantSVD
from spectral_triton.svd.evaluated_svd import EvaluatedSVD
from spectral_triton.svd.operator import HouseholderSVD


def spectral_recurrence(
    x: Tensor,
    h0: Tensor | None,
    factors: HouseholderSVD,
    *,
    nonlinearity: str = "tanh",
    negative_slope: float = 0.01,
    bias: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    r"""Runs a whole sequence through a recurrence with a factored transition matrix.

    .. math:: h_t = \varphi(W h_{t-1} + x_t), \qquad W = U\,\mathrm{diag}(\sigma)\,V^\top

    The factors are folded once into :math:`W = \mathrm{diag}(\sigma) - P Q^\top`, with P and Q of
    shape (n, k_u + k_v), or into W itself where :func:`folds` finds that cheaper. Forward and
    backward are loops over preallocated buffers, the gradients of the factors one product over many
    steps. Memory kept beyond the output: T B (k_u + k_v) folded, n² dense. Half-precision input is
    computed in float32, also under autocast. For 1-Lipschitz φ the gradient grows by a factor of
    at most max σ in each step.

    Args:
        x: Input of each step with projection and biases in it, shape ``(T, B, n)``.
        h0: Initial state, shape ``(B, n)``; None is zero.
        factors: The transition matrix, square, without batch dimensions.
        nonlinearity: "tanh", "relu", "leaky_relu", "identity" or "modrelu".
        negative_slope: Slope of leaky_relu below zero, at least 0.
        bias: For modrelu only, shape ``(n,)``: sign(z) max(\|z\| + bias, 0).
        reverse: Runs from the last step to the first.

    Returns:
        All states :math:`h_t`, shape ``(T, B, n)``, in the dtype of ``x``.

    Raises:
        TypeError: if a tensor is not real floating-point, or ``factors`` no HouseholderSVD.
        ValueError: if shapes do not fit or an option is unknown.

    Example:
        >>> factors = HouseholderSVD(torch.randn(2, 8), torch.ones(8), torch.randn(2, 8))
        >>> h = spectral_recurrence(torch.randn(5, 3, 8), None, factors, nonlinearity="relu")
        >>> h.shape
        torch.Size([5, 3, 8])

    References:
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """
    check_floating("x", x)
    if not isinstance(factors, HouseholderSVD):
        raise TypeError(
            f"factors must be a HouseholderSVD, got {type(factors).__name__}; "
            "HouseholderSVD.from_dense makes one of a dense W"
        )
    n = factors.shape[-1]
    if x.dim() != 3 or x.shape[-1] != n:
        raise ValueError(f"x must have shape (T, B, n) with n = {n}, got {tuple(x.shape)}")
    check_nonlinearity(nonlinearity, negative_slope)
    options = (nonlinearity, negative_slope, bias, reverse, None)
    return run(x, h0, factors, *options)[0].to(x.dtype)


def run(
    x: Tensor,
    h0: Tensor | None,
    factors: HouseholderSVD,
    nonlinearity: str,
    negative_slope: float,
    bias: Tensor | None,
    reverse: bool,
    batch_sizes: Tensor | None,
    weight_ih: Tensor | None = None,
    bias_ih: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All states and the last ones, for (T, B, n) or the rows of a PackedSequence, unrounded.

    With ``weight_ih`` x is (T, B, features), or rows of features, and what enters a step is
    weight_ih x_t + bias_ih. ``lengths``, of the sequences of a padded batch, are for ONNX alone.
    """
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    if len(factors.shape) != 2 or factors.shape[0] != factors.shape[1]:
        raise ValueError(f"factors must be one square matrix, got shape {tuple(factors.shape)}")
    n = factors.shape[-1]
    size = x.shape[1] if batch_sizes is None else int(batch_sizes[0]) if len(batch_sizes) else 0
    if h0 is None:
        h0 = x.new_zeros(size, n)
    check_floating("h0", h0)
    if tuple(h0.shape) != (size, n):
        raise ValueError(f"h0 must have shape {(size, n)}, got {tuple(h0.shape)}")
    if (bias is not None) != (nonlinearity == "modrelu"):
        raise ValueError(f"bias belongs to modrelu and only there, got {nonlinearity!r}")
    if bias is not None:
        check_floating("bias", bias)
        if tuple(bias.shape) != (n,):
            raise ValueError(f"bias must have shape {(n,)}, got {tuple(bias.shape)}")
    with without_autocast(x.device.type):
        dtype = full_precision(x.dtype, factors.dtype)
        weight_ih, bias_ih, bias = (
            None if a is None else a.to(dtype) for a in (weight_ih, bias_ih, bias)
        )
        r = factors.left.shape[-2] + factors.right.shape[-2]
        x, h0 = x.to(dtype), h0.to(dtype)
        constant = isinstance(factors, ConstantSVD)
        if isinstance(factors, EvaluatedSVD):
            kept = factors.is_kept and not folds(n, r)
        else:
            kept = isinstance(factors, CachedSVD) and is_cached(*factors.sources)
        # Of a length that is not known yet it may not be asked.
        one_step = isinstance(x.shape[0], int) and x.shape[0] == 1 and lengths is None
        if (kept or constant) and batch_sizes is None and one_step:
            # For one step a loop over buffers is dearer to set up than to run.
            z = x[0] if weight_ih is None else linear(x[0], weight_ih, bias_ih)
            z = torch.addmm(z, h0, factors.to_dense().to(dtype).mT)
            h = activation(z, nonlinearity, negative_slope, bias)
            return h.unsqueeze(0), h.clone()
        if constant:
            w = factors.to_dense().to(dtype)
            weights = weight_ih, bias_ih, w, bias
            slope = float(negative_slope)
            return onnx_nodes.rnn(x, h0, *weights, nonlinearity, slope, reverse, lengths)
        form = recurrence_form(x, n, r)
        folded = form == "folded" or (form is None and folds(n, r))
        if folded and not factors.has_base:
            scale, p, q = (a.to(dtype) for a in fold(factors))
        else:
            scale, p, q = None, factors.to_dense().to(dtype), None
        options = (batch_sizes, nonlinearity, float(negative_slope), reverse)
        return recurrence(Arguments(x, weight_ih, bias_ih, h0, scale, p, q, bias, *options))
