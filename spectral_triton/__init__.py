"""Weight matrices in the form W = U diag(σ) Vᵀ, kept there while they train."""

from spectral_triton import former_paths as _former_paths  # noqa: F401 (for pickles)
from spectral_triton import init, parametrizations
from spectral_triton.householder import (
    apply_reflectors,
    householder_product,
    reflectors_from_orthogonal,
)
from spectral_triton.layers import (
    SVDMLP,
    SVDConv1d,
    SVDConv2d,
    SVDConv3d,
    SVDConvTranspose1d,
    SVDConvTranspose2d,
    SVDConvTranspose3d,
    SVDLinear,
    SVDResidualBlock,
    SVDTransposedLinear,
)
from spectral_triton.models import (
    ConversionReport,
    RebaseEvery,
    bake,
    convert,
    lipschitz_constant,
    lipschitz_report,
    parameter_groups,
    rebase_,
)
from spectral_triton.recurrence import spectral_recurrence
from spectral_triton.recurrent import (
    SpectralGRU,
    SpectralGRUCell,
    SpectralLSTM,
    SpectralLSTMCell,
    SpectralRNN,
    SpectralRNNCell,
)
from spectral_triton.runtime import backend_info, cached, keep_weights_in_eval, use_backend
from spectral_triton.spectra import (
    FixedSpectrum,
    SigmoidSpectrum,
    SignedSpectrum,
    SoftplusSpectrum,
    Spectrum,
)
from spectral_triton.svd import HouseholderSVD, SVDWeight

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 (SVDMLP is no constant)
    "ConversionReport",
    "FixedSpectrum",
    "HouseholderSVD",
    "RebaseEvery",
    "SVDConv1d",
    "SVDConv2d",
    "SVDConv3d",
    "SVDConvTranspose1d",
    "SVDConvTranspose2d",
    "SVDConvTranspose3d",
    "SVDLinear",
    "SVDMLP",
    "SVDResidualBlock",
    "SVDTransposedLinear",
    "SVDWeight",
    "SigmoidSpectrum",
    "SignedSpectrum",
    "SoftplusSpectrum",
    "SpectralGRU",
    "SpectralGRUCell",
    "SpectralLSTM",
    "SpectralLSTMCell",
    "SpectralRNN",
    "SpectralRNNCell",
    "Spectrum",
    "apply_reflectors",
    "backend_info",
    "bake",
    "cached",
    "convert",
    "householder_product",
    "init",
    "keep_weights_in_eval",
    "lipschitz_constant",
    "lipschitz_report",
    "parameter_groups",
    "parametrizations",
    "rebase_",
    "reflectors_from_orthogonal",
    "spectral_recurrence",
    "use_backend",
]
