"""Ways to an orthogonal matrix: n x n, differentiable by its parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from peers.contender import Absent, Contender, optional
from peers.reflections import fasth, reflect_in_turn
from spectral_triton import householder_product, reference

OURS = "spectral_triton"
Builder = Callable[[int, torch.dtype], Contender]
Map = Callable[[Tensor], Tensor]


def lapack_form(reflectors: Tensor) -> tuple[Tensor, Tensor]:
    """The columns and tau that LAPACK takes, of unit lower trapezoids of rows (k, n)."""
    columns = reflectors.mT.tril(-1)
    return columns, 2 / (1 + (columns * columns).sum(0))


def unit_triangular(reflectors: Tensor) -> Tensor:
    """Rows with ones on the diagonal and zeros before, as LAPACK reads them."""
    k, n = reflectors.shape
    return reflectors.triu(1) + torch.eye(k, n, dtype=reflectors.dtype)


def torch_product(reflectors: Tensor) -> Tensor:
    """Q by torch.linalg.householder_product."""
    return torch.linalg.householder_product(*lapack_form(reflectors))


def _of_reflectors(
    form: Callable[[Tensor], Tensor], prepare: Callable[[Tensor], Tensor]
) -> Builder:
    def build(n: int, dtype: torch.dtype) -> Contender:
        v = torch.randn(n, n, dtype=dtype, requires_grad=True)
        small = n <= 64
        return Contender(
            lambda: form(v),
            (v,),
            (lambda: reference.householder_product(prepare(v))) if small else None,
            lambda: form(v),
        )

    return build


def _torch_householder(n: int, dtype: torch.dtype) -> Contender:
    orgqr = optional("torch_householder").torch_householder_orgqr

    def form(v: Tensor) -> Tensor:
        return orgqr(unit_triangular(v).mT.contiguous())

    return _of_reflectors(form, unit_triangular)(n, dtype)


def _loop(n: int, dtype: torch.dtype) -> Contender:
    if n > 256:
        raise Absent("one reflector after another is not waited for above n = 256")
    identity = torch.eye(n, dtype=dtype)
    return _of_reflectors(lambda v: reflect_in_turn(identity, v).mT, lambda v: v)(n, dtype)


def _fasth(n: int, dtype: torch.dtype) -> Contender:
    if n > 256:
        raise Absent("FastH's blocks on n rows at once are not waited for above n = 256")
    identity = torch.eye(n, dtype=dtype)
    return _of_reflectors(lambda v: fasth(identity, v).mT, lambda v: v)(n, dtype)


def _of_layer(register: Callable[[nn.Linear], object], has_signs: bool = False) -> Builder:
    def build(n: int, dtype: torch.dtype) -> Contender:
        layer = nn.Linear(n, n, bias=False, dtype=dtype)
        register(layer)
        return Contender(
            lambda: layer.weight,
            tuple(layer.parameters()),
            matrix=lambda: layer.weight,
            has_signs=has_signs,
        )

    return build


def torch_map(name: str) -> Callable[[nn.Module], object]:
    """Registers parametrizations.orthogonal with one of its maps."""
    return lambda layer: nn.utils.parametrizations.orthogonal(layer, orthogonal_map=name)


def _geotorch(triv: str) -> Callable[[nn.Linear], object]:
    return lambda layer: optional("geotorch").orthogonal(layer, "weight", triv=triv)


PRODUCTS: dict[str, Builder] = {
    OURS: _of_reflectors(lambda v: householder_product(v, triangular=True), torch.triu),
    f"{OURS}, any rows": _of_reflectors(householder_product, lambda v: v),
    "torch householder_product": _of_reflectors(torch_product, unit_triangular),
    "torch orthogonal, Cayley": _of_layer(torch_map("cayley")),
    "torch orthogonal, exponential": _of_layer(torch_map("matrix_exp")),
    "torch orthogonal, Householder": _of_layer(torch_map("householder"), has_signs=True),
    "GeoTorch orthogonal, Cayley": _of_layer(_geotorch("cayley")),
    "GeoTorch orthogonal, exponential": _of_layer(_geotorch("expm")),
    "torch-householder": _torch_householder,
    "FastH's blocks": _fasth,
    "loop over reflectors": _loop,
}
