r"""Maps from an unbounded raw parameter to singular values within chosen bounds.

A spectrum is a small immutable value without state: it may be shared between layers, compared,
hashed and pickled. There is no separate tanh map, because
:math:`2r(\mathrm{sigmoid}(t) - \frac12) = r \tanh(t/2)`: :class:`SigmoidSpectrum` is that map.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral_triton.runtime.validation import (
    check_floating,
    check_number,
    check_positive,
    full_precision,
)


class Spectrum(ABC):
    r"""A map :math:`\hat\sigma \mapsto \sigma` with its inverse and its bounds.

    Derive from it to use a map of one's own; the layers need ``__call__``, ``inverse``,
    ``bounds`` and ``initial``, nothing else. Half-precision input must give float32.

    Attributes:
        trainable: False where no raw parameter is to exist.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class ExponentialSpectrum(Spectrum):
        ...     bounds = (0.0, float("inf"))
        ...     initial = 1.0
        ...     def __call__(self, raw):
        ...         return raw.exp()
        ...     def inverse(self, singular_values):
        ...         return singular_values.log()
        >>> ExponentialSpectrum()(torch.zeros(2))
        tensor([1., 1.])
    """

    trainable = True

    @abstractmethod
    def __call__(self, raw: Tensor) -> Tensor:
        """The singular values of the raw parameter, element by element."""

    @abstractmethod
    def inverse(self, singular_values: Tensor) -> Tensor:
        """The raw parameter of singular values; ValueError where one is not within the bounds."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the singular values; infinite where there is none."""

    @property
    @abstractmethod
    def initial(self) -> float:
        """The singular value that a fresh layer starts with, within the bounds."""


@dataclass(frozen=True, kw_only=True)
class SigmoidSpectrum(Spectrum):
    r"""Keeps singular values within ``margin`` of ``center``.

    .. math:: \sigma = 2r \left(\mathrm{sigmoid}(s\hat\sigma) - \tfrac12\right) + \sigma^*

    with :math:`\sigma^*` = ``center``, r = ``margin`` and s = ``scale``. The slope is at most
    :math:`d\sigma/d\hat\sigma \le s r/2`: with the default scale and margin a step of the
    optimizer moves σ at least 200 times less than σ̂. ``scale = 2 / margin`` gives unit slope at
    the center. The rounded result stays within ``bounds`` for any raw value; it may reach them.

    A product of T such matrices has norm at most :math:`(\sigma^* + r)^T`: with center 1 take a
    margin of about 1/T to bound it by e.

    Args:
        center: The middle of the band: 1 for a norm-keeping map, 0 in a residual block.
        margin: Half the width of the band, positive.
        scale: Factor of the raw parameter, positive.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if an argument is not finite, or ``margin`` or ``scale`` is not positive; in a
            call, if the dtype has no number within the bounds.

    Example:
        >>> spectrum = SigmoidSpectrum(center=1.0, margin=0.1)
        >>> spectrum(torch.tensor([-1e4, 0.0, 1e4]))
        tensor([0.9000, 1.0000, 1.1000])
        >>> spectrum.bounds
        (0.9, 1.1)

    References:
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """

    center: float = 1.0
    margin: float = 0.01
    scale: float = 1.0

    def __post_init__(self) -> None:
        _use_plain_numbers(self)
        check_number("center", self.center)
        check_positive("margin", self.margin)
        check_positive("scale", self.scale)
        lower, upper = self.bounds
        if not lower < self.center < upper:
            raise ValueError(
                f"margin must be large enough to be seen beside center = {self.center}, "
                f"got {self.margin}"
            )
        _keep_single_bounds(self)

    @classmethod
    def around(cls, singular_values: Tensor, factor: float = 1.2) -> SigmoidSpectrum:
        r"""The band around given singular values, with room to move by a factor at both ends.

        From :math:`\min_i \sigma_i / f` to :math:`f \max_i \sigma_i`, with unit slope at the
        center: nothing has to be clipped, and the norm cannot grow beyond f times what it was.

        Args:
            singular_values: σ of a given weight, any shape, not negative.
            factor: f, more than 1.

        Raises:
            TypeError: if ``singular_values`` is not a real floating point tensor, or ``factor`` no
                number.
            ValueError: if there are none, one is negative or not finite, all are zero, or
                ``factor`` is not above 1.

        Example:
            >>> SigmoidSpectrum.around(torch.tensor([0.5, 2.0]), factor=2).bounds
            (0.25, 4.0)
        """
        check_number("factor", factor)
        if factor <= 1:
            raise ValueError(f"factor must be more than 1, got {factor}")
        if not isinstance(singular_values, Tensor) or not singular_values.is_floating_point():
            raise TypeError(
                f"singular_values must be a real floating-point tensor, got {singular_values!r}"
            )
        if singular_values.numel() == 0:
            raise ValueError("singular_values must hold one at least, got none")
        least, most = (float(bound) for bound in singular_values.detach().double().aminmax())
        if not (least >= 0 and 0 < most < math.inf):
            raise ValueError(
                f"singular_values must be finite, none negative and not all zero, got values from "
                f"{least:g} to {most:g}; torch.linalg.svdvals(w) gives those of a matrix"
            )
        lower, upper = least / factor, most * factor
        margin = (upper - lower) / 2
        return cls(center=(lower + upper) / 2, margin=margin, scale=2 / margin)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.center - self.margin, self.center + self.margin

    @property
    def initial(self) -> float:
        return self.center

    def __call__(self, raw: Tensor) -> Tensor:
        raw = _at_least_single("raw", raw)
        # The tanh form of the sigmoid does not cancel near the center.
        # Not one rsub with an alpha, which Inductor drops where it is symbolic (PyTorch 2.13).
        sigma = torch.tanh(raw * (0.5 * self.scale)) * self.margin + self.center
        return _kept_between(sigma, *_bounds_in(self, sigma.dtype))

    def inverse(self, singular_values: Tensor) -> Tensor:
        sigma = _check_within(singular_values, self.bounds)
        lower, upper = self.bounds
        offset = sigma - self.center
        # log((σ - lower) / (upper - σ)) by log1p, from the nearer end: exact near the center, and
        # finite up to the last number before a bound because that difference is exact.
        distance = torch.where(offset < 0, sigma - lower, upper - sigma)
        raw = torch.log1p(2 * offset.abs() / distance).copysign(offset) / self.scale
        return raw.to(full_precision(singular_values.dtype))


