"""Dense weights of plain layers: in a state dict that is loaded, or set in the place of factors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from spectral_triton.svd.bounds import OutOfBoundsError


def factor_dense_entries(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    errors: list[str],
    names: Iterable[tuple[str, str]],
    matrix: Callable[[Tensor, Any], Tensor] = lambda dense, weight: dense,
) -> None:
    """Puts factors in the place of dense weights, in a state dict that is loaded into a layer.

    Where one has none within its bounds the reason joins ``errors``, which ``load_state_dict``
    raises when the rest of a model is loaded, and the whole layer stays as it was.

    Args:
        module: The layer.
        state_dict: What is being loaded.
        prefix: Of the layer's entries.
        errors: ``error_msgs`` of ``_load_from_state_dict``.
        names: Those of a dense weight and of the ``SVDWeight`` that it is for.
        matrix: Makes the matrix, or the stacked ones, of the dense weight, for the ``SVDWeight``.
    """
    failures = []
    for dense, name in names:
        key = f"{prefix}{dense}"
        if key not in state_dict or f"{prefix}{name}.left" in state_dict:
            continue
        weight: Any = module.get_submodule(name)
        try:
            factors = weight.dense_state(matrix(state_dict[key], weight))
        except OutOfBoundsError as error:
            # Nobody can ask for another way here.
            failures.append(f"cannot load the dense {key}: {error.problem}")
        except (TypeError, ValueError) as error:
            failures.append(f"cannot load the dense {key}: {error}")
        else:
            state_dict.update((f"{prefix}{name}.{entry}", a) for entry, a in factors.items())
        del state_dict[key]
    if failures:
        errors += failures
        # The parameters themselves: with assign=True an optimizer would lose others.
        own = module.state_dict(keep_vars=True)
        state_dict.update((f"{prefix}{entry}", a) for entry, a in own.items())
