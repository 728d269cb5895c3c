"""What cells, single steps of a recurrent layer, share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from spectral_triton.recurrent.module import RecurrentModule
from spectral_triton.recurrent.parameters import (
    BIASES,
    check_input,
    plain_tensor,
)
from spectral_triton.recurrent.state import initial_state
from spectral_triton.runtime.cached import is_cached
from spectral_triton.runtime.validation import (
    autocast_is_on,
    check_floating,
    full_precision,
    without_autocast,
)
from spectral_triton.svd.operator import HouseholderSVD
from spectral_triton.svd.weight import SVDWeight


class RecurrentCell(RecurrentModule):
    """One step, with the names and shapes of torch.nn.RNNCellBase."""

    svd_hh: SVDWeight
    weight_ih: nn.Parameter

    @property
    def weight_hh(self) -> Tensor:
        """The dense transition matrix, (n, n), or (gates * n, n) with the gates stacked."""
        return self._handed_out(self._dense(""), self._svd_weight(""), "weight_hh")

    def _assignable(self, name: str) -> SVDWeight | None:
        if name == "weight" or name.startswith("weight_hh_l"):
            kind = type(self).__name__
            raise AttributeError(f"{kind} has no {name}: weight_hh is its transition")
        return self._svd_weight("") if name == "weight_hh" else None

    @property
    def factors(self) -> HouseholderSVD:
        """The transition matrix, or the stack of one per gate, as an operator."""
        return self._svd_weight("").factors

    @property
    def singular_values(self) -> Tensor:
        """Its singular values, shape (n,) or (gates, n), unsorted and differentiable."""
        return self._svd_weight("").singular_values

    def extra_repr(self) -> str:
        shown = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{shown}"

    def _read(self, input: Tensor) -> Tensor:
        """The input as (B, input_size)."""
        check_floating("input", input)
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input must be (B, input_size) or (input_size,) with input_size = "
                f"{self.input_size}, got shape {tuple(input.shape)}"
            )
        return input if input.dim() == 2 else input.unsqueeze(0)

    def _state(self, hx: Tensor | None, x: Tensor, batched: bool, name: str = "hx") -> Tensor:
        """A state as (B, n), zero for None."""
        if hx is not None:
            check_floating(name, hx)
            expected = (*(x.shape[:1] if batched else ()), self.hidden_size)
            if tuple(hx.shape) != expected:
                raise ValueError(f"{name} must have shape {expected}, got {tuple(hx.shape)}")
            hx = hx.unsqueeze(0)
        shape = (1, x.shape[0], self.hidden_size)
        return initial_state(hx, x.unsqueeze(0), shape, batched, None, name)[0]

    def _pre_activations(self, x: Tensor, h: Tensor, carried: Tensor) -> tuple[Tensor, ...]:
        """What input and state give to each gate, (gates, B, n), and the carried state.

        In float32 at least, the dtype of the factors where that is wider.
        """
        check_input(x, self.weight_ih)
        with without_autocast(x.device.type):
            dtype = self._dtype(x)
            biases = [plain_tensor(self, name) for name in BIASES]
            b_ih, b_hh = (None if b is None else b.to(dtype) for b in biases)
            of_input = nn.functional.linear(x.to(dtype), self.weight_ih.to(dtype), b_ih)
            of_state = self._svd_weight("")(h.to(dtype))
            if b_hh is not None:
                of_state = of_state + b_hh.unflatten(0, (self.num_gates, 1, -1))
            return (
                of_input.unflatten(-1, (self.num_gates, -1)).movedim(-2, 0),
                of_state,
                carried.to(dtype),
            )

    def _dtype(self, x: Tensor) -> torch.dtype:
        factors = self._svd_weight("").left.dtype
        return full_precision(x.dtype, self.weight_ih.dtype, factors)

    def _steps_at_once(self) -> bool:
        """Whether a step goes to torch's function, with a W_hh that is kept."""
        weight = self._svd_weight("")
        if type(weight) is not SVDWeight or not is_cached(weight.left):
            return False
        # Of a product inside that function no hook would know.
        own = (
            weight._forward_pre_hooks,
            weight._forward_hooks,
            weight._backward_pre_hooks,
            weight._backward_hooks,
        )
        return not any(own) and not _has_any_global_hook()

    def _next(self, function: str, x: Tensor, *states: Tensor) -> Any:
        """What torch's function for one step returns, with the dense W_hh."""
        check_input(x, self.weight_ih)
        with without_autocast(x.device.type):
            dtype = self._dtype(x)
            weights = self.weight_ih, self._dense(""), *(plain_tensor(self, b) for b in BIASES)
            weights = tuple(None if a is None else a.to(dtype) for a in weights)
            given = [state.to(dtype) for state in states]
            hx = given if len(given) > 1 else given[0]
            return getattr(torch._VF, function)(x.to(dtype), hx, *weights)

    def _result(self, state: Tensor, input: Tensor, hx: Tensor | None) -> Tensor:
        """A state as it is returned: as wide as it has to be for a loop not to round it each step.

        Under autocast in the dtype of the arithmetic, float32 at least, else in that of the input,
        or of hx where that is wider.
        """
        if not autocast_is_on(input.device.type):
            wide = input.dtype if hx is None else torch.promote_types(input.dtype, hx.dtype)
            state = state.to(wide)
        return state if input.dim() == 2 else state.squeeze(0)
