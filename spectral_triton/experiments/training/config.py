"""Everything that decides the numbers of one run, as it is kept in its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spectral_triton.experiments.errors import UsageError, option
from spectral_triton.experiments.tasks.catalog import TASKS
from spectral_triton.experiments.tasks.networks import MODELS, SETTINGS_OF_SOME, SPECTRAL_GATES
from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.tasks.task import Task
from spectral_triton.experiments.training.model import check_directions, check_settings

DTYPES = {"float32": torch.float32, "float64": torch.float64}
ADDED_LATER = ("rebase", "bidirectional", "fold", "mask")
"""Names that folders of before lack; None and False stand for that."""


@dataclass(frozen=True)
class RunConfig:
    """One task, one model, one seed and the settings they run with."""

    task: str
    options: Mapping[str, Any]
    model: str
    seed: int
    settings: Settings
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that ``dtype`` names."""
        return DTYPES[self.dtype]

    @property
    def label(self) -> str:
        """Name of the run beside others of the same task."""
        return f"{self.model}-seed{self.seed}"

    @property
    def title(self) -> str:
        """The task with those of its options that are not the usual ones."""
        words = [self.task]
        for name, value in self.options.items():
            if value is True and TASKS[self.task].options[name] is False:
                words.append(name)
            elif not isinstance(value, bool) and value is not None:
                words.append(value if name == "dataset" else f"{name} {value}")
        return ", ".join(words).replace("ucr, ", "ucr ")

    def as_dict(self) -> dict[str, Any]:
        """A flat dictionary for JSON, without the settings this model has no use for."""
        settings = {
            name: value
            for name, value in dataclasses.asdict(self.settings).items()
            if self.model in SETTINGS_OF_SOME.get(name, MODELS)
        }
        if settings.get("num_reflectors") is not None:
            settings["num_reflectors"] = list(settings["num_reflectors"])
        return {
            "task": self.task,
            **_without_new(self.options),
            "model": self.model,
            "seed": self.seed,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            **_without_new(settings),
        }

    def build_task(self, data: DataFolder) -> Task:
        """The task with its data."""
        return TASKS[self.task].build(
            self.options, self.settings, seed=self.seed, dtype=self.torch_dtype, data=data
        )


def make_config(
    task: str,
    model: str,
    *,
    options: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
) -> RunConfig:
    """Fills up what was asked for with the task's defaults for this model.

    Args:
        task: A key of ``TASKS``.
        model: One of ``MODELS``.
        options: Options of the task that differ from its defaults.
        overrides: Fields of ``Settings`` that differ from the task's defaults. A learning rate
            given alone keeps the ratio of the others to it.

    Raises:
        UsageError: if a name is unknown or a value makes no sense; names it.
    """
    if task not in TASKS:
        raise UsageError(f"no task {task!r}: choose from {', '.join(TASKS)}")
    if model not in MODELS:
        raise UsageError(f"no model {model!r}: choose from {', '.join(MODELS)}")
    if dtype not in DTYPES:
        raise UsageError(f"--dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be at least 1, not {threads}")
    known, options = TASKS[task].options, dict(options or {})
    for name in options:
        if name not in known:
            what = "the name of a data set" if name == "dataset" else option(name)
            raise UsageError(f"{what} is no option of {task}")
    merged = {**known, **options}
    TASKS[task].check_options(merged)
    settings = _override(default_settings(task, model, merged), dict(overrides or {}))
    check_settings(model, settings)
    check_directions(settings, TASKS[task])
    _check_device(device)
    return RunConfig(task, merged, model, seed, settings, device, dtype, threads)


def default_settings(task: str, model: str, options: Mapping[str, Any]) -> Settings:
    """What ``model`` is trained with on ``task`` where nothing else is asked for."""
    defaults = TASKS[task].defaults(model, options)
    if model == "rnn":
        return dataclasses.replace(defaults, nonlinearity="tanh")
    if model in SPECTRAL_GATES:
        # Starts chosen for one transition matrix say nothing about gates.
        return dataclasses.replace(defaults, init="haar")
    return defaults


def continued_config(
    kept: Mapping[str, Any],
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
    hardware: Mapping[str, Any],
) -> RunConfig:
    """The configuration of a run's folder, with what was given now in place of what it has.

    Args:
        kept: As :meth:`RunConfig.as_dict` gives it.
        options: As for ``make_config``.
        overrides: As for ``make_config``.
        hardware: device, dtype and threads, those that were given.
    """
    known = [name for name in TASKS[kept["task"]].options if name in kept]
    settings = [field.name for field in dataclasses.fields(Settings) if field.name in kept]
    merged = {name: kept[name] for name in settings}
    if merged.get("num_reflectors") is not None:
        merged["num_reflectors"] = tuple(merged["num_reflectors"])
    return make_config(
        kept["task"],
        kept["model"],
        options={name: kept[name] for name in known} | dict(options),
        overrides=merged | dict(overrides),
        seed=kept["seed"],
        **{name: kept[name] for name in ("device", "dtype", "threads") if name in kept}
        | dict(hardware),
    )


def _without_new(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` but for those of ``ADDED_LATER`` that change nothing."""
    unused = [name for name in ADDED_LATER if values.get(name) is None or values[name] is False]
    return {name: value for name, value in values.items() if name not in unused}


def _override(settings: Settings, changes: dict[str, Any]) -> Settings:
    if "steps" in changes:
        changes.setdefault("epochs", None)
    if "epochs" in changes and changes["epochs"] is not None:
        changes.setdefault("steps", None)
    if "lr" in changes:
        ratio = changes["lr"] / settings.lr
        for name in ("reflectors_lr", "singular_values_lr"):
            changes.setdefault(name, getattr(settings, name) * ratio)
    hidden_size = changes.get("hidden_size", settings.hidden_size)
    if settings.num_reflectors is not None and "num_reflectors" not in changes:
        left, right = settings.num_reflectors
        changes["num_reflectors"] = (min(left, hidden_size), min(right, hidden_size))
    return dataclasses.replace(settings, **changes)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no device {name!r}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r} was asked for, but this torch sees no CUDA device")
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used: {reason}") from error
