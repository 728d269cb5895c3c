"""The processes that share one run, as torchrun starts them, each with its part of every batch."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.tasks.task import Batch, Tally, Task


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Joins the processes that torchrun started, with NCCL on GPUs and gloo elsewhere.

    Without torchrun there is one process, and nothing is initialised.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Processes.current()
        return
    dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    try:
        yield Processes.current()
    finally:
        # What still holds the group goes first: with gloo, PyTorch aborts otherwise, now and then.
        gc.collect()
        dist.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is; alone, every method returns what it is given."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Those of the initialised process group, else one."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device called ``name``; for plain "cuda" among several, one GPU each."""
        device = torch.device(name)
        if self.size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise UsageError(f"--device {name} names one GPU for all processes: give cuda")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)))
        torch.cuda.set_device(device)
        return device

    def check_batch_size(self, batch_size: int) -> None:
        """Refuses batches that cannot be divided among the processes.

        Raises:
            UsageError: if there are fewer sequences than processes.
        """
        if batch_size < self.size:
            raise UsageError(f"--batch-size {batch_size} is less than the {self.size} processes")

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model, which then averages its gradients over the processes."""
        return model if self.size == 1 else DistributedDataParallel(model)

    def share(self, task: Task, batch: Batch) -> tuple[Batch, float]:
        """This process's sequences of a global batch, and the weight of their mean loss.

        With these weights the mean over processes is the mean over the batch. A process that gets
        none computes the first one with weight zero, since all have to take part.
        """
        if self.size == 1:
            return batch, 1.0
        count = batch.inputs.shape[1]
        part = self._part(count)
        sequences = part.stop - part.start
        part = part if sequences else slice(0, 1)
        targets = batch.targets[:, part] if task.answers_every_step else batch.targets[part]
        weight = self.size * sequences / count
        return Batch(batch.inputs[:, part], targets, batch.fresh), weight

    def batches(self, task: Task, split: str) -> Iterator[Batch]:
        """This process's batches of an evaluation; all of them where they build on each other."""
        for index, batch in enumerate(task.batches(split)):
            if task.carries_state or index % self.size == self.rank:
                yield batch

    def total(self, tally: Tally, weight: float = 1.0) -> Tally:
        """The sum over the processes; ``weight`` zero leaves this one out."""
        if self.size == 1:
            return tally
        sums = torch.tensor([tally.loss, tally.correct, tally.count], dtype=torch.float64)
        loss, correct, count = self._reduced(sums * bool(weight), dist.ReduceOp.SUM).tolist()
        return Tally(loss, correct, round(count))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        return bool(self._reduced(torch.tensor([float(flag)]), dist.ReduceOp.MAX))

    def agreed(self, value: Any) -> Any:
        """The value of the main process, in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def joined_states(self, state: Sequence[Tensor]) -> list[Tensor]:
        """Recurrent states (layers, B, n) of all sequences, from those of each process."""
        parts = self.gathered([tensor.cpu() for tensor in state] if self.size > 1 else state)
        return [torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)]

    def share_of_states(self, state: Sequence[Tensor]) -> list[Tensor]:
        """This process's part of what ``joined_states`` returned."""
        return [tensor[:, self._part(tensor.shape[1])].contiguous() for tensor in state]

    def _part(self, count: int) -> slice:
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        values = values.to(device)
        dist.all_reduce(values, operation)
        return values.cpu()