@dataclass(frozen=True)
class SignedSpectrum(Spectrum):
    r"""Singular values of either sign, so that training can change the sign of the determinant.

    .. math:: \sigma = \ell \tanh(\hat\sigma / \ell) \in (-\ell, \ell)

    with :math:`\ell` = ``limit``. The slope at 0 is 1. W is singular where a value passes 0, and
    only its norm is bounded.

    Args:
        limit: Bound of the absolute value, positive.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if ``limit`` is not finite or not positive.

    Example:
        >>> SignedSpectrum(limit=2.0)(torch.tensor([-1e4, 0.0, 1e4]))
        tensor([-2.,  0.,  2.])
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        _use_plain_numbers(self)
        check_positive("limit", self.limit)
        _keep_single_bounds(self)

    @property
    def bounds(self) -> tuple[float, float]:
        return -self.limit, self.limit

    @property
    def initial(self) -> float:
        return 0.5 * self.limit

    def __call__(self, raw: Tensor) -> Tensor:
        raw = _at_least_single("raw", raw)
        sigma = self.limit * torch.tanh(raw / self.limit)
        return _kept_between(sigma, *_bounds_in(self, sigma.dtype))

    def inverse(self, singular_values: Tensor) -> Tensor:
        sigma = _check_within(singular_values, self.bounds)
        magnitude = torch.log1p(2 * sigma.abs() / (self.limit - sigma.abs()))
        raw = 0.5 * self.limit * magnitude.copysign(sigma)
        return raw.to(full_precision(singular_values.dtype))


@dataclass(frozen=True)
class SoftplusSpectrum(Spectrum):
    r"""Singular values above ``minimum``, without an upper bound: W stays invertible.

    .. math:: \sigma = \log(1 + e^{\hat\sigma}) + \sigma_{\min}

    Args:
        minimum: Lower bound, not negative.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if ``minimum`` is negative or not finite.

    Example:
        >>> SoftplusSpectrum(minimum=0.5)(torch.tensor([-100.0, 0.0, 100.0]))
        tensor([  0.5000,   1.1931, 100.5000])
    """

    minimum: float = 0.0

    def __post_init__(self) -> None:
        _use_plain_numbers(self)
        check_number("minimum", self.minimum)
        if self.minimum < 0:
            raise ValueError(f"minimum must not be negative, got {self.minimum}")
        _keep_single_bounds(self)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.minimum, math.inf

    @property
    def initial(self) -> float:
        return self.minimum + 1.0

    def __call__(self, raw: Tensor) -> Tensor:
        raw = _at_least_single("raw", raw)
        # logaddexp, because F.softplus is off by 2e-9 above its threshold. Further left it is e^raw
        # to the last digit, and its own second derivative vanishes and becomes NaN.
        left = raw.clamp_max(-40.0).exp()
        right = torch.logaddexp(raw.clamp_min(-40.0), torch.zeros_like(raw))
        sigma = torch.where(raw < -40.0, left, right) + self.minimum
        lower, _ = _bounds_in(self, sigma.dtype)
        return _kept_between(sigma, max(lower, torch.finfo(sigma.dtype).tiny), math.inf)

    def inverse(self, singular_values: Tensor) -> Tensor:
        excess = _check_within(singular_values, self.bounds) - self.minimum
        raw = excess + torch.log(-torch.expm1(-excess))
        return raw.to(full_precision(singular_values.dtype))


@dataclass(frozen=True)
class FixedSpectrum(Spectrum):
    r"""Every singular value equal to ``value`` and no parameter: with 1, W is orthogonal (oRNN).

    Args:
        value: The singular value, positive.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if ``value`` is not finite or not positive.

    Example:
        >>> FixedSpectrum(1.0)(torch.zeros(3))
        tensor([1., 1., 1.])
    """

    value: float = 1.0
    trainable = False

    def __post_init__(self) -> None:
        _use_plain_numbers(self)
        check_positive("value", self.value)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.value, self.value

    @property
    def initial(self) -> float:
        return self.value

    def __call__(self, raw: Tensor) -> Tensor:
        return torch.full_like(_at_least_single("raw", raw), self.value)

    def inverse(self, singular_values: Tensor) -> Tensor:
        check_floating("singular_values", singular_values)
        # The value as this dtype has it: 0.1 in float32 is not 0.1.
        other = singular_values[singular_values != self.value]
        if other.numel():
            raise ValueError(f"singular values must equal {self.value}, got {other[0].item()}")
        return torch.zeros_like(singular_values, dtype=full_precision(singular_values.dtype))


def _use_plain_numbers(spectrum: Any) -> None:
    """Python's numbers in the place of NumPy's, which have another repr and no safe pickle."""
    for field in fields(spectrum):
        value = getattr(spectrum, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(spectrum, field.name, value.item())


def _at_least_single(name: str, x: Tensor) -> Tensor:
    check_floating(name, x)
    return x.to(full_precision(x.dtype))


def _check_within(singular_values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The values in float64, once all are known to lie strictly between the bounds."""
    check_floating("singular_values", singular_values)
    sigma = singular_values.double()
    outside = sigma[~((sigma > bounds[0]) & (sigma < bounds[1]) & sigma.isfinite())]
    if outside.numel():
        raise ValueError(
            f"singular values must lie strictly between {bounds[0]} and {bounds[1]}, "
            f"got {outside[0].item()}"
        )
    return sigma


