"""A matrix in SVD form inside an ONNX export: what is made of it is constant."""

import torch
from torch import nn
from torch.export import Dim

from spectral_triton import SVDLinear
from spectral_triton.runtime.onnx_export import evaluated
from spectral_triton.svd.constant_svd import ConstantSVD
from spectral_triton.svd.weight import SVDWeight


def constant(weight):
    return evaluated(weight, weight._constant)


def test_it_is_the_matrix_of_the_parameters():
    for weight in (SVDWeight(3, 5, num_reflectors=2), SVDWeight(4, 4, num_blocks=2, base="haar")):
        factors, w = constant(weight), weight.to_dense().detach()
        assert isinstance(factors, ConstantSVD)
        assert not factors.to_dense().requires_grad
        assert factors.to_dense() is factors.to_dense()
        torch.testing.assert_close(factors.to_dense(), w)
        torch.testing.assert_close(factors.mT.to_dense(), w.mT)
        torch.testing.assert_close(factors.pinv().to_dense(), torch.linalg.pinv(w))
        x = torch.randn(7, w.shape[-1])
        torch.testing.assert_close(factors.apply(x), x @ w.mT)


class Flow(nn.Module):
    """All that the graph of a normalising flow takes of a layer."""

    def __init__(self):
        super().__init__()
        self.layer = SVDLinear(4, 4, num_reflectors=2, base="haar", margin=0.5)
        self.wide = SVDLinear(4, 3, margin=0.5)

    def forward(self, x):
        factors = self.layer.factors
        return (
            self.layer(x) + self.layer.logabsdet(),
            self.layer.inverse(x),
            factors.mT @ x.mT,
            factors.apply_power(x, -2),
            self.wide.factors.solve(self.wide(x)),
            factors.gram(0.5).apply(x) + factors.spectral_norm() + self.layer.singular_values,
            self.wide.factors.truncate(2).apply(x),
            x @ self.layer.weight,
        )


def test_flows_are_exported(onnx_program):
    model = Flow()
    with torch.no_grad():
        for layer in (model.layer, model.wide):
            layer.svd.raw_singular_values.normal_()
    program = onnx_program(model, (torch.randn(2, 4),), ({0: Dim("batch")},))
    x = torch.randn(5, 4)
    with torch.no_grad():
        for found, expected in zip(program(x), model(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
