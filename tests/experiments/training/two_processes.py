"""What two processes do for test_processes.py: torchrun two_processes.py FOLDER."""

import os
import signal
import sys
from pathlib import Path

import torch

from spectral_triton.experiments.errors import Interrupted
from spectral_triton.experiments.tasks import adding, copying
from spectral_triton.experiments.tasks.ptb import Corpus, PennTreebank
from spectral_triton.experiments.training.config import make_config
from spectral_triton.experiments.training.processes import joined
from spectral_triton.experiments.training.run_folder import RunFolder
from spectral_triton.experiments.training.training import Training

RUNS = {
    # A batch of 7 has parts of 3 and 4.
    "adding": ("adding", "spectral", {"length": 6}, {}),
    "copying": ("copying", "gru", {"length": 3}, {}),
    "ptb": ("ptb", "lstm", {"window": 3}, {}),
    "dropout": ("ptb", "spectral", {"window": 3}, {"dropout": 0.3}),
}
STEPS, STOP = 7, 4


class Silence:
    """A report that can wish for an end, in the second process alone."""

    def __init__(self, stop=None):
        self.stop = stop

    def begin(self, label, total, done):
        self.begun = done

    def advance(self, step, loss):
        if step == self.stop and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGINT)

    def evaluated(self, step, metric, value, *, split):
        pass


def training(name, folder, stop=None):
    for module in (adding, copying):
        module.HELD_OUT, module.EVALUATION_BATCH = {"validation": 12, "test": 12}, 4
    task_name, model, options, overrides = RUNS[name]
    settings = {"hidden_size": 5, "batch_size": 7, "steps": STEPS, "evaluations": 2}
    config = make_config(
        task_name, model, options=options, overrides=settings | overrides, dtype="float64"
    )
    if task_name == "ptb":
        generator = torch.Generator().manual_seed(5)
        text = torch.randint(0, 6, (150,), generator=generator)
        tokens = {"train": text, "validation": text[:30], "test": text[30:70]}
        task = PennTreebank(Corpus(tuple("abcdef"), tokens), 7, **options)
    else:
        task = config.build_task(None)
    return Training(config, task, RunFolder(folder), Silence(stop))


def main(folder):
    with joined("cpu"):
        for name in RUNS:
            training(name, folder / name).run()
            try:
                training(name, folder / f"{name}-stopped", STOP).run()
            except Interrupted:
                resumed = training(name, folder / f"{name}-stopped")
                resumed.run()
                assert resumed.report.begun == STOP


if __name__ == "__main__":
    main(Path(sys.argv[1]))
