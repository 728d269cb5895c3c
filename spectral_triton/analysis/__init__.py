"""What theory says about these networks, computed beside what they do.

Proved, for every value of the parameters: the singular values stay within their bounds, and a
gradient grows by no more than (σ* + r) per step (:mod:`~spectral_triton.analysis.bounds`); any
matrix is reached with min(m, n) reflectors a side (:mod:`~spectral_triton.analysis.expressivity`).
Measured, and true of one network at one moment only: how much of a gradient arrives
(:mod:`~spectral_triton.analysis.gradient_flow`) and where the singular values lie
(:mod:`~spectral_triton.analysis.spectra`). Exploding gradients are excluded, vanishing ones are
not: a saturated or dead unit passes none, whatever W is.
"""
