"""The folder of one run: configuration, metrics, checkpoints and pictures."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from spectral_triton.experiments.errors import DataError, UsageError
from spectral_triton.experiments.former_names import current_config
from spectral_triton.experiments.training.checkpoint import save_checkpoint, write_text
from spectral_triton.experiments.training.config import RunConfig
from spectral_triton.experiments.training.lock import is_empty, locked


class RunFolder:
    """Where one run keeps what it has seen.

    ``config.json``, ``metrics.jsonl`` (one object a line, in the order of the steps, without
    times, so that two equal runs have equal files), ``last.pt``, ``best.pt``,
    ``gradient_flow.json``, ``summary.json`` once the run is finished, TensorBoard's events in
    ``tensorboard``, and the pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.gradient_flow_file = path / "gradient_flow.json"
        self.summary_file = path / "summary.json"
        self._metrics: Any = None
        self._writer: Any = None

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Refuses a folder in which ``config`` must not run, before anything is written.

        Raises:
            UsageError: if the folder holds something else, or a run that was not asked for, or one
                with another configuration; names the field that differs.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UsageError(f"{self.path} is not a folder")
        if is_empty(self.path):
            return
        if not self.config_file.is_file():
            raise UsageError(f"{self.path} is not empty and holds no run: choose another --output")
        if not resume:
            raise UsageError(
                f"{self.path} already holds a run: continue it with --resume, or choose another "
                "--output"
            )
        self._compare(config)

    def _compare(self, config: RunConfig) -> None:
        kept = self.config() or {}
        # Through JSON and back, so that both sides have its types.
        asked = json.loads(json.dumps(config.as_dict()))
        for field in sorted(kept.keys() | asked.keys()):
            if kept.get(field) != asked.get(field):
                raise UsageError(
                    f"cannot resume {self.path}: {field} is {kept.get(field)!r} there and "
                    f"{asked.get(field)!r} here"
                )

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes from this run; raises ``FolderInUse`` if one has it."""
        return locked(self.path)

    def open(self, config: RunConfig, *, metrics_bytes: int, step: int) -> None:
        """Continues the metrics after ``metrics_bytes``, those of ``step``."""
        from torch.utils.tensorboard import SummaryWriter

        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json(self.config_file, config.as_dict())
        self._metrics = self.metrics_file.open("ab")
        if self._metrics.tell() < metrics_bytes:
            raise DataError(f"{self.metrics_file} is shorter than its checkpoint says")
        self._metrics.truncate(metrics_bytes)
        self._writer = SummaryWriter(
            str(self.path / "tensorboard"), purge_step=step + 1 if step else None
        )

    def log(self, record: dict[str, Any]) -> None:
        """Appends to the metrics and to TensorBoard's events."""
        self._metrics.write((json.dumps(record) + "\n").encode())
        kind, step = record["kind"], record["step"]
        for name, value in record.items():
            if name in ("kind", "step"):
                continue
            if isinstance(value, list):
                import torch

                self._writer.add_histogram(f"{kind}/{name}", torch.tensor(value), step)
            else:
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> int:
        """Makes the metrics safe on disk and returns their length in bytes."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        self._writer.flush()
        return self._metrics.tell()

    def close(self) -> None:
        """Closes the files that ``open`` opened."""
        for file in (self._metrics, self._writer):
            if file is not None:
                file.close()
        self._metrics = self._writer = None

    def metrics(self) -> list[dict[str, Any]]:
        """Everything logged so far and flushed."""
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    def config(self) -> dict[str, Any] | None:
        """The configuration kept here, under the names of now; None where there is none.

        Raises:
            DataError: if it is damaged.
        """
        kept = self.read_json(self.config_file)
        return None if kept is None else current_config(kept)

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Writes one of the folder's JSON files atomically."""
        text = json.dumps(content, indent=2) + "\n"
        write_text(path, text)

    def save_checkpoint(self, path: Path, content: dict[str, Any]) -> None:
        """Writes one of the folder's checkpoints atomically."""
        save_checkpoint(path, content)

    def unwritten(self) -> RunFolder:
        """The same folder, only read: for all processes but one."""
        return _Unwritten(self.path)

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """One of the folder's JSON files, None where it is not there.

        Raises:
            DataError: if it holds no JSON object.
        """
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise DataError(f"{path} is damaged: it holds no object")
        return content


def kept_configs(output: Path) -> dict[Path, dict[str, Any]]:
    """The configuration of every run in ``output``, by its folder, in the order of their names."""
    folders = sorted(output.iterdir()) if output.is_dir() else []
    read = {path: RunFolder(path).config() for path in folders}
    for path, config in read.items():
        if config is not None and not {"task", "model", "seed"} <= config.keys():
            raise DataError(f"{path / 'config.json'} is damaged: it lacks task, model or seed")
    return {path: config for path, config in read.items() if config is not None}


class _Unwritten(RunFolder):
    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def open(self, config: RunConfig, *, metrics_bytes: int, step: int) -> None:
        pass

    def log(self, record: dict[str, Any]) -> None:
        pass

    def flush(self) -> int:
        return 0

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        pass

    def save_checkpoint(self, path: Path, content: dict[str, Any]) -> None:
        pass
