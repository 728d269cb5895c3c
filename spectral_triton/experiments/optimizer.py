"""Three learning rates: reflectors, singular values, and everything else."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from spectral_triton.experiments.settings import Settings

REFLECTORS = ("left", "right")
SIGMA = "raw_singular_values"


def group_of(parameter_name: str) -> str:
    """``"reflectors"``, ``"sigma"`` or ``"rest"``, by the last part of a parameter's name."""
    last = parameter_name.rpartition(".")[2]
    if last.endswith(SIGMA):
        return "sigma"
    return "reflectors" if last.endswith(REFLECTORS) else "rest"


def build_optimizer(model: nn.Module, settings: Settings) -> AdamW:
    """AdamW over the groups that are not empty; only the rest knows weight decay.

    Decay would pull the raw singular values towards the center of their band, and does nothing to
    a reflector, whose length has no meaning, except to change its learning rate.
    """
    rates = {
        "reflectors": settings.reflector_rate,
        "sigma": settings.sigma_rate,
        "rest": settings.learning_rate,
    }
    groups = []
    for group, rate in rates.items():
        parameters = [
            p for name, p in model.named_parameters() if p.requires_grad and group_of(name) == group
        ]
        if parameters:
            groups.append(
                {
                    "params": parameters,
                    "name": group,
                    "lr": rate,
                    "base_rate": rate,
                    "weight_decay": settings.weight_decay if group == "rest" else 0.0,
                }
            )
    return AdamW(groups)


def set_rates(optimizer: AdamW, factor: float) -> None:
    """Sets each group's learning rate to ``factor`` times its own base."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor
