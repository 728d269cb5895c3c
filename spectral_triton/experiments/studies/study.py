"""Models compared on one task, or on several cases of it, over several seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from spectral_triton.experiments.errors import (
    DataError,
    ExperimentError,
    FolderInUse,
    Interrupted,
    TrainingStopped,
    UsageError,
)
from spectral_triton.experiments.studies.page import write_page
from spectral_triton.experiments.studies.plan import RECORD, Job, Plan
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.studies.results import collect
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.training.progress import ProgressReport
from spectral_triton.experiments.training.provenance import provenance
from spectral_triton.experiments.training.run_folder import RunFolder
from spectral_triton.experiments.training.training import Training


class Study(Plan):
    """A reproduction made of the runs of its plan, and of the page that shows their results."""

    def run(
        self, folder: Path, selection: Selection, data: DataFolder, report: ProgressReport
    ) -> list[str]:
        """Runs what is selected and not finished yet; returns what went wrong on the way.

        A run that another process is at is passed over, and said so at the end.

        Raises:
            UsageError: if a run's folder holds other settings, before anything is run.
            Interrupted: at Ctrl-C, after saving.
        """
        jobs = self.jobs(selection)
        for job in jobs:
            RunFolder(folder / job.folder).check(job.config, resume=True)
        failures = []
        for job in jobs:
            try:
                _run(job, folder, data, report)
            except (Interrupted, UsageError):
                raise
            except ExperimentError as error:
                failures.append(f"{self.name}/{job.folder}: {error}")
                if isinstance(error, DataError):
                    break
        return failures

    def write_page(self, folder: Path, target: Path) -> None:
        """README.md, results.jsonl and pictures of everything found in ``folder`` or ``target``.

        A ``notes.md`` in ``target`` becomes part of the page.
        """
        write_page(self, collect(self, folder, target), target)


def _run(job: Job, root: Path, data: DataFolder, report: ProgressReport) -> None:
    """Begins, continues or skips the run; keeps beside it where and when it was made."""
    folder = RunFolder(root / job.folder)
    record = folder.path / RECORD
    if folder.summary_file.is_file() and record.is_file():
        return
    if job.config.threads is not None:
        torch.set_num_threads(job.config.threads)
    task = job.config.build_task(data)
    earlier = (folder.read_json(record) or {}).get("sessions", [])
    # Before the run: while it goes on, a commit may be made that it knows nothing of.
    sessions = [*earlier, provenance(job.config.device)]
    kept = {"metric": dataclasses.asdict(task.metric), "failure": None, "sessions": sessions}
    try:
        Training(job.config, task, folder, report).run()
    except FolderInUse:
        raise
    except BaseException as error:
        if folder.config_file.is_file():
            folder.write_json(record, {**kept, "failure": _failure(error)})
        raise
    folder.write_json(record, kept)


def _failure(error: BaseException) -> str | None:
    if isinstance(error, TrainingStopped):
        return error.reason
    known = isinstance(error, ExperimentError) and not isinstance(error, Interrupted)
    return str(error) if known else None
