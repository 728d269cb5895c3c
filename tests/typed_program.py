"""A user's program with types, for `make types`: the assignments say what every name returns."""

import torch
from torch import Tensor, nn

from spectral_triton import (
    FixedSpectrum,
    HouseholderSVD,
    SigmoidSpectrum,
    SpectralRNN,
    SpectralRNNCell,
    SVDLinear,
    apply_reflectors,
    householder_product,
    parametrizations,
    reflectors_from_orthogonal,
    spectral_recurrence,
    use_backend,
)

layer = SVDLinear(4, 4, num_reflectors=(2, 3), spectrum=SigmoidSpectrum(margin=0.1))
weight: Tensor = layer.weight
sigma: Tensor = layer.singular_values
left: nn.Parameter = layer.svd.left
factors: HouseholderSVD = layer.factors
product: Tensor = factors @ torch.ones(4)
sign: Tensor = factors.slogdet().sign
transposed: HouseholderSVD = factors.mT.inverse()
linear: nn.Linear = layer.to_linear()
again: SVDLinear = SVDLinear.from_linear(linear, out_of_bounds="clip")

rnn = SpectralRNN(3, 8, nonlinearity="relu", num_reflectors=4, spectrum=FixedSpectrum())
norm: Tensor = rnn.factors[0].spectral_norm()
plain: nn.RNN = rnn.to_rnn()
cell = SpectralRNNCell(3, 8, device="cpu", dtype=torch.float32)
dense: Tensor = cell.weight_hh

q: Tensor = householder_product(torch.randn(2, 3), 2)
reflectors, signs = reflectors_from_orthogonal(q)
total: Tensor = reflectors.sum() + signs.sum()
with use_backend("torch"):
    y: Tensor = apply_reflectors(torch.randn(5, 3), reflectors, transpose=True)
h: Tensor = spectral_recurrence(torch.randn(5, 2, 4), None, factors, nonlinearity="tanh")
module: nn.Module = parametrizations.svd(nn.Linear(3, 3), num_reflectors=None, out_of_bounds="clip")
