"""The training loop: it knows neither tasks nor models, only how to go on where it stopped."""

from __future__ import annotations

import math
import time
from typing import Any, Protocol

import torch

from spectral_triton.analysis.bounds import gradient_bound
from spectral_triton.experiments.errors import Interrupted, TrainingStopped
from spectral_triton.experiments.tasks.networks import WITH_FACTORS
from spectral_triton.experiments.tasks.task import Batch, Metric, Tally, Task
from spectral_triton.experiments.training.checkpoint import load_checkpoint
from spectral_triton.experiments.training.config import RunConfig
from spectral_triton.experiments.training.denormals import flushed_denormals
from spectral_triton.experiments.training.gradient_flow import gradient_norms
from spectral_triton.experiments.training.interruption import Interruption
from spectral_triton.experiments.training.model import (
    State,
    as_tensors,
    build_model,
    count_parameters,
    detach_state,
    lipschitz_bound,
)
from spectral_triton.experiments.training.optimizer import build_optimizer, descend, set_rates
from spectral_triton.experiments.training.processes import Processes
from spectral_triton.experiments.training.run_folder import RunFolder
from spectral_triton.models.rebase import RebaseEvery

POINTS = 200
"""Training records of a whole run: enough for a curve, few enough to read."""

PROBED_SEQUENCES = 20


class Report(Protocol):
    """Whoever watches a run."""

    def begin(self, label: str, total: int, done: int) -> None: ...

    def advance(self, step: int, loss: float) -> None: ...

    def evaluated(self, step: int, metric: Metric, value: float, *, split: str) -> None: ...


