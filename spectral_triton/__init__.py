"""Weight matrices in the form W = U diag(σ) Vᵀ, kept there while they train."""

__version__ = "0.1.0"
