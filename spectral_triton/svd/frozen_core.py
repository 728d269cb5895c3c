"""U₀ diag(s ∘ σ) V₀ᵀ as one matrix, where σ is not trained: one product in the place of two."""

from __future__ import annotations

from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spectral_triton.runtime.fingerprint import fingerprint, sample


class _Kept(NamedTuple):
    state: tuple[object, ...]
    made_of: tuple[Tensor | None, ...]  # Held so that no other tensor takes their ids.
    core: Tensor


_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def frozen_core(
    owner: nn.Module, spectrum: object, made_of: tuple[Tensor | None, ...], sigma: Tensor
) -> Tensor | None:
    """The core (..., m, n), kept for its owner until what it is made of changes.

    Args:
        owner: The module, which the core does not outlive.
        spectrum: Its map to σ.
        made_of: Raw singular values or None, signs, U₀ and V₀.
        sigma: The singular values.

    Returns:
        None where σ is trained, also while no gradients are recorded, or where a program is traced
        or transformed, which would take what is kept for a constant.
    """
    plain = all(t is None or type(t) in (Tensor, nn.Parameter) for t in made_of)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    raw = made_of[0]
    # Validation between the steps of a training would form it anew each time, and hold it.
    trained = sigma.requires_grad or (raw is not None and raw.requires_grad)
    if trained or not plain or traced or sigma.is_meta or _is_transformed():
        return None
    if any(t is not None and t.is_inference() for t in made_of):
        return None  # They count no changes.
    versions = tuple((id(t), None if t is None else (t._version, t.data_ptr())) for t in made_of)
    # Also of writes into ``.data``, and of a spectrum that changes.
    state = (versions, spectrum, sigma.dtype, fingerprint((sigma,)), sample(made_of[1:]))
    kept = _kept.get(owner)
    if kept is None or kept.state != state:
        _, signs, left_base, right_base = cast("tuple[Tensor, ...]", made_of)
        with torch.no_grad():
            scale = (sigma * signs.to(sigma.dtype).sign()).unsqueeze(-2)
            core = (left_base.to(sigma.dtype) * scale) @ right_base.to(sigma.dtype).mT
        kept = _kept[owner] = _Kept(state, made_of, core)
    return kept.core


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()
