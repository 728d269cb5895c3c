"""Singular values of a given matrix, and bounds that have no room for them."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from spectral_triton.runtime.caller import stacklevel_of_caller
from spectral_triton.runtime.validation import check_bounds

NOTICEABLE = 1e-3
"""Relative change of a matrix that is more than rounding."""


class OutOfBoundsError(ValueError):
    """A dense matrix has singular values that the bounds exclude.

    Args:
        problem: Which, and a spectrum with room for them.
        advice: What else to do, where that can be asked for.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return self.problem + self.advice

    def of(self, name: str) -> OutOfBoundsError:
        """The same error with a name in front."""
        return OutOfBoundsError(f"{name}: {self.problem}", self.advice)


class WeightChangedWarning(UserWarning):
    """Singular values of a given weight were moved into bounds, which changed it."""


def into_bounds(
    sigma: Tensor,
    signs: Tensor,
    bounds: tuple[float, float],
    out_of_bounds: str,
    slack: Tensor,
    name: str = "the matrix",
) -> tuple[Tensor, Tensor]:
    """σ and signs of the same matrix with σ in bounds; what is out by more than slack is an error.

    With "clip" none is out by too much, and a warning says by how much the matrix called ``name``
    changes. Where -σ is nearer to the bounds the sign changes.
    """
    check_bounds(bounds)
    flipped = _distance(-sigma, bounds) < _distance(sigma, bounds)
    signed = torch.where(flipped, -sigma, sigma)
    outside = _distance(signed, bounds)
    if (outside > slack).any():
        change = _relative(outside, sigma)
        least, most = sigma.abs().min().item(), sigma.abs().max().item()
        problem = (
            f"{name} has singular values from {least:.9g} to {most:.9g}, outside the bounds "
            f"{tuple(bounds)}; {fitting_spectrum(least, most)} would hold them"
        )
        if out_of_bounds == "raise":
            moves = f", out_of_bounds='clip' moves them inside, which changes it by {change:.1%}"
            raise OutOfBoundsError(problem, moves)
        if change > NOTICEABLE:
            warnings.warn(
                f"{problem}. They were moved inside, which changed it by {change:.1%}",
                WeightChangedWarning,
                stacklevel=stacklevel_of_caller(),
            )
    return signed.clamp(*bounds), torch.where(flipped, -signs, signs)


def fitting_spectrum(least: float, most: float) -> str:
    """The call of a spectrum with room for singular values from ``least`` to ``most``."""
    if most == 0:
        return "SignedSpectrum()"
    # Written with three digits the lower end has to keep its distance, too.
    lower, upper = least / 1.2 if least > 0.05 * most else 0.0, most * 1.2
    center, margin = (f"{number:.3g}" for number in ((upper + lower) / 2, (upper - lower) / 2))
    if lower == 0.0:
        margin = center
    return f"SigmoidSpectrum(center={center}, margin={margin})"


def _relative(change: Tensor, sigma: Tensor) -> float:
    size = torch.linalg.vector_norm(sigma).item()
    moved = torch.linalg.vector_norm(change).item()
    return moved / size if size else math.inf


def _distance(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (values - values.clamp(*bounds)).abs()
