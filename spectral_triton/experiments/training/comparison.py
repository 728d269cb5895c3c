"""Several runs of one task, one after another, and what they look like side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.tasks.networks import WITH_MARGIN
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.tasks.task import Metric
from spectral_triton.experiments.training import plots
from spectral_triton.experiments.training.checkpoint import write_text
from spectral_triton.experiments.training.config import RunConfig
from spectral_triton.experiments.training.lock import is_empty
from spectral_triton.experiments.training.processes import Processes
from spectral_triton.experiments.training.progress import ProgressReport, summary_table
from spectral_triton.experiments.training.run_folder import RunFolder, kept_configs
from spectral_triton.experiments.training.training import Training

PICTURES = ("comparison.png", "gradient_flow.png")
TABLE = "summary.md"


class Comparison:
    """Runs that share a task, each in its own folder below ``output``.

    Args:
        configs: The runs; they differ in model and seed.
        output: Where their folders go, and the pictures and table of them all.
        data: Where data sets lie.

    Raises:
        UsageError: if ``output`` or a run's folder must not be written to.
    """

    def __init__(
        self, configs: Sequence[RunConfig], output: Path, data: DataFolder, *, resume: bool = False
    ) -> None:
        self.configs, self.output, self.data = configs, output, data
        self.folders = [RunFolder(output / config.label) for config in configs]
        self.writes = Processes.current().is_main
        if not self.writes:
            return
        self._check_output()
        for config, folder in zip(configs, self.folders, strict=True):
            folder.check(config, resume=resume)

    def _check_output(self) -> None:
        if self.output.exists() and not self.output.is_dir():
            raise UsageError(f"--output {self.output} is not a folder")
        for entry in self.output.iterdir() if self.output.exists() else ():
            ours = entry.name in (*PICTURES, TABLE) or (entry / "config.json").is_file()
            if not ours and not (entry.is_dir() and is_empty(entry)):
                raise UsageError(
                    f"--output {self.output} holds {entry.name}, which is no run: choose another "
                    "folder"
                )

    def run(self, report: ProgressReport) -> tuple[Metric, list[dict[str, Any]]]:
        """Runs, or continues, all of them; returns the task's metric and a summary of each."""
        threads = torch.get_num_threads()
        try:
            with torch.random.fork_rng():
                return self._run(report)
        finally:
            torch.set_num_threads(threads)

    def _run(self, report: ProgressReport) -> tuple[Metric, list[dict[str, Any]]]:
        summaries, metric = [], None
        for config, folder in zip(self.configs, self.folders, strict=True):
            if config.threads is not None:
                torch.set_num_threads(config.threads)
            task = config.build_task(self.data)
            metric = task.metric
            summaries.append(Training(config, task, folder, report).run())
            if self.writes:
                draw_run(config, metric, folder)
        assert metric is not None
        if self.writes:
            self.draw(metric)
            self._write_table(metric, self._all_summaries(summaries))
        return metric, summaries

    def _finished(self) -> list[tuple[str, RunFolder]]:
        """Model and folder of these runs, and of the finished ones that were there before."""
        runs = [(c.model, f) for c, f in zip(self.configs, self.folders, strict=True)]
        own = {folder.path for folder in self.folders}
        for path, config in kept_configs(self.output).items():
            folder = RunFolder(path)
            if path not in own and folder.summary_file.is_file() and self._comparable(config):
                runs.append((config["model"], folder))
        return runs

    def _comparable(self, config: dict[str, Any]) -> bool:
        first = self.configs[0]
        task = {"task": first.task, **first.options}
        return all(config.get(name) == value for name, value in task.items())

    def _all_summaries(self, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        others = [folder for _, folder in self._finished()[len(own) :]]
        read = [folder.read_json(folder.summary_file) for folder in others]
        return own + [summary for summary in read if summary is not None]

    def draw(self, metric: Metric) -> None:
        """Learning curves and gradient flow of all runs in one picture each."""
        split = "validation"
        curves: dict[str, list[plots.Curve]] = {}
        flows: dict[str, dict[str, Any]] = {"before training": {}, "after training": {}}
        for model, folder in self._finished():
            records = folder.metrics()
            curve = curve_of(records, split, metric)
            if not curve:
                split = "training"
                curve = curve_of(records, "train", metric)
            curves.setdefault(model, []).append(curve)
            flow = folder.read_json(folder.gradient_flow_file)
            if model not in flows["after training"] and flow is not None:
                for of_models, when in zip(flows.values(), ("start", "end"), strict=True):
                    of_models[model] = {
                        "norms": flow[when]["norms"],
                        "color": plots.COLORS[model],
                    }
        title = self.configs[0].title
        comparison, gradients = (self.output / name for name in PICTURES)
        plots.comparison(comparison, title, metric, curves, split)
        plots.gradient_flow(gradients, f"{title}: gradients over time", flows)

    def _write_table(self, metric: Metric, summaries: Sequence[dict[str, Any]]) -> None:
        table = summary_table(self.configs[0].title, metric, summaries)
        cells = [[str(cell) for cell in column.cells] for column in table.columns]
        header = [str(column.header) for column in table.columns]
        lines = [header, ["---"] * len(header), *map(list, zip(*cells, strict=True))]
        text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        text = text.replace("[bold]", "**").replace("[/]", "**")
        write_text(self.output / TABLE, text)


def curve_of(records: Sequence[dict[str, Any]], kind: str, metric: Metric) -> plots.Curve:
    """(step, value) of the metric in the records of one kind."""
    return [(r["step"], r[metric.name]) for r in records if r["kind"] == kind]


def draw_run(config: RunConfig, metric: Metric, folder: RunFolder) -> None:
    """The pictures of one finished run."""
    records = folder.metrics()
    summary = folder.read_json(folder.summary_file)
    assert summary is not None
    name = f"{config.title}: {config.model}, seed {config.seed}"
    plots.learning_curve(
        folder.path / "learning_curve.png",
        name,
        metric,
        model=config.model,
        train=curve_of(records, "train", metric),
        validation=curve_of(records, "validation", metric),
        test=(summary["tested_step"], summary["test"][metric.name]),
    )
    spectrum = [r for r in records if r["kind"] == "spectrum"]
    if spectrum:
        margin = config.settings.margin
        plots.singular_values(
            folder.path / "singular_values.png",
            f"{name}: spectrum",
            model=config.model,
            steps=[r["step"] for r in spectrum],
            values=[r["singular_values"] for r in spectrum],
            gates=max(1, len(spectrum[0]["singular_values"]) // config.settings.hidden_size),
            band=(1 - margin, 1 + margin) if config.model in WITH_MARGIN else None,
        )
    flow = folder.read_json(folder.gradient_flow_file)
    if flow is not None:
        start, end = (
            {**flow[when], "color": color}
            for when, color in (("start", plots.BEFORE), ("end", plots.COLORS[config.model]))
        )
        plots.gradient_flow(
            folder.path / "gradient_flow.png",
            f"{name}: gradient flow",
            {"": {"before training": start, "after training": end}},
        )
