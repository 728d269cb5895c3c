"""How a model is built and trained: every number a run can be given, with its task's defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spectral_triton.experiments.errors import UsageError, option

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Settings:
    """Numbers of one run; a task supplies the defaults, the command line overrides them."""

    hidden_size: int = 64
    num_layers: int = 1
    bidirectional: bool = False
    num_reflectors: tuple[int, int] | None = (16, 16)
    rebase: int | None = None
    margin: float = 0.01
    nonlinearity: str = "relu"
    init: str = "identity"
    dropout: float = 0.0
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 50
    lr: float = 5e-3
    reflectors_lr: float = 5e-3
    singular_values_lr: float = 2.5e-2
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: str = "cosine"
    evaluations: int = 20

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "batch_size", "evaluations"):
            if getattr(self, name) < 1:
                raise UsageError(f"{option(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("steps", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{option(name)} must be at least 1, not {value}")
        if self.rebase is not None and self.rebase < 1:
            raise UsageError(f"--rebase must be at least 1, not {self.rebase}")
        if (self.steps is None) == (self.epochs is None):
            raise UsageError("give either --steps or --epochs, not both")
        for name in ("lr", "reflectors_lr", "singular_values_lr"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{option(name)} must be a positive number, not {value}")
        for name in ("weight_decay", "clip", "margin"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise UsageError(f"{option(name)} must be zero or a positive number, not {value}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"--dropout must be at least 0 and below 1, not {self.dropout}")
        if self.schedule not in SCHEDULES:
            raise UsageError(
                f"--schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}"
            )
        for count in self.num_reflectors or ():
            if not 0 <= count <= self.hidden_size:
                raise UsageError(
                    "--num-reflectors must be from 0 to the hidden size "
                    f"{self.hidden_size}, not {count}"
                )

    def total_steps(self, steps_per_epoch: int | None) -> int:
        """Optimizer steps of the whole run."""
        if self.steps is not None:
            return self.steps
        if steps_per_epoch is None:
            raise UsageError("this task makes its data as it goes and has no epochs: give --steps")
        assert self.epochs is not None
        return self.epochs * steps_per_epoch

    def rate_factor(self, step: int, total: int) -> float:
        """What every learning rate is multiplied by at ``step`` of ``total``."""
        progress = step / total
        if self.schedule == "linear":
            return 1 - progress
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0
