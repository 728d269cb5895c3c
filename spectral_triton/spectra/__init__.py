"""Maps from a raw parameter to singular values that stay within bounds, σ = f(σ̂).

Each has an inverse, and names itself in a state dict.
"""

from spectral_triton.spectra.spectrum import (
    FixedSpectrum,
    SigmoidSpectrum,
    SignedSpectrum,
    SoftplusSpectrum,
    Spectrum,
)

__all__ = ["FixedSpectrum", "SigmoidSpectrum", "SignedSpectrum", "SoftplusSpectrum", "Spectrum"]
