"""``train TASK --help``: the options that TASK has, with the values it gives them by default."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

from spectral_triton.experiments.arguments import TASKS
from spectral_triton.experiments.former_names import current_task

WORDS = "spectral_triton.words"


class TrainCommand(TyperCommand):
    """A command whose help knows the task that was named in front of ``--help``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keeps what was typed: help is asked for before any argument has its value."""
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """All options, or those of the task with its defaults."""
        words = [current_task(word) for word in ctx.meta.get(WORDS, ())]
        task = next((word for word in words if word in TASKS), None)
        params = self.params
        if task is not None:
            own, defaults = task_options(task), task_defaults(task)
            self.params = [
                _with_default(param, defaults.get(str(param.name)))
                for param in params
                if own.get(str(param.name), True)
            ]
        try:
            super().format_options(ctx, formatter)
        finally:
            self.params = params


def task_options(task: str) -> dict[str, bool]:
    """Whether ``task`` has each of the options that only some tasks have."""
    from spectral_triton.experiments.tasks.catalog import TASKS as CATALOG

    every = {name for kind in CATALOG.values() for name in kind.options}
    return {name: name in CATALOG[task].options for name in every}


def task_defaults(task: str) -> dict[str, str]:
    """What is taken for each option of ``task`` that is not given, in words.

    Example:
        >>> task_defaults("adding")["nonlinearity"]
        'leaky_relu; rnn tanh'
    """
    from spectral_triton.experiments.tasks.catalog import TASKS as CATALOG
    from spectral_triton.experiments.tasks.networks import MODELS, SETTINGS_OF_SOME
    from spectral_triton.experiments.training.config import default_settings

    options = CATALOG[task].options
    texts = {name: _text(value) for name, value in options.items() if value is not None}
    settings = {m: dataclasses.asdict(default_settings(task, m, options)) for m in MODELS}
    for name in settings["spectral"]:
        users = SETTINGS_OF_SOME.get(name, MODELS)
        text = _by_model({model: _text(settings[model][name]) for model in users})
        if text:
            texts[name] = text
    return texts


def _by_model(values: Mapping[str, str]) -> str:
    """The value of the first model, then the others with the models they belong to."""
    groups: dict[str, list[str]] = {}
    for model, value in values.items():
        groups.setdefault(value, []).append(model)
    first, *others = groups
    return "; ".join([first, *(f"{', '.join(groups[value])} {value}" for value in others)])


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_default(param: Any, default: str | None) -> Any:
    if not default or not hasattr(param, "help"):
        return param
    shown = copy.copy(param)
    shown.help = f"{param.help} [default: {default}]"
    shown.show_default = False
    return shown
