"""What recurrent layers and cells share: parameters named as torch names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from spectral_triton.recurrent.parameters import (
    BIASES,
    add_plain_parameters,
    reset_uniform_,
    stack_rows,
    unstack_rows,
)
from spectral_triton.runtime.sharding import assign_, gathered
from spectral_triton.runtime.validation import check_choice, check_dtype, check_flag, check_integer
from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.svd.assignment import AssignableWeights
from spectral_triton.svd.dense_entries import factor_dense_entries
from spectral_triton.svd.weight import INITIALIZERS, SVDWeight

Module = TypeVar("Module", bound="RecurrentModule")


class RecurrentModule(AssignableWeights):
    """Plain input weights and biases, and transitions as :class:`SVDWeight`, under each suffix.

    The base of the layers, whose suffixes are those of torch such as ``_l1_reverse``, and of the
    cells, with the empty one. A cell of several gates stacks its matrices in the order of torch.

    Attributes:
        num_gates: None where the transition is one matrix.
    """

    num_gates: ClassVar[int | None] = None
    _plain_type: ClassVar[type[nn.Module]]
    """The module of torch with the same outputs."""
    _options: ClassVar[tuple[str, ...]] = ("bias",)
    """What both are built with beside the sizes, by the names of their attributes."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool, init: str) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
            check_integer(name, value, 1)
        check_choice("init", init, INITIALIZERS)
        check_flag("bias", bias)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bool(bias)

    @property
    def _state_size(self) -> int:
        """Size of the state that the transitions multiply."""
        return self.hidden_size

    def _suffixes(self) -> list[str]:
        return [""]

    def _svd_weight(self, suffix: str) -> SVDWeight:
        weight = self.get_submodule(f"svd_hh{suffix}")
        assert isinstance(weight, SVDWeight)
        return weight

    def _as_matrix(self, w: Tensor, weight: SVDWeight) -> Tensor:
        return unstack_rows(w, weight)

    def _plain_shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        rows = (self.num_gates or 1) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, features)}
        return shapes | (dict.fromkeys(BIASES, (rows,)) if self.bias else {})

    def _reset_plain(self, suffix: str) -> None:
        reset_uniform_(self, suffix, self.hidden_size)

    def _features(self, index: int) -> int:
        """Features of what goes into the cell of the suffix at this place."""
        return self.input_size

    def _add_all(
        self,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        num_reflectors: int | Sequence[int] | None,
        spectrum: Spectrum | Sequence[Spectrum] | None,
        init: str,
        base: str | None,
        margin: float | None,
    ) -> None:
        """Registers and draws all parameters."""
        svd: dict[str, Any] = {
            "num_reflectors": num_reflectors,
            "spectrum": spectrum,
            "init": init,
            "base": base,
            "margin": margin,
        }
        check_dtype(dtype)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = self.hidden_size, self._state_size
        for index, suffix in enumerate(self._suffixes()):
            add_plain_parameters(self, suffix, self._plain_shapes(self._features(index)), options)
            weight = SVDWeight(sizes[0], sizes[1], num_blocks=self.num_gates, **svd, **options)
            self.add_module(f"svd_hh{suffix}", weight)
            self._reset_plain(suffix)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as on construction."""
        for suffix in self._suffixes():
            self._svd_weight(suffix).reset_parameters()
            self._reset_plain(suffix)

    def _dense(self, suffix: str) -> Tensor:
        """The transitions as torch holds them, stacked along dimension 0."""
        return stack_rows(self._svd_weight(suffix).to_dense())

    @classmethod
    def _from_plain(
        cls: type[Module], name: str, plain: Any, svd: dict[str, Any], out_of_bounds: str
    ) -> Module:
        """The module with the weights of torch's, the argument called ``name``."""
        if not isinstance(plain, cls._plain_type):
            expected = cls._plain_type.__name__
            raise TypeError(f"{name} must be a torch.nn.{expected}, got {type(plain).__name__}")
        make: Any = cls  # With the arguments of the subclass, not of this base.
        own: Module = make(plain.input_size, plain.hidden_size, **_settings(plain, cls), **svd)
        for suffix in own._suffixes():
            weight = own._svd_weight(suffix)
            name = f"weight_hh{suffix}"
            dense = unstack_rows(getattr(plain, name).detach(), weight)
            weight.set_named_(dense, out_of_bounds, name)
        own._copy_plain(plain, own)
        return own.train(plain.training)

    def _to_plain(self) -> Any:
        """The module of torch with the same weights."""
        nonlinearity = getattr(self, "nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"nn.{self._plain_type.__name__} has the nonlinearities tanh and relu, "
                f"not {nonlinearity!r}"
            )
        make: Any = self._plain_type
        plain = make(self.input_size, self.hidden_size, **_settings(self, type(self)))
        with torch.no_grad():
            for suffix in self._suffixes():
                getattr(plain, f"weight_hh{suffix}").copy_(self._dense(suffix))
        self._copy_plain(self, plain)
        return plain.train(self.training)

    @torch.no_grad()
    def _copy_plain(self, source: nn.Module, target: nn.Module) -> None:
        """All but the transitions, from one module to the other."""
        for suffix in self._suffixes():
            for name in self._plain_shapes(1):
                value = gathered(getattr(source, f"{name}{suffix}"))
                assign_(getattr(target, f"{name}{suffix}"), value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = [(f"weight_hh{suffix}", f"svd_hh{suffix}") for suffix in self._suffixes()]
        factor_dense_entries(self, state_dict, prefix, args[-1], names, unstack_rows)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _settings(module: Any, kind: type[RecurrentModule]) -> dict[str, Any]:
    """What one of like options, device and dtype is built with."""
    weight = module.weight_ih_l0 if issubclass(kind._plain_type, nn.RNNBase) else module.weight_ih
    settings = {name: getattr(module, name) for name in kind._options}
    return settings | {"device": weight.device, "dtype": weight.dtype}
