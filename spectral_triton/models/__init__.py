"""What is done with whole models: converted, baked, bounded, and given to an optimizer.

Each function walks over all modules and takes those of ours and of torch.nn that it knows.
"""

from spectral_triton.models.bake import bake
from spectral_triton.models.conversion_report import ConversionReport
from spectral_triton.models.convert import convert
from spectral_triton.models.lipschitz import lipschitz_constant
from spectral_triton.models.lipschitz_report import LayerBound, LipschitzReport, lipschitz_report
from spectral_triton.models.parameter_groups import parameter_groups
from spectral_triton.models.rebase import RebaseEvery, rebase_

__all__ = [
    "ConversionReport",
    "LayerBound",
    "LipschitzReport",
    "RebaseEvery",
    "bake",
    "convert",
    "lipschitz_constant",
    "lipschitz_report",
    "parameter_groups",
    "rebase_",
]
