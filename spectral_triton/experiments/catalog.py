"""All tasks by the name the command line knows them by."""

from __future__ import annotations

from spectral_triton.experiments.adding import Adding
from spectral_triton.experiments.copying import Copying
from spectral_triton.experiments.mnist import PixelMNIST
from spectral_triton.experiments.ptb import PennTreebank
from spectral_triton.experiments.task import Task
from spectral_triton.experiments.ucr import UCRSeries

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Adding, Copying, PixelMNIST, PennTreebank, UCRSeries)
}
