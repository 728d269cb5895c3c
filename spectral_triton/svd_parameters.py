"""The parameters of the SVD form for given singular values, or for a given matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_triton.factorization import factor_dense, into_bounds
from spectral_triton.sharding import gathered
from spectral_triton.spectrum import Spectrum
from spectral_triton.stacked_spectrum import StackedSpectrum


def spectrum_values(
    spectrum: Spectrum | StackedSpectrum, raw: Tensor | None, signs: Tensor
) -> Tensor:
    """σ of the raw values, or of a spectrum without any in the shape of ``signs``."""
    return spectrum(torch.zeros_like(signs) if raw is None else gathered(raw))


@torch.no_grad()
def parameters_from_dense(
    w: Tensor,
    spectrum: Spectrum | StackedSpectrum,
    num_reflectors: tuple[int, int],
    out_of_bounds: str = "raise",
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """left, raw singular values (None where there are none), right and signs of dense matrices."""
    if isinstance(spectrum, StackedSpectrum):
        return _parameters_of_each(w, spectrum, num_reflectors, out_of_bounds)
    lower, upper = spectrum.bounds
    left, sigma, right, signs = factor_dense(
        w, num_reflectors, bounds=(lower, upper), out_of_bounds=out_of_bounds
    )
    return left, _raw(sigma, spectrum, out_of_bounds), right, signs


def _raw(sigma: Tensor, spectrum: Spectrum, out_of_bounds: str) -> Tensor | None:
    """The raw values of singular values within the bounds, None where there are none."""
    if not spectrum.trainable:
        return None
    lower, upper = spectrum.bounds
    # A bound itself has no raw value, and next to it the spectrum has no slope: clipped values
    # stay trainable, values given as they are move by no more than rounding.
    finite = [abs(bound) for bound in (lower, upper) if math.isfinite(bound)]
    if out_of_bounds == "clip":
        inset = 1e-3 * (upper - lower if len(finite) == 2 else max([1.0, *finite]))
    else:
        inset = torch.finfo(sigma.dtype).eps * max(finite, default=0.0)
    inside = sigma.double().clamp(lower + inset, upper - inset)
    return spectrum.inverse(inside).to(sigma.dtype)


@torch.no_grad()
def parameters_from_sigma(
    sigma: Tensor,
    signs: Tensor,
    spectrum: Spectrum | StackedSpectrum,
    out_of_bounds: str = "raise",
) -> tuple[Tensor | None, Tensor]:
    """raw singular values (None where there are none) and signs of given singular values."""
    if isinstance(spectrum, StackedSpectrum):
        rows = zip(sigma, signs, spectrum, strict=True)
        pairs = [parameters_from_sigma(*row, out_of_bounds) for row in rows]
        raws, new_signs = zip(*pairs, strict=True)
        return _stacked(raws, new_signs, spectrum), torch.stack(new_signs)
    slack = 2 * torch.finfo(sigma.dtype).eps * sigma.abs().amax(-1, keepdim=True)
    sigma, signs = into_bounds(sigma, signs, spectrum.bounds, out_of_bounds, slack)
    return _raw(sigma, spectrum, out_of_bounds), signs


def _stacked(
    raws: Sequence[Tensor | None], signs: Sequence[Tensor], spectrum: StackedSpectrum
) -> Tensor | None:
    # Rows without effect, see StackedSpectrum.
    rows = [torch.zeros_like(s) if row is None else row for row, s in zip(raws, signs, strict=True)]
    return torch.stack(rows) if spectrum.trainable else None


def _parameters_of_each(
    w: Tensor, stacked: StackedSpectrum, num_reflectors: tuple[int, int], out_of_bounds: str
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    parts = []
    for index, (spectrum, block) in enumerate(zip(stacked, w, strict=True)):
        try:
            parts.append(parameters_from_dense(block, spectrum, num_reflectors, out_of_bounds))
        except ValueError as error:
            raise type(error)(f"matrix {index}: {error}") from error
    left, raws, right, signs = zip(*parts, strict=True)
    raw = _stacked(raws, signs, stacked)
    return torch.stack(left), raw, torch.stack(right), torch.stack(signs)
