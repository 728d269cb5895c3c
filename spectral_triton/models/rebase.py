"""Folds what reflectors have learned into their base, so that few of them reach everything."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.parametrizations import svd_bases
from spectral_triton.runtime.sharding import refuse_sharded
from spectral_triton.runtime.validation import check_integer
from spectral_triton.svd.base import rebased
from spectral_triton.svd.weight import SVDWeight


@torch.no_grad()
def rebase_(
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Makes the present U and V the bases, and starts the reflectors anew; W stays as it is.

    .. math:: U_0 \leftarrow Q_u U_0, \qquad V_0 \leftarrow Q_v V_0, \qquad Q_u, Q_v \leftarrow I

    k reflectors a side reach orthogonal matrices that differ from the base by rank k. Rebased every
    so many steps, a few reach all of them, as parametrizations that move their origin do
    ("dynamic trivializations"). Computed in float64 and orthonormalised, so that no error adds up,
    at 4 p (m k_u + n k_v) + 2 p² (m + n) operations a matrix.

    Args:
        module: All weights in SVD form in it that have a base, see :class:`SVDWeight`.
        optimizer: Where given, what it keeps of the reflectors (momenta, second moments, steps) is
            dropped, as it belongs to the former ones; of σ̂ and all else it stays.
        generator: Source of the new reflectors. Under data parallelism every process needs the same
            numbers: seed one alike on each, and give it here.

    Returns:
        The module.

    Raises:
        TypeError: if ``module`` is no module, or ``optimizer`` no optimizer.
        ValueError: if no weight in it has a base, or it is sharded by ``fully_shard``.

    Example:
        >>> layer = SVDLinear.from_linear(nn.Linear(8, 8), num_reflectors=2,
        ...                               spectrum=SoftplusSpectrum())
        >>> optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        >>> layer(torch.randn(3, 8)).sum().backward()
        >>> optimizer.step()
        >>> weight = layer.weight.detach()
        >>> torch.testing.assert_close(rebase_(layer, optimizer).weight, weight)

    References:
        Lezcano-Casado. Trivializations for gradient-based optimization on manifolds. NeurIPS 2019.
        https://arxiv.org/abs/1909.09501
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    refuse_sharded(module)
    sides = list(_sides(module))
    if not sides:
        raise ValueError(
            'no weight in module has a base: make layers with base="haar", or from given weights '
            "with fewer reflectors than all"
        )
    for reflectors, base in sides:
        base.copy_(rebased(reflectors, base, generator))
        if optimizer is not None:
            optimizer.state.pop(reflectors, None)
    return module


def _sides(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Reflectors and base of each side of each matrix, those that are shared once."""
    seen = set()
    for part in module.modules():
        found: list[tuple[Any, Any]] = []
        if isinstance(part, SVDWeight):
            found = [(part.left, part.left_base), (part.right, part.right_base)]
        found += svd_bases(part)
        for reflectors, base in found:
            if base is not None and id(base) not in seen:
                seen.add(id(base))
                yield reflectors, base


class RebaseEvery:
    """Calls :func:`rebase_` after every N steps of an optimizer, however the loop is written.

    Steps are counted where the optimizer is called, so with gradient accumulation, and not those
    that a ``GradScaler`` skips, but for fused optimizers, which are called then as well. The count,
    and the generator of the new reflectors, which is the same on every process that makes it with
    the same seed, are in :meth:`state_dict`: a run that is stopped and resumed goes on with the
    same numbers.

    Args:
        module: As for :func:`rebase_`. Not kept alive.
        optimizer: The one that trains it.
        steps: N, at least 1.
        seed: Of the generator.

    Raises:
        TypeError, ValueError: as :func:`rebase_`, or if ``steps`` is not a number from 1 on.

    Example:
        >>> layer = SVDLinear(8, 8, num_reflectors=2, base="haar")
        >>> optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        >>> rebase = RebaseEvery(layer, optimizer, steps=20)
        >>> for _ in range(40):
        ...     optimizer.zero_grad()
        ...     layer(torch.randn(4, 8)).square().sum().backward()
        ...     _ = optimizer.step()
        >>> rebase.count
        40
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, seed: int = 0
    ) -> None:
        check_integer("steps", steps, 1)
        check_integer("seed", seed, 0)
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        sides = list(_sides(module))
        if not sides:
            raise ValueError("no weight in module has a base")
        self.steps, self.count = steps, 0
        self._generator = torch.Generator(sides[0][1].device).manual_seed(seed)
        self._module = weakref.ref(module)
        self._handle = optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        module = self._module()
        if module is None:
            self.remove()
            return
        self.count += 1
        if self.count % self.steps == 0:
            rebase_(module, optimizer, generator=self._generator)

    def remove(self) -> None:
        """Ends it."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The count of steps and the state of the generator."""
        return {"count": self.count, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where another one was."""
        self.count = state["count"]
        self._generator.set_state(state["generator"].cpu())
