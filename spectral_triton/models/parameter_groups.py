"""Parameters sorted for an optimizer: reflectors, raw singular values, and the rest."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from spectral_triton.parametrizations import svd_names
from spectral_triton.runtime.validation import check_number
from spectral_triton.svd.weight import SVDWeight

SINGULAR_VALUES_FACTOR = 5.0
"""Default learning rate of raw singular values, in multiples of the general one."""


def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    singular_values_lr: float | None = None,
    reflectors_lr: float | None = None,
    weight_decay: float = 0.0,
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    r"""Groups for any ``torch.optim`` optimizer, each with its own rate and weight decay.

    ==================== ========================== ====================================
    ``"name"``           learning rate              weight decay
    ==================== ========================== ====================================
    reflectors           ``lr``                     0: their length has no meaning, so
                                                    decay would only raise their rate
    singular_values      ``5 lr``                   0: decay would draw σ to the center
    rest                 ``lr``                     ``weight_decay``
    rest_without_decay   ``lr``                     0
    ==================== ========================== ====================================

    The factor 5 is for the default spectrum, whose slope dσ/dσ̂ is at most margin / 2; where the
    slope is about one (``SignedSpectrum``, ``SigmoidSpectrum(scale=2 / margin)``) give ``lr``
    itself. Reflectors begin about as long as rows of standard normal numbers: Adam and its
    relatives turn them by about ``reflectors_lr`` radians a step, whatever their size. Plain
    gradient descent turns a reflector of that length n - i times less than one of length one:
    give it a rate higher by as much.

    By the usual convention parameters of fewer than two dimensions, biases and gains, do not decay,
    nor those of ``nn.LayerNorm`` and ``nn.RMSNorm`` of any shape.

    Reflectors and singular values are those of every :class:`SVDWeight`, alone or inside a layer,
    and of every tensor under ``parametrizations.svd``. Each parameter that requires a gradient
    appears once, however many modules share it; frozen ones and empty groups are left out. The
    order within a group is that of ``model.parameters()``. Learning rate schedulers scale every
    group from its own start.

    Args:
        model: Any module.
        lr: Learning rate of the rest.
        singular_values_lr: That of raw singular values; ``5 * lr`` if None.
        reflectors_lr: That of reflectors; ``lr`` if None.
        weight_decay: Decay of the rest.
        decay_vectors: Lets all of the rest decay.

    Returns:
        Dictionaries with ``params``, ``name``, ``lr`` and ``weight_decay``.

    Raises:
        TypeError: if ``model`` is no module or a number none.
        ValueError: if a number is negative or not finite.

    Example:
        >>> model = nn.Sequential(SVDLinear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = parameter_groups(model, 1e-3, weight_decay=0.01)
        >>> [(group["name"], group["lr"], len(group["params"])) for group in groups]
        [('reflectors', 0.001, 2), ('singular_values', 0.005, 1), ('rest', 0.001, 1),
         ('rest_without_decay', 0.001, 2)]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    rates = {
        "lr": lr,
        "singular_values_lr": singular_values_lr,
        "reflectors_lr": reflectors_lr,
        "weight_decay": weight_decay,
    }
    for name, value in rates.items():
        if value is None and name.endswith("s_lr"):
            continue
        check_number(name, value)
        if value < 0:  # type: ignore[operator]
            raise ValueError(f"{name} must not be negative, got {value}")
    settings = {
        "reflectors": (lr if reflectors_lr is None else reflectors_lr, 0.0),
        "singular_values": (
            SINGULAR_VALUES_FACTOR * lr if singular_values_lr is None else singular_values_lr,
            0.0,
        ),
        "rest": (lr, weight_decay),
        "rest_without_decay": (lr, 0.0),
    }
    kinds = _factor_kinds(model)
    gains = {
        id(gain)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm)
        for gain in module.parameters()
    }
    members: dict[str, list[Tensor]] = {name: [] for name in settings}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = decay_vectors or (parameter.dim() >= 2 and id(parameter) not in gains)
            rest = "rest" if decays else "rest_without_decay"
            members[kinds.get(id(parameter), rest)].append(parameter)
    return [
        {"params": members[name], "name": name, "lr": rate, "weight_decay": decay}
        for name, (rate, decay) in settings.items()
        if members[name]
    ]


def _factor_kinds(model: nn.Module) -> dict[int, str]:
    """The group of every reflector and raw singular value, by the identity of the tensor."""
    kinds: dict[int, str] = {}
    for module in model.modules():
        factors: list[tuple[Any, ...]] = []
        if isinstance(module, SVDWeight):
            names = "left", "right", "raw_singular_values"
            # Where pruning computes one of them the parameter has another name.
            own = module._parameters
            factors.append(tuple(own.get(f"{n}_orig", own.get(n)) for n in names))
        for name in svd_names(module):
            chains: Any = module.parametrizations
            originals = chains[name]
            raw = getattr(originals, "original2", None)
            factors.append((originals.original0, originals.original1, raw))
        for left, right, raw in factors:
            kinds |= {id(left): "reflectors", id(right): "reflectors", id(raw): "singular_values"}
    return kinds
