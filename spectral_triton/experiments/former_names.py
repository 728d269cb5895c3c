"""Names of before 0.1.0 that stand in saved runs and in commands people have written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TASKS = {"pixel-mnist": "sequential-mnist"}

SETTINGS = {
    "layers": "num_layers",
    "learning_rate": "lr",
    "reflector_rate": "reflectors_lr",
    "sigma_rate": "singular_values_lr",
}

REPRODUCTIONS = {
    "pixel-mnist": "sequential-mnist",
    "pixel-mnist-64": "sequential-mnist-64",
    "pixel-mnist-short": "sequential-mnist-short",
    "pixel-mnist-permuted": "permuted-mnist",
    "pixel-mnist-permuted-64": "permuted-mnist-64",
    "pixel-mnist-permuted-170": "permuted-mnist-170",
}


def current_task(name: str) -> str:
    """What the task is called now.

    Example:
        >>> current_task("pixel-mnist"), current_task("adding")
        ('sequential-mnist', 'adding')
    """
    return TASKS.get(name, name)


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's saved configuration under the names of now, in its own order.

    Example:
        >>> current_config({"task": "pixel-mnist", "layers": 1, "sigma_rate": 0.01})
        {'task': 'sequential-mnist', 'num_layers': 1, 'singular_values_lr': 0.01}
    """
    return {
        SETTINGS.get(name, name): current_task(value) if name == "task" else value
        for name, value in config.items()
    }


def current_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a reproduction's results under the names of now."""
    current = {SETTINGS.get(name, name): value for name, value in result.items()}
    if "study" in current:
        current["study"] = REPRODUCTIONS.get(current["study"], current["study"])
    if isinstance(current.get("config"), Mapping):
        current["config"] = current_config(current["config"])
    # The measurements of the study of settings are filed under the setting they change.
    current["model"] = SETTINGS.get(current["model"], current["model"])
    return current