class Training:
    """One run from its first step, or from its last checkpoint, to its summary.

    The processes of an initialised process group share the run: each trains on its part of every
    batch, and the main one writes.

    Args:
        config: What to run.
        task: Its data.
        folder: Where it is kept; its ``last.pt`` is continued where there is one.
        report: Told about every step.
    """

    def __init__(self, config: RunConfig, task: Task, folder: RunFolder, report: Report) -> None:
        self.config, self.task, self.report = config, task, report
        self.processes = Processes.current()
        self.folder = folder if self.processes.is_main else folder.unwritten()
        self.settings = config.settings
        self.processes.check_batch_size(self.settings.batch_size)
        self.device = self.processes.device(config.device)
        self.total = self.settings.total_steps(task.steps_per_epoch)
        self.log_every = max(1, self.total // POINTS)
        torch.manual_seed(config.seed)
        self.model = build_model(
            config.model, self.settings, task, device=self.device, dtype=config.torch_dtype
        )
        self.optimizer = build_optimizer(self.model, self.settings)
        self.rebase: RebaseEvery | None = None
        if self.settings.rebase is not None and config.model in WITH_FACTORS:
            every = self.settings.rebase
            self.rebase = RebaseEvery(self.model, self.optimizer, every, seed=config.seed)
        self.parallel = self.processes.parallel(self.model)
        if self.processes.rank:
            # Dropout differs between processes; what they start from does not.
            torch.manual_seed(config.seed + self.processes.rank)
        self.step = 0
        self.state: State = None
        self.tally = Tally()
        self.recorded: dict[str, float] = {}
        self.best: float | None = None
        self.best_step = 0
        self.seconds, self.timed_steps = 0.0, 0

    def run(self) -> dict[str, Any]:
        """Trains to the end and returns the summary, which is also in the folder.

        Raises:
            TrainingStopped: at a loss, gradient or result that is not finite.
            Interrupted: at Ctrl-C, after saving.
            FolderInUse: if another process is at this run.
        """
        finished = self.processes.agreed(self.folder.read_json(self.folder.summary_file))
        if finished is not None:
            return finished
        with self.folder.locked():
            try:
                self._begin()
                with Interruption() as interruption, flushed_denormals():
                    self._loop(interruption)
                    stopped = self.processes.any(interruption.requested)
                summary = self._finish()
                if stopped:
                    raise Interrupted(f"{self.config.label} is finished, stopped after it")
                return summary
            finally:
                self.folder.close()

    def _begin(self) -> None:
        started = self.processes.agreed(self.folder.last.is_file())
        metrics_bytes = self._restore(load_checkpoint(self.folder.last)) if started else 0
        self.folder.open(self.config, metrics_bytes=metrics_bytes, step=self.step)
        self.report.begin(self.config.label, self.total, self.step)
        if not started:
            self._record_gradient_flow("start")
            self._log_singular_values()
            self._save()

    def _loop(self, interruption: Interruption) -> None:
        self.model.train()
        while self.step < self.total:
            began = time.perf_counter()
            loss = self._train_step()
            self.seconds += time.perf_counter() - began
            self.timed_steps += 1
            if self.step % self.log_every == 0:
                self._log_training()
            if self._evaluation_due():
                self._evaluate()
                self._save()
            self.report.advance(self.step, loss)
            if self.processes.any(interruption.requested) and self.step < self.total:
                self._save()
                raise Interrupted(f"stopped at step {self.step} of {self.total} and saved")

    def _train_step(self) -> float:
        batch, weight = self.processes.share(self.task, self.task.train_batch(self.step))
        batch = batch.to(self.device)
        set_rates(self.optimizer, self.settings.rate_factor(self.step, self.total))
        state = None if batch.fresh else self.state
        outputs, state = self.parallel(batch.inputs, state)
        self.state = detach_state(state) if self.task.carries_state else None
        loss = self.task.loss(outputs, batch.targets)
        tally = self.task.tally(loss.detach(), outputs.detach(), batch.targets)
        tally = self.processes.total(tally, weight)
        value = float(loss.detach()) if self.processes.size == 1 else tally.loss / tally.count
        self._require_finite("loss", value, self.step + 1)
        loss = loss if weight == 1 else weight * loss
        self.gradient_norm = descend(self.model, self.optimizer, loss, self.settings.clip)
        self._require_finite("norm of the gradient", self.gradient_norm, self.step + 1)
        self.tally.add(tally)
        self.step += 1
        return value

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            where = f"step {step} of {self.total}"
            raise TrainingStopped(
                f"{self.config.label}: the {what} is {value} at {where}",
                f"The last good state is {self.folder.last}; try a smaller --lr or --clip.",
            )

    def _evaluation_due(self) -> bool:
        evaluations = min(self.settings.evaluations, self.total)
        now, before = (step * evaluations // self.total for step in (self.step, self.step - 1))
        return now > before

    def _log_training(self) -> None:
        self.recorded = self.task.results(self.tally)
        self.folder.log(
            {
                "kind": "train",
                "step": self.step,
                **self.recorded,
                "gradient_norm": self.gradient_norm,
                "rate_factor": self.settings.rate_factor(self.step - 1, self.total),
            }
        )
        self.tally = Tally()

    def _evaluate(self) -> None:
        self._log_singular_values()
        metric = self.task.metric
        if not self.task.has_validation:
            self.report.evaluated(self.step, metric, self._trained(), split="training")
            return
        results = self._measure("validation")
        value = results[metric.name]
        self._require_finite(f"validation {metric.name}", value, self.step)
        self.folder.log({"kind": "validation", "step": self.step, **results})
        self.report.evaluated(self.step, metric, value, split="validation")
        if metric.better(value, self.best):
            self.best, self.best_step = value, self.step
            content = {"model": self.model.state_dict(), "step": self.step}
            self.folder.save_checkpoint(self.folder.best, content)

    def _trained(self) -> float:
        """The task's metric on the batches since the last record, or of that record."""
        results = self.task.results(self.tally) if self.tally.count else self.recorded
        return results[self.task.metric.name]

    @torch.no_grad()
    def _measure(self, split: str) -> dict[str, float]:
        self.model.eval()
        tally, state = Tally(), None
        for batch in self.processes.batches(self.task, split):
            batch = batch.to(self.device)
            outputs, state = self.model(batch.inputs, None if batch.fresh else state)
            tally.add(
                self.task.tally(self.task.loss(outputs, batch.targets), outputs, batch.targets)
            )
        self.model.train()
        if not self.task.carries_state:
            tally = self.processes.total(tally)
        return self.task.results(tally)

    def _log_singular_values(self) -> None:
        values = self.model.singular_values()
        if values is not None:
            record = {"kind": "spectrum", "step": self.step, "singular_values": values.tolist()}
            self.folder.log(record)

    def _record_gradient_flow(self, when: str) -> None:
        if self.settings.bidirectional:
            return  # There is no step before t that all of the gradient comes through.
        batch = self.task.train_batch(0).to(self.device)
        chosen = slice(PROBED_SEQUENCES)
        targets = batch.targets
        batch = Batch(
            batch.inputs[:, chosen],
            targets[:, chosen] if self.task.answers_every_step else targets[chosen],
        )
        total, direct = gradient_norms(self.model, self.task.loss, batch)
        record = {"norms": total}
        factor = lipschitz_bound(self.config.model, self.settings)
        if factor is not None:
            record["bound"] = gradient_bound(direct, factor)
        path = self.folder.gradient_flow_file
        kept = self.folder.read_json(path) if when != "start" else None
        self.folder.write_json(path, {**(kept or {}), when: record})

    def _finish(self) -> dict[str, Any]:
        self._record_gradient_flow("end")
        last_test = test = self._measure("test")
        tested_step = self.step
        if self.task.has_validation and self.best_step != self.step:
            self.processes.gathered(None)  # the main process has written it
            best = load_checkpoint(self.folder.best, device=self.device)
            self.model.load_state_dict(best["model"])
            test, tested_step = self._measure("test"), self.best_step
        for name, value in test.items():
            self._require_finite(f"test {name}", value, tested_step)
        summary = {
            "model": self.config.model,
            "seed": self.config.seed,
            "parameters": count_parameters(self.model),
            "steps": self.total,
            "tested_step": tested_step,
            "validation": self.best,
            "test": test,
            "last_test": last_test,
            "seconds": self.seconds,
            "timed_steps": self.timed_steps,
        }
        self.folder.flush()
        self.folder.write_json(self.folder.summary_file, summary)
        return summary

    def _save(self) -> None:
        state = as_tensors(self.state)
        self.folder.save_checkpoint(
            self.folder.last,
            {
                "metrics_bytes": self.folder.flush(),
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rebase": None if self.rebase is None else self.rebase.state_dict(),
                "state": self.processes.joined_states(state),
                "tally": [self.tally.loss, self.tally.correct, self.tally.count],
                "best": self.best,
                "best_step": self.best_step,
                "clock": [self.seconds, self.timed_steps],
                "random": self.processes.gathered(torch.get_rng_state()),
                "cuda_random": self.processes.gathered(
                    torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
                ),
            },
        )

    def _restore(self, content: dict[str, Any]) -> int:
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.rebase is not None:
            self.rebase.load_state_dict(content["rebase"])
        self.step, self.best, self.best_step = (
            content[name] for name in ("step", "best", "best_step")
        )
        state = self.processes.share_of_states(content["state"])
        state = [part.to(self.device) for part in state]
        self.state = (state[0], state[1]) if len(state) == 2 else (state[0] if state else None)
        self.tally = Tally(*content["tally"])
        self.seconds, self.timed_steps = content["clock"]
        rank = self.processes.rank
        if rank < len(content["random"]):  # else it goes on with more processes than before
            torch.set_rng_state(content["random"][rank])
            if content["cuda_random"][rank] is not None:
                torch.cuda.set_rng_state(content["cuda_random"][rank], self.device)
        return content["metrics_bytes"]
