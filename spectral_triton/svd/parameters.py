"""The parameters of the SVD form for given singular values, or for a given matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_triton.runtime.sharding import gathered
from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.spectra.stacked import StackedSpectrum
from spectral_triton.svd.bounds import OutOfBoundsError, into_bounds
from spectral_triton.svd.factorization import TooFewReflectorsError, factor_dense


def spectrum_values(
    spectrum: Spectrum | StackedSpectrum, raw: Tensor | None, signs: Tensor
) -> Tensor:
    """σ of the raw values, or of a spectrum without any in the shape of ``signs``."""
    return spectrum(torch.zeros_like(signs) if raw is None else gathered(raw))


class Parameters(NamedTuple):
    """What a matrix is made of, by the names of the state dict; None for what it has not."""

    left: Tensor
    raw_singular_values: Tensor | None
    right: Tensor
    signs: Tensor
    left_base: Tensor | None
    right_base: Tensor | None


@torch.no_grad()
def parameters_from_dense(
    w: Tensor,
    spectrum: Spectrum | StackedSpectrum,
    num_reflectors: tuple[int, int],
    out_of_bounds: str = "raise",
    base: str = "if needed",
    name: str = "the matrix",
) -> Parameters:
    """Those of a dense matrix, or of stacked ones, which have bases together or not at all."""
    if isinstance(spectrum, StackedSpectrum):

        def of_one(index: int, own: Spectrum, base: str) -> Parameters:
            return parameters_from_dense(w[index], own, num_reflectors, out_of_bounds, base, name)

        try:
            if base == "always":
                raise TooFewReflectorsError
            parts = _of_each(spectrum, partial(of_one, base="never"))
        except TooFewReflectorsError:
            if base == "never":
                raise
            parts = _of_each(spectrum, partial(of_one, base="always"))
        lefts, raws, rights, all_signs, *bases = parts
        whole = (None if side[0] is None else torch.stack(side) for side in bases)
        left_base, right_base = whole
        return Parameters(
            torch.stack(lefts),
            _stacked(raws, all_signs, spectrum),
            torch.stack(rights),
            torch.stack(all_signs),
            left_base,
            right_base,
        )
    lower, upper = spectrum.bounds
    found = factor_dense(
        w, num_reflectors, bounds=(lower, upper), out_of_bounds=out_of_bounds, base=base, name=name
    )
    left, sigma, right, signs, left_base, right_base = found
    raw = _raw(sigma, spectrum, out_of_bounds)
    return Parameters(left, raw, right, signs, left_base, right_base)


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
        # A band narrower than that has a center still.
        inset = min(inset, (upper - lower) / 4)
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
        raws, new_signs = _of_each(
            spectrum, lambda i, own: parameters_from_sigma(sigma[i], signs[i], own, out_of_bounds)
        )
        return _stacked(raws, new_signs, spectrum), torch.stack(new_signs)
    # Where σ stands on a bound that both spectra have, each may round it to another side.
    slack = 2 * torch.finfo(sigma.dtype).eps * sigma.abs().amax(-1, keepdim=True)
    sigma, signs = into_bounds(sigma, signs, spectrum.bounds, out_of_bounds, slack)
    return _raw(sigma, spectrum, out_of_bounds), signs


def _stacked(
    raws: Sequence[Tensor | None], signs: Sequence[Tensor], spectrum: StackedSpectrum
) -> Tensor | None:
    # Rows without effect, see StackedSpectrum.
    rows = [torch.zeros_like(s) if row is None else row for row, s in zip(raws, signs, strict=True)]
    return torch.stack(rows) if spectrum.trainable else None


def _of_each(
    stacked: StackedSpectrum, parameters: Callable[[int, Spectrum], tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """What ``parameters`` gives for each matrix, by kind; its errors name the matrix."""
    parts = []
    for index, spectrum in enumerate(stacked):
        try:
            parts.append(parameters(index, spectrum))
        except OutOfBoundsError as error:
            raise error.of(f"matrix {index}") from error
        except ValueError as error:
            raise type(error)(f"matrix {index}: {error}") from error
    return list(zip(*parts, strict=True))
