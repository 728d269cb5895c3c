"""The spectrum in a state dict: raw singular values mean another W under another one."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.spectra.stacked import StackedSpectrum

STEPS = 128
"""Magnitudes stand at 1 + i / STEPS, which every floating dtype down to bfloat16 represents."""


class SpectrumRecord(nn.Module):
    """A module whose state dict tells its spectrum; loaded under another one it warns.

    The metadata beside torch's versions names it. Where that is lost, as in safetensors, a plain
    dict or one whose prefixes were stripped, the magnitudes of the buffer ``signs`` still tell it
    from others, see :func:`marked`. Only the signs of the buffer enter W. Those of state dicts from
    before, all 1, tell nothing.
    """

    spectrum: Spectrum | StackedSpectrum

    def __prepare_scriptable__(self) -> Any:
        """Called by ``torch.jit.script`` of this module, or of one that it is part of."""
        raise TypeError(
            "torch.jit.script cannot read layers in SVD form: use torch.export or torch.compile, "
            "torch.jit.trace with an example input, or script the plain layers of "
            "spectral_triton.bake(model)"
        )

    signs: Tensor

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})["spectrum"] = _described(self.spectrum)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Mapping[str, Any], *args: Any
    ) -> None:
        saved, own = metadata.get("spectrum"), _described(self.spectrum)
        signs: Any = state_dict.get(f"{prefix}signs")
        readable = _is_readable(signs) and signs.shape == self.signs.shape
        if saved is not None:
            saved = None if saved == own else f"the spectrum {saved}"
        elif readable and _tells_another(signs, self.spectrum):
            saved = "another spectrum (which one the tensors do not say)"
        if saved is not None:
            warnings.warn(
                f"{prefix[:-1] or 'the weight'} was saved with {saved} and is loaded with {own}, "
                "which makes another W of its raw singular values; load it as it was saved: "
                "SVDWeight.set_spectrum_ changes the bounds of what is loaded",
                stacklevel=2,
            )
        if readable:
            # The next state dict tells the spectrum that W has now. A copy: the tensor is the
            # caller's.
            state_dict[f"{prefix}signs"] = marked(signs, self.spectrum)
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)


@torch.no_grad()
def marked(signs: Tensor, spectrum: Spectrum | StackedSpectrum) -> Tensor:
    """``signs`` of shape (..., p) with magnitudes between 1 and 2 that tell the spectrum.

    They follow from a hash of its class and numbers: of two spectra they are the same with
    probability 127^-p.
    """
    return signs.sign() * (1 + _marks(signs, spectrum) / STEPS).to(signs.device, signs.dtype)


def _marks(signs: Tensor, spectrum: Spectrum | StackedSpectrum) -> Tensor:
    """Whole numbers from 1 to 127, shape (p,), or (matrices, p) of stacked spectra."""
    if isinstance(spectrum, StackedSpectrum):
        return torch.stack([_marks(signs, own) for own in spectrum])
    digest = hashlib.shake_128(_described(spectrum).encode()).digest(signs.shape[-1])
    marks = [1 + byte % (STEPS - 1) for byte in digest]
    return torch.tensor(marks, dtype=torch.float64, device="cpu")


def _tells_another(signs: Tensor, spectrum: Spectrum | StackedSpectrum) -> bool:
    """Whether the magnitudes tell a spectrum, and not this one."""
    steps = (signs.detach().cpu().double().abs() - 1) * STEPS
    # Averages of state dicts are off by rounding, which in bfloat16 is a step at a time.
    slack = 2 if signs.dtype is torch.bfloat16 else 0.25
    marked_at_all = (steps > 0.5) & (steps < STEPS) & ((steps - steps.round()).abs() <= slack)
    differs = (steps - _marks(signs, spectrum)).abs() > slack
    return bool(marked_at_all.all() and differs.any())


def _is_readable(signs: Any) -> bool:
    plain = type(signs) in (Tensor, nn.Parameter)
    return plain and signs.is_floating_point() and not signs.is_meta


def _described(spectrum: Spectrum | StackedSpectrum) -> str:
    if isinstance(spectrum, StackedSpectrum):
        each = [_described(own) for own in spectrum]
        return each[0] if len(set(each)) == 1 else f"[{', '.join(each)}]"
    plain = type(spectrum).__repr__ is object.__repr__
    return type(spectrum).__qualname__ if plain else repr(spectrum)
