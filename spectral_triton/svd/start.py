"""The values that the parameters of a matrix in SVD form begin with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from spectral_triton import init as reflector_init
from spectral_triton.runtime.sharding import assign_, is_sharded
from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.svd.base import draw_base, draw_pairs_


def reset_reflectors_(
    left: Tensor, right: Tensor, signs: Tensor, init: str, generator: Generator | None = None
) -> None:
    """Draws reflectors by the initialiser called ``init``, none of them zero, and signs for it."""
    given = left, right, signs
    if is_sharded(left):
        whole = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in given]
        reset_reflectors_(whole[0], whole[1], whole[2], init, generator)
        for tensor, value in zip(given, whole, strict=True):
            assign_(tensor, value)
        return
    if init == "haar":
        reflector_init.haar_(left, generator=generator)
        reflector_init.haar_(right, generator=generator)
    else:
        getattr(reflector_init, f"{init}_")(left, right, generator=generator)
    signs.fill_(1)
    reflector_init.flip_zero_rows_(left, right, signs)


@torch.no_grad()
def reset_with_base_(
    given: tuple[Tensor, Tensor, Tensor, Tensor],
    shape: Sequence[int],
    init: str,
    generator: Generator | None = None,
) -> None:
    """Draws left, right, U₀ and V₀ of matrices of ``shape`` so that W begins as ``init`` says."""
    whole = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in given]
    left, right = whole[:2]
    bases = list(draw_base(shape, whole[2], init, generator))
    draw_pairs_(left, bases[0], generator)
    draw_pairs_(right, bases[1], generator)
    for tensor, value in zip(given, (left, right, *bases), strict=True):
        assign_(tensor, value)


def initial_raw(spectrum: Spectrum) -> float:
    """The σ̂ at which the spectrum has its initial value."""
    # On the CPU even where torch.device("meta") is the default, since a value is needed.
    initial = torch.tensor([spectrum.initial], dtype=torch.float64, device="cpu")
    return spectrum.inverse(initial).item()
