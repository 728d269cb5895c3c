r"""A spectrum of its own for each of several stacked matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_triton.runtime.validation import check_positive
from spectral_triton.spectra.spectrum import SigmoidSpectrum, Spectrum


@dataclass(frozen=True)
class StackedSpectrum:
    r"""One spectrum per matrix: row i of the raw parameter goes through the i-th.

    It is not a :class:`Spectrum` itself, having no single pair of bounds and no single start. Where
    only some of the spectra have a parameter, the rows of the others exist and are without effect.

    Args:
        spectra: The spectra in the order of the matrices.

    Raises:
        TypeError: if one of them is not a :class:`Spectrum`.

    Example:
        >>> from spectral_triton.spectra import FixedSpectrum, SigmoidSpectrum
        >>> StackedSpectrum((FixedSpectrum(2.0), SigmoidSpectrum()))(torch.zeros(2, 3))
        tensor([[2., 2., 2.],
                [1., 1., 1.]])
    """

    spectra: tuple[Spectrum, ...]

    def __post_init__(self) -> None:
        for index, spectrum in enumerate(self.spectra):
            if not isinstance(spectrum, Spectrum):
                raise TypeError(f"spectrum {index} must be a Spectrum, got {spectrum!r}")

    def __iter__(self) -> Iterator[Spectrum]:
        return iter(self.spectra)

    def __len__(self) -> int:
        return len(self.spectra)

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self.spectra))}]"

    @property
    def trainable(self) -> bool:
        """Whether any of them has a parameter."""
        return any(spectrum.trainable for spectrum in self.spectra)

    def __call__(self, raw: Tensor) -> Tensor:
        """Singular values, shape (matrices, p), of raw values of that shape."""
        rows = zip(self.spectra, raw.unbind(-2), strict=True)
        return torch.stack([spectrum(row) for spectrum, row in rows], -2)


def resolve_spectrum(
    spectrum: Spectrum | Sequence[Spectrum] | None,
    num_blocks: int | None = None,
    margin: float | None = None,
) -> Spectrum | StackedSpectrum:
    """The default for None, or that of a margin; TypeError unless a spectrum or one per block."""
    if margin is not None:
        check_margin(spectrum, margin)
        return SigmoidSpectrum(margin=margin)
    if spectrum is None:
        return SigmoidSpectrum()
    if num_blocks is not None and isinstance(spectrum, Sequence | StackedSpectrum):
        stacked = StackedSpectrum(tuple(spectrum))
        if len(stacked) != num_blocks:
            raise ValueError(
                f"spectrum must be one Spectrum or {num_blocks}, one per matrix, got {len(stacked)}"
            )
        return stacked
    if not isinstance(spectrum, Spectrum):
        raise TypeError(
            "spectrum must be a Spectrum such as SigmoidSpectrum(center=1.0, margin=0.01), "
            f"got {spectrum!r}{_hint(spectrum)}"
        )
    return spectrum


def _hint(given: object) -> str:
    """What else might have been meant."""
    if isinstance(given, int | float):
        return f"; margin={given} is a band of that half-width around 1"
    if isinstance(given, Sequence | StackedSpectrum) and not isinstance(given, str):
        return "; several are for several matrices, such as those of gates or groups"
    if callable(given) and not isinstance(given, type):
        return "; a function of name and σ is for convert"
    return ""


def check_margin(spectrum: object, margin: object) -> None:
    """Raises unless a margin is a positive number, and given in the place of a spectrum."""
    if spectrum is not None:
        raise ValueError(
            f"give margin or spectrum, not both: got margin={margin!r}, spectrum={spectrum!r}"
        )
    check_positive("margin", margin)
