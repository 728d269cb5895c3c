r"""Gradients of what all steps of a recurrence share, added up chunk by chunk.

With dz_t the gradient of the pre-activation z_t = W h_{t-1} + W_ih x_t + b_ih of a step:
∂L/∂W = Σ dz hᵀ, or, for W = diag(σ) - P Qᵀ, ∂L/∂P = -Σ dz (Qᵀh)ᵀ, ∂L/∂Q = -Σ h (Pᵀdz)ᵀ and
∂L/∂σ = Σ h∘dz; ∂L/∂W_ih = Σ dz xᵀ and ∂L/∂b_ih = Σ dz. No n x n gradient exists of a folded W.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spectral_triton.recurrence.arguments import DIFFERENTIABLE, Arguments
from spectral_triton.recurrence.steps import rows_at_once

# Elements of a temporary in a sum over rows, on a CPU.
CHUNK = 1 << 18


class GradientSums:
    """The sums so far.

    Args:
        needs: Which of ``DIFFERENTIABLE`` are wanted.
        in_place: Whether sums may be changed in place, which derivatives of them forbid.
    """

    def __init__(self, needs: Sequence[bool], in_place: bool = True) -> None:
        self._wanted = {name for name, need in zip(DIFFERENTIABLE, needs, strict=True) if need}
        self._in_place, self._folded = in_place, False
        self._totals: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        return name in self._wanted

    def add(
        self,
        dz: Tensor,
        x: Tensor,
        y: Tensor,
        before: list[tuple[Tensor, slice]],
        kept: Tensor | None,
        back: Tensor | None,
    ) -> None:
        """Adds the rows of some steps, the second last dimension of all tensors.

        Args:
            dz: Gradients of the pre-activations, (rows, n).
            x: Inputs, (rows, features).
            y: Outputs, (rows, n).
            before: States before the steps and the rows they go with, see ``Chunk.before``.
            kept: Qᵀ h of the states before, None if not folded.
            back: Pᵀ dz, None if not folded.
        """
        for h, at in before:
            own = dz[..., at, :]
            if kept is None or back is None:
                self._add_product("p", own, h)
                continue
            self._folded = True
            self._add_product("p", own, kept[..., at, :])
            self._add_product("q", h, back[..., at, :])
            self._add_columns("scale", h, own)
        self._add_product("weight_ih", dz, x)
        if self.wants("bias_ih"):
            self._put("bias_ih", dz.sum(-2))
        if self.wants("bias"):
            self._add_columns("bias", dz, y.detach().sign())

    def gradients(self, grad_x: Tensor, grad_h0: Tensor, a: Arguments) -> list[Tensor | None]:
        """Those by all ``DIFFERENTIABLE``, None where not wanted, zeros where no step was added."""
        grads: list[Tensor | None] = []
        for name in DIFFERENTIABLE:
            argument = getattr(a, name)
            if not self.wants(name) or argument is None:
                grads.append(None)
            elif name in ("x", "h0"):
                grads.append(grad_x if name == "x" else grad_h0)
            else:
                total = self._totals.get(name)
                total = argument.new_zeros(argument.shape) if total is None else total
                grads.append(-total if self._folded and name in ("p", "q") else total)
        return grads

    def _put(self, name: str, value: Tensor) -> None:
        total = self._totals.get(name)
        if total is not None:
            value = total.add_(value) if self._in_place else total + value
        self._totals[name] = value

    def _add_product(self, name: str, a: Tensor, b: Tensor) -> None:
        """aᵀ b."""
        if not self.wants(name):
            return
        total = self._totals.get(name)
        if total is None or not self._in_place:
            self._put(name, a.mT @ b)
        else:
            total.addmm_(a.mT, b)

    def _add_columns(self, name: str, a: Tensor, b: Tensor) -> None:
        """Column sums of a∘b, without a temporary as large as a whole sequence."""
        if not self.wants(name) or not a.shape[-2]:
            return
        rows = rows_at_once(a.shape[-1], CHUNK, a.device)
        for part, other in zip(a.split(rows, -2), b.split(rows, -2), strict=True):
            self._put(name, (part * other).sum(-2))
