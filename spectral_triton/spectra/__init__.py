"""Maps from a raw parameter to singular values that stay within bounds, σ = f(σ̂).

Each has an inverse, and names itself in a state dict.
"""

import torch

from spectral_triton.spectra.spectrum import (
    FixedSpectrum,
    SigmoidSpectrum,
    SignedSpectrum,
    SoftplusSpectrum,
    Spectrum,
)
from spectral_triton.spectra.stacked import StackedSpectrum

__all__ = ["FixedSpectrum", "SigmoidSpectrum", "SignedSpectrum", "SoftplusSpectrum", "Spectrum"]

_KINDS = FixedSpectrum, SigmoidSpectrum, SignedSpectrum, SoftplusSpectrum
# Values of plain numbers, which checkpoints hold as hyperparameters: torch.load reads no classes
# but those that are named to it. Before there were folders they stood in spectral_triton.spectrum.
torch.serialization.add_safe_globals([*_KINDS, StackedSpectrum])
torch.serialization.add_safe_globals(
    [(kind, f"spectral_triton.spectrum.{kind.__name__}") for kind in _KINDS]
)
