"""What ``spectral-triton reproduce`` needs to know about an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from spectral_triton.experiments.tasks.storage import DataFolder
    from spectral_triton.experiments.training.progress import ProgressReport


@dataclass(frozen=True)
class Selection:
    """The part of a reproduction that was asked for; None stands for all that is stored.

    ``search`` asks for the search among candidate settings instead of the runs themselves.
    """

    models: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    cases: Sequence[str] | None = None
    device: str = "cpu"
    threads: int | None = 1
    search: bool = False


@dataclass(frozen=True)
class BudgetLine:
    """What one row of a reproduction costs, all its runs together, on one CPU core."""

    what: str
    runs: int
    steps: int
    minutes: float


class Reproduction(Protocol):
    """An experiment with stored settings that can be run, continued and written up.

    ``run`` works in ``folder``, goes on where it was stopped, and returns the failures that did
    not keep it from going on. ``write_page`` makes ``README.md``, the raw results and the
    pictures in ``target`` from what lies in ``folder``, which may be ``target`` itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def budget(self, selection: Selection) -> list[BudgetLine]: ...

    def run(
        self, folder: Path, selection: Selection, data: DataFolder, report: ProgressReport
    ) -> list[str]: ...

    def write_page(self, folder: Path, target: Path) -> None: ...
