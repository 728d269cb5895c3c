"""Products of Householder reflectors, Q = H(v₁) ⋯ H(v_k): applied, formed and factored.

The blocked algebra and its derivatives stand here, above what each device runs.
"""

from spectral_triton.householder.products import (
    apply_reflectors,
    householder_product,
    reflectors_from_orthogonal,
)

__all__ = ["apply_reflectors", "householder_product", "reflectors_from_orthogonal"]
