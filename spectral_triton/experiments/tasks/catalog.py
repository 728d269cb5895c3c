"""All tasks by the name the command line knows them by."""

from __future__ import annotations

from spectral_triton.experiments.tasks.adding import Adding
from spectral_triton.experiments.tasks.copying import Copying
from spectral_triton.experiments.tasks.mnist import SequentialMNIST
from spectral_triton.experiments.tasks.ptb import PennTreebank
from spectral_triton.experiments.tasks.task import Task
from spectral_triton.experiments.tasks.ucr import UCRSeries

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Adding, Copying, SequentialMNIST, PennTreebank, UCRSeries)
}
