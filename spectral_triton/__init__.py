"""Weight matrices in the form W = U diag(σ) Vᵀ, kept there while they train."""

from spectral_triton import init, parametrizations
from spectral_triton.backend import backend_info, use_backend
from spectral_triton.bake import bake
from spectral_triton.cached import cached
from spectral_triton.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.conversion_report import ConversionReport
from spectral_triton.convert import convert
from spectral_triton.gru import SpectralGRU
from spectral_triton.gru_cell import SpectralGRUCell
from spectral_triton.householder import (
    apply_reflectors,
    householder_product,
    reflectors_from_orthogonal,
)
from spectral_triton.linear import SVDLinear
from spectral_triton.lipschitz import lipschitz_constant
from spectral_triton.lstm import SpectralLSTM
from spectral_triton.lstm_cell import SpectralLSTMCell
from spectral_triton.mlp import SVDMLP
from spectral_triton.parameter_groups import parameter_groups
from spectral_triton.recurrence import spectral_recurrence
from spectral_triton.residual import SVDResidualBlock
from spectral_triton.rnn import SpectralRNN
from spectral_triton.rnn_cell import SpectralRNNCell
from spectral_triton.spectrum import (
    FixedSpectrum,
    SigmoidSpectrum,
    SignedSpectrum,
    SoftplusSpectrum,
    Spectrum,
)
from spectral_triton.svd import HouseholderSVD
from spectral_triton.weight import SVDWeight

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 (SVDMLP is no constant)
    "ConversionReport",
    "FixedSpectrum",
    "HouseholderSVD",
    "SVDConv1d",
    "SVDConv2d",
    "SVDConv3d",
    "SVDLinear",
    "SVDMLP",
    "SVDResidualBlock",
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
    "lipschitz_constant",
    "parameter_groups",
    "parametrizations",
    "reflectors_from_orthogonal",
    "spectral_recurrence",
    "use_backend",
]
