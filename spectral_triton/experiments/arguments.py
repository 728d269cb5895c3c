"""Reading what was typed on the command line."""

from __future__ import annotations

import importlib.util

import typer

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.former_names import current_task

EXTRA = "pip install 'spectral-triton[experiments]'"
TASKS = ("adding", "copying", "sequential-mnist", "ptb", "ucr")
"""What can be trained; the tasks themselves import torch, which takes long."""
PACKAGES = ("filelock", "matplotlib", "pooch", "rich", "tensorboard")


def task_name(text: str) -> str:
    """One of ``TASKS``, given by its name or by a former one."""
    name = current_task(text)
    if name not in TASKS:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(TASKS)}")
    return name


def listed(values: list[str]) -> list[str]:
    """Names given by a repeated option or separated by commas, each once."""
    names = [name.strip() for value in values for name in value.split(",")]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name!r} is given twice")
    return names


def whole_numbers(values: list[str], option: str = "--seed") -> list[int]:
    """Whole numbers given like the names of ``listed``."""
    seeds = listed(values)
    for seed in seeds:
        if not seed.isdecimal() or int(seed) >= 2**63:
            raise UsageError(f"{option} takes whole numbers from 0, not {seed!r}")
    return [int(seed) for seed in seeds]


def reflector_counts(text: str) -> tuple[int, int] | None:
    """(left, right) of ``K`` or ``LEFT,RIGHT``, None of ``full``."""
    if text == "full":
        return None
    parts = text.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--num-reflectors takes K, LEFT,RIGHT or full, not {text!r}")
    return int(parts[0]), int(parts[-1])


def require_packages() -> None:
    """Ends the command where a package of the extra is absent, and says how to get it."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        typer.echo(f"Error: {', '.join(missing)} not installed. Run: {EXTRA}", err=True)
        raise typer.Exit(1)
