"""Linear layers with bounded singular values, n x n, and nn.Linear."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from peers.applied import torch_ormqr
from peers.contender import Absent, Contender, of_module, optional
from peers.orthogonal import OURS, torch_map, torch_product, unit_triangular
from peers.reflections import fasth, reflect_in_turn
from spectral_triton import SVDLinear, reference

MARGIN = 0.01
Builder = Callable[[int, int, int, torch.dtype], Contender]
Apply = Callable[[Tensor, Tensor], Tensor]


def _input(n: int, batch: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, n, dtype=dtype, requires_grad=True)


def _ours(n: int, k: int, batch: int, dtype: torch.dtype) -> Contender:
    layer, x = SVDLinear(n, n, num_reflectors=k, dtype=dtype), _input(n, batch, dtype)
    contender = of_module(layer, x, (1 - MARGIN, 1 + MARGIN))
    if n * k <= 2**12:
        svd = layer.svd

        def expected() -> Tensor:
            sides = (svd.left.triu().double(), svd.right.triu().double())
            w = reference.svd_to_dense(sides[0], layer.singular_values.double(), sides[1])
            return nn.functional.linear(x.double(), w, layer.bias.double()).to(dtype)

        contender.expected = expected
    return contender


def _dense(n: int, k: int, batch: int, dtype: torch.dtype) -> Contender:
    layer, x = nn.Linear(n, n, dtype=dtype), _input(n, batch, dtype)
    return of_module(layer, x, (0, math.inf))


def _registered(
    register: Callable[[nn.Linear], object],
    interval: tuple[float, float] = (1.0, 1.0),
    has_signs: bool = False,
) -> Builder:
    def build(n: int, k: int, batch: int, dtype: torch.dtype) -> Contender:
        layer = nn.Linear(n, n, dtype=dtype)
        register(layer)
        contender = of_module(layer, _input(n, batch, dtype), interval)
        contender.has_signs = has_signs
        return contender

    return build


def _geotorch(triv: str) -> Builder:
    def register(layer: nn.Linear) -> None:
        constraints = optional("geotorch")
        constraints.almost_orthogonal(layer, "weight", MARGIN, "scaled_sigmoid", triv)

    return _registered(register, (1 - MARGIN, 1 + MARGIN))


def _iterated(
    make: Callable[[int], nn.Module], low: float, only: torch.dtype | None = None
) -> Builder:
    """A layer that bounds singular values by iterations, so up to a tolerance."""

    def build(n: int, k: int, batch: int, dtype: torch.dtype) -> Contender:
        dtype = only or dtype
        layer, x = make(n).to(dtype), _input(n, batch, dtype)
        # Every pass in training makes one step of the power iteration: the proof needs its limit.
        for _ in range(2000 if n <= 64 else 100):
            layer(x)
        contender = of_module(layer, x, (low, 1.0), 0.05)
        contender.expected = None
        return contender

    return build


def _spectral_norm(n: int) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(n, n))


def _torchlip(n: int) -> nn.Module:
    return optional("deel.torchlip").SpectralLinear(n, n)


def _orthogonium(n: int) -> nn.Module:
    return optional("orthogonium.layers.linear.ortho_linear").OrthoLinear(n, n)


def _nflows(n: int, k: int, batch: int, dtype: torch.dtype) -> Contender:
    layer = optional("nflows.transforms").SVDLinear(n, k).to(dtype)
    for sequence in (layer.orthogonal_1, layer.orthogonal_2):
        nn.init.normal_(sequence.q_vectors)
    x = _input(n, batch, dtype)

    def expected() -> Tensor:
        return nn.functional.linear(x, layer.weight(), layer.bias)

    # σ has a lower bound only.
    return Contender(
        lambda: layer(x)[0],
        (*layer.parameters(), x),
        expected if n <= 64 else None,
        layer.weight if n <= 64 else None,
        (layer.eps, math.inf),
    )


def _composed(apply: Apply, transposed: Apply, prepare: Callable[[Tensor], Tensor]) -> Builder:
    """U diag(σ) Vᵀ x + b from an operation that applies one orthogonal factor."""

    def build(n: int, k: int, batch: int, dtype: torch.dtype) -> Contender:
        x = _input(n, batch, dtype)
        left, right = (torch.randn(k, n, dtype=dtype, requires_grad=True) for _ in range(2))
        raw, bias = (torch.zeros(n, dtype=dtype, requires_grad=True) for _ in range(2))

        def sigma() -> Tensor:
            return 1 + 2 * MARGIN * (raw.sigmoid() - 0.5)

        def expected() -> Tensor:
            sides = (prepare(side.double()) for side in (left, right))
            w = reference.svd_to_dense(next(sides), sigma().double(), next(sides))
            return nn.functional.linear(x.double(), w, bias.double()).to(dtype)

        return Contender(
            lambda: apply(transposed(x, right) * sigma(), left) + bias,
            (left, right, raw, bias, x),
            expected if n * k <= 2**12 else None,
        )

    return build


def _torch_products(n: int, k: int, batch: int, dtype: torch.dtype) -> Contender:
    if k < n:
        raise Absent("householder_product forms k columns only; all n cost as much as k = n")
    build = _composed(
        lambda x, v: x @ torch_product(v).mT, lambda x, v: x @ torch_product(v), unit_triangular
    )
    return build(n, k, batch, dtype)


def _torch_householder(n: int, k: int, batch: int, dtype: torch.dtype) -> Contender:
    orgqr = optional("torch_householder").torch_householder_orgqr
    if k < n:
        raise Absent("torch-householder forms k columns only; all n cost as much as k = n")

    def form(v: Tensor) -> Tensor:
        return orgqr(unit_triangular(v).mT.contiguous())

    build = _composed(lambda x, v: x @ form(v).mT, lambda x, v: x @ form(v), unit_triangular)
    return build(n, k, batch, dtype)


# Qᵀ is the product of the reflectors in the opposite order.
LAYERS: dict[str, Builder] = {
    OURS: _ours,
    "nn.Linear": _dense,
    "GeoTorch almost_orthogonal, Cayley": _geotorch("cayley"),
    "GeoTorch almost_orthogonal, exponential": _geotorch("expm"),
    "torch householder_product, twice": _torch_products,
    "torch ormqr, twice": _composed(
        torch_ormqr, lambda x, v: torch_ormqr(x, v, True), unit_triangular
    ),
    "torch-householder, twice": _torch_householder,
    "nflows SVDLinear": _nflows,
    "FastH's blocks, twice": _composed(fasth, lambda x, v: fasth(x, v.flip(0)), lambda v: v),
    "loop over reflectors, twice": _composed(
        reflect_in_turn, lambda x, v: reflect_in_turn(x, v.flip(0)), lambda v: v
    ),
    "torch orthogonal, Cayley (σ = 1)": _registered(torch_map("cayley")),
    "torch orthogonal, exponential (σ = 1)": _registered(torch_map("matrix_exp")),
    "torch orthogonal, Householder (σ = 1)": _registered(torch_map("householder"), has_signs=True),
    "torch spectral_norm (σ ≤ 1, approximate)": _iterated(_spectral_norm, 0.0),
    "deel-torchlip SpectralLinear (approximate)": _iterated(_torchlip, 1.0),
    "orthogonium OrthoLinear (approximate)": _iterated(_orthogonium, 1.0, torch.float32),
}
