"""All steps h_t = φ(W h_{t-1} + x_t) in one call, with W in SVD form.

One rule decides between the folded and the dense form, and between PyTorch and the kernels.
"""

from spectral_triton.recurrence.recurrence import spectral_recurrence

__all__ = ["spectral_recurrence"]
