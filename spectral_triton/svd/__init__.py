"""The factored matrix W = U diag(s ∘ σ) Vᵀ: its algebra, and the module that owns its parameters.

Everything that is known of W without forming it is here: products, inverse, norms, low rank.
"""

from spectral_triton.svd.operator import HouseholderSVD
from spectral_triton.svd.weight import SVDWeight

__all__ = ["HouseholderSVD", "SVDWeight"]