def _keep_single_bounds(spectrum: Spectrum) -> None:
    """Stores the outermost float32 numbers within the bounds, which rounding could step over.

    Once, on construction: torch.compile cannot trace this arithmetic of a symbolic float.
    """
    lower, upper = spectrum.bounds
    object.__setattr__(spectrum, "_single_bounds", (-_round_down(-lower), _round_down(upper)))


def _bounds_in(spectrum: Spectrum, dtype: torch.dtype) -> tuple[float, float]:
    if dtype == torch.float64:
        return spectrum.bounds
    lower, upper = spectrum._single_bounds  # type: ignore[attr-defined]
    if lower > upper:
        raise ValueError(
            f"no number of {dtype} lies within the bounds {spectrum.bounds}: use float64, or a "
            "wider margin"
        )
    return lower, upper


def _kept_between(sigma: Tensor, lower: float, upper: float) -> Tensor:
    """σ, in place, moved onto a bound that rounding stepped over; its derivative stays."""
    with torch.no_grad():
        # clamp_ by the name that vmap has a rule for.
        return torch.nn.functional.hardtanh_(sigma, lower, upper)


def _round_down(value: float) -> float:
    """The largest float32 not above ``value``."""
    if not math.isfinite(value):
        return value
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.floor(math.ldexp(mantissa, 24)), exponent - 24)
