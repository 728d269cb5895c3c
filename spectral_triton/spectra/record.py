"""The spectrum in a state dict: raw singular values mean another W under another one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.spectra.stacked import StackedSpectrum


class SpectrumRecord(nn.Module):
    """A module whose state dict names its spectrum in the metadata, beside torch's versions.

    Loaded under another one it warns. A plain dict of tensors names none.
    """

    spectrum: Spectrum | StackedSpectrum

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})["spectrum"] = _described(self.spectrum)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Mapping[str, Any], *args: Any
    ) -> None:
        saved, own = metadata.get("spectrum"), _described(self.spectrum)
        if saved is not None and saved != own:
            warnings.warn(
                f"{prefix[:-1] or 'the weight'} was saved with the spectrum {saved} and is loaded "
                f"with {own}, which makes another W of its raw singular values; load it as it was "
                "saved: SVDWeight.set_spectrum_ changes the bounds of what is loaded",
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)


def _described(spectrum: Spectrum | StackedSpectrum) -> str:
    plain = type(spectrum).__repr__ is object.__repr__
    return type(spectrum).__qualname__ if plain else repr(spectrum)
