"""Triton kernels of spectral_triton; imported as `spectral_triton.kernels` only."""
